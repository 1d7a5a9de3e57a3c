"""Laws of the embedded data set: what it contains, and what it depends on."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from ghm.data import digits as data
from ghm.data import digits_render as render
from ghm.data.noise import Noise
from ghm.params import Digits

PARAMS = Digits(seed=0, image_size=128, train_images=90, val_images=8, test_images=8)
SMALL = dataclasses.replace(PARAMS, train_images=6, val_images=2, test_images=2)
NOISE = Noise(labels=0.3)

# Of `digest`. Another number means other bytes for everyone: raise the data set's version, make the default run again.
DIGEST = "ecf0a6a74e1fd1d44d170d1bab32b065c093b04a5ee0bcbdee96ad61f76826e0"
OLD_PROCESSORS = {
    "no vector instructions": {
        "JSIMD_FORCENONE": "1",
        "OPENBLAS_CORETYPE": "Prescott",
        "NPY_DISABLE_CPU_FEATURES": " ".join(np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])),
        "OPENCV_CPU_DISABLE": "SSE4.1,SSE4.2,AVX,FP16,AVX2,AVX512-SKX",
        "ATEN_CPU_CAPABILITY": "default",
    },
    "SSE2": {"JSIMD_FORCESSE2": "1"},
}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clean") / "digits"
    data.write(PARAMS, Noise(), root)
    return root


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def digest(folder: Path) -> str:
    """SHA-256 of a small data set, of pictures whose side is no power of two, and of crops."""
    odd = dataclasses.replace(SMALL, image_size=100)
    data.write(SMALL, NOISE, folder / "small")
    data.write(odd, NOISE, folder / "odd")
    digest = hashlib.sha256()
    for name, body in content(folder).items():
        digest.update(f"{name} {len(body)}\n".encode() + body)
    for params in (SMALL, odd):
        for array in data.crops(params, 22, 48):
            digest.update(array.tobytes())
    return digest.hexdigest()


def annotations(root: Path, split: str) -> dict[str, Any]:
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


def boxes_of_images(root: Path, split: str) -> dict[int, list[Any]]:
    coco = annotations(root, split)
    boxes: dict[int, list[Any]] = {image["id"]: [] for image in coco["images"]}
    for annotation in coco["annotations"]:
        boxes[annotation["image_id"]].append(annotation["bbox"])
    return boxes


@pytest.mark.parametrize("processor", OLD_PROCESSORS)
def test_the_bytes_do_not_depend_on_the_processor(tmp_path: Path, processor: str):
    program = "import pathlib, sys; from tests.data import test_digits as t; print(t.digest(pathlib.Path(sys.argv[1])))"
    ran = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        env=os.environ | OLD_PROCESSORS[processor],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == [DIGEST]


def test_the_bytes_are_the_published_ones(tmp_path: Path):
    assert digest(tmp_path) == DIGEST


def test_a_longer_data_set_begins_with_the_shorter_one(clean: Path, tmp_path: Path):
    data.write(SMALL, Noise(), tmp_path / "short")
    short, long = content(tmp_path / "short"), content(clean)
    for name, body in short.items():
        if name.endswith(".jpg"):
            assert long[name] == body, name
    for split in data.SPLITS:
        short_boxes, long_boxes = (boxes_of_images(root, split) for root in (tmp_path / "short", clean))
        assert short_boxes == {image: long_boxes[image] for image in short_boxes}


def test_splits_share_no_digit_and_no_photo_region_and_use_all_digits():
    labels = np.random.default_rng(0).integers(0, 10, 1797)
    parts = data.split_digits(labels)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(1797))
    counts = np.array([np.bincount(labels[parts[split]], minlength=10) for split in data.SPLITS])
    assert np.abs(counts - np.outer([0.6, 0.2, 0.2], np.bincount(labels))).max() <= 1
    photo = np.arange(5 * 640).reshape(5, 640, 1) * np.ones((1, 1, 3), int)
    views = data.split_photos([photo, photo + photo.size])
    pixels = {split: {pixel for strip in strips for pixel in np.unique(strip)} for split, strips in views.items()}
    assert all(pixels.values()) and all(not pixels[a] & pixels[b] for a, b in combinations(data.SPLITS, 2))


def test_materials_share_no_scan_and_no_clutter():
    parts = [data.material(split, seed=0) for split in data.SPLITS]
    for kind in ("patterns", "clutter"):
        scans = [{scan.tobytes() for scan in getattr(part, kind)} for part in parts]
        assert all(not a & b for a, b in combinations(scans, 2))


def test_boxes_lie_inside_and_overlap_little(clean: Path):
    for boxes in boxes_of_images(clean, "train").values():
        assert all(x >= 0 and y >= 0 and x + w <= 128 and y + h <= 128 for x, y, w, h in boxes)
        assert all(render.overlap(a, b) <= render.MAX_OVERLAP_DIGITS for a, b in combinations(boxes, 2))


def test_boxes_are_tight():
    source = data.material("train", seed=0)
    rng = np.random.default_rng(0)
    for height in (20, 33.3, 60):
        for make in (render.digit, render.clutter):
            sprite = render.place(rng, make(rng, source, height), [], 128, 0.0)
            assert sprite is not None
            canvas = Image.new("RGB", (128, 128), (128, 128, 128))
            render.draw(rng, canvas, [sprite])
            painted = np.abs(np.asarray(canvas, float) - 128).max(2)
            painted /= painted.max()
            x, y, w, h = sprite.box
            outside = painted.copy()
            outside[y : y + h, x : x + w] = 0
            assert outside.max() == 0
            inside = painted[y : y + h, x : x + w] > render.VISIBLE / 2
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


def test_coco_file_is_complete_and_pycocotools_loads_it(clean: Path):
    for split, images in zip(data.SPLITS, (PARAMS.train_images, PARAMS.val_images, PARAMS.test_images), strict=True):
        coco = COCO(str(clean / "annotations" / f"instances_{split}.json"))
        assert [coco.cats[number]["name"] for number in range(1, 11)] == list(data.CLASSES)
        assert len(coco.imgs) == images
        assert all((clean / split / image["file_name"]).is_file() for image in coco.imgs.values())
        assert all(box["area"] == box["bbox"][2] * box["bbox"][3] for box in coco.anns.values())


@pytest.mark.parametrize(("noise", "keys"), [(NOISE, ["category_id"]), (Noise(boxes=0.3), ["area", "bbox"])])
def test_noise_changes_nothing_but_a_share_of_the_training_boxes(
    clean: Path, tmp_path: Path, noise: Noise, keys: list[str]
):
    noisy = tmp_path / "noisy"
    data.write(PARAMS, noise, noisy)
    without, with_noise = content(clean), content(noisy)
    assert [name for name in without if without[name] != with_noise[name]] == ["annotations/instances_train.json"]
    before, after = annotations(clean, "train"), annotations(noisy, "train")
    pairs = list(zip(before.pop("annotations"), after.pop("annotations"), strict=True))
    changed = [[key for key in sorted(was) if was[key] != now[key]] for was, now in pairs]
    assert before == after
    assert changed.count(keys) == round(0.3 * len(pairs)) == len(pairs) - changed.count([])


@pytest.mark.parametrize(("count", "size", "image_size"), [(0, 64, 128), (23, 32, 160), (12, 128, 64)])
def test_crops_have_the_size_asked_for_and_balanced_labels(count: int, size: int, image_size: int):
    images, labels = data.crops(dataclasses.replace(PARAMS, image_size=image_size), count, size)
    assert images.shape == (count, size, size, 3) and images.dtype == np.uint8
    assert labels.shape == (count,) and labels.dtype == np.int64
    counts = np.bincount(labels, minlength=11)
    assert len(counts) == 11 and counts.max() - counts.min() <= 1


def test_crops_depend_on_the_seed_and_not_on_their_number():
    images, labels = data.crops(PARAMS, 25, 64)
    fewer_images, fewer_labels = data.crops(dataclasses.replace(PARAMS, train_images=1), 12, 64)
    assert (images[:12] == fewer_images).all() and (labels[:12] == fewer_labels).all()
    other, _ = data.crops(dataclasses.replace(PARAMS, seed=1), 12, 64)
    assert (other != fewer_images).any((1, 2, 3)).all()
