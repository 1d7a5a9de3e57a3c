"""Laws of splits that are made: by class, seeded, what belongs together in one of them, and stable."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ghm.data import splits, validation
from ghm.errors import InputError
from tests.data.layouts.conftest import labelled, picture, prepared, write

LABEL = "0 0.5 0.5 0.2 0.2\n"


def add(root: Path, name: str, seed: int, text: str = LABEL) -> None:
    picture(root / f"images/{name}.jpg", seed, (90, 90))
    write(root / f"labels/{name}.txt", text)


def like(root: Path, name: str, other: str) -> None:
    """Nearly the image `other`: larger, paler and compressed more."""
    with Image.open(root / f"images/{other}.jpg") as image:
        copy = Image.fromarray((np.asarray(image) * 0.9 + 20).astype(np.uint8)).resize((180, 180))
    copy.save(root / f"images/{name}.jpg", quality=60)
    write(root / f"labels/{name}.txt", LABEL)


@pytest.fixture
def photographs(root: Path) -> Path:
    """40 images that have nothing to do with each other."""
    write(root / "classes.txt", "common\nrare\n")
    for number in range(40):
        add(root, f"photo-{number}", number)
    return root


def made(root: Path, **custom: Any) -> dict[str, str]:
    """Image -> its split, by the manifest, which agrees with what is read."""
    images = prepared(root, **custom)["made_splits"]["images"]
    assert images == {split: sorted(labelled(split)) for split in images}
    return {Path(name).stem: split for split, names in images.items() for name in names}


def test_shares_are_those_of_the_parameters_and_the_seed_changes_the_images(photographs: Path):
    first = made(photographs, val_share=0.2, test_share=0.1)
    assert [[*first.values()].count(split) for split in ("train", "val", "test")] == [28, 8, 4]
    assert made(photographs, val_share=0.2, test_share=0.1) == first
    assert made(photographs, val_share=0.2, test_share=0.1, split_seed=1) != first


def test_a_rare_class_is_in_every_split_in_proportion(photographs: Path):
    for number in (3, 5, 8, 13, 21, 34, 35, 36, 37, 38):
        write(photographs / f"labels/photo-{number}.txt", f"{LABEL}1 0.2 0.2 0.1 0.1\n")
    described = prepared(photographs, val_share=0.2, test_share=0.2)["splits"]
    rare = {name: split["boxes_per_class"]["rare"] for name, split in described.items()}
    assert rare == {"train": 6, "val": 2, "test": 2}


def test_what_belongs_together_is_in_one_split(photographs: Path):
    for number in range(0, 40, 4):
        like(photographs, f"other-{number}x", f"photo-{number}")  # near-duplicates under other names
    for number in range(6):  # copies that an augmentation made, which look like nothing
        add(photographs, f"zoo_jpg.rf.{number:032x}", 100 + number)
    pixels = np.random.default_rng(5).integers(0, 255, (9, 9, 3), np.uint8)
    for number in range(8):  # a series that changes slowly: its ends are not alike
        pixels[number] = np.random.default_rng(number).integers(0, 255, (9, 3), np.uint8)
        Image.fromarray(pixels).resize((90, 90), 0).save(photographs / f"images/frame_{number:04}.jpg", quality=95)
        write(photographs / f"labels/frame_{number:04}.txt", LABEL)
    split = made(photographs, val_share=0.3, test_share=0.3)
    assert all(split[f"other-{number}x"] == split[f"photo-{number}"] for number in range(0, 40, 4))
    assert len({split[name] for name in split if name.startswith("zoo")}) == 1
    assert len({split[name] for name in split if name.startswith("frame")}) == 1
    assert len({split[name] for name in split if name.startswith("photo")}) == 3


@pytest.mark.parametrize("seed", range(4))
def test_images_that_are_added_leave_all_others_where_they_are(photographs: Path, seed: int):
    before = made(photographs, split_seed=seed)
    for number in range(40, 50):
        add(photographs, f"photo-{number}", number)
    for number in range(40):
        like(photographs, f"like-{number}", f"photo-{number}")
    after = made(photographs, split_seed=seed)
    assert before.items() <= after.items() and len(after) == 90
    assert all(after[f"like-{number}"] == after[f"photo-{number}"] for number in range(40))
    shares = [[*after.values()].count(split) / len(after) for split in ("train", "val", "test")]
    assert shares == pytest.approx([0.7, 0.15, 0.15], abs=0.05)
    (photographs / "images/photo-0.jpg").unlink()
    assert made(photographs, split_seed=seed) == {name: split for name, split in after.items() if name != "photo-0"}


def test_whoever_has_the_manifest_and_the_data_has_the_same_splits(photographs: Path, monkeypatch: pytest.MonkeyPatch):
    made(photographs)
    for number in range(40, 60):
        add(photographs, f"photo-{number}", number)
    history = made(photographs)
    colleague = photographs.parent / "colleague"
    (colleague / "data").mkdir(parents=True)
    shutil.copytree(photographs, colleague / "own")
    shutil.copy("data/custom.json", colleague / "data")
    manifest = json.loads(Path("data/custom.json").read_text())
    monkeypatch.setenv("GHM_DATA_ROOT", str(colleague / "store"))
    monkeypatch.chdir(colleague)
    assert made(colleague / "own") == history
    assert json.loads(Path("data/custom.json").read_text()) == manifest
    Path("data/custom.json").unlink()  # nothing known of before: all is dealt out at once
    fresh = made(colleague / "own")
    assert fresh != history
    monkeypatch.setenv("GHM_DATA_ROOT", str(colleague / "another"))
    Path("data/custom").unlink()
    Path("data/custom.json").unlink()
    assert made(colleague / "own") == fresh


def test_a_stage_that_looks_at_the_data_again_makes_nothing_anew(photographs: Path, monkeypatch: pytest.MonkeyPatch):
    made(photographs)
    place = Path("data/custom").resolve()
    monkeypatch.setattr(splits, "make", None)
    made(photographs)
    assert Path("data/custom").resolve() == place


def test_images_of_a_fixed_camera_are_dealt_out_all_the_same(root: Path, caplog: pytest.LogCaptureFixture):
    write(root / "classes.txt", "common\n")
    for number in range(20):
        add(root, f"a{number}", 7)
        with Image.open(root / f"images/a{number}.jpg") as image:
            image.putpixel((3, 3), (number, 0, 0))
            image.save(root / f"images/a{number}.jpg")
    with caplog.at_level("INFO", "ghm"):
        assert {*made(root).values()} == {"train", "val", "test"}
    assert "20 of 20 images look alike, as those of a fixed camera do" in caplog.text


def test_too_few_images_for_a_split_are_refused(root: Path):
    write(root / "classes.txt", "common\n")
    for number in range(2):
        add(root, f"a{number}", number)
    with pytest.raises(InputError, match=r"no val split can be made of 2 images in 2 groups .* a split of your own"):
        prepared(root)


def test_a_manifest_that_is_damaged_is_never_taken_for_none(photographs: Path):
    made(photographs)
    Path("data/custom.json").write_text("<<<<<<< HEAD")
    with pytest.raises(InputError, match=r"data/custom\.json is not JSON .*: restore it with git, or delete it"):
        prepared(photographs)


@given(seed=st.integers(0, 2**32))
def test_alike_are_exactly_the_hashes_that_differ_in_few_bits(seed: int):
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (6, 128))
    near = bits[rng.integers(0, 6, 60)] ^ (rng.random((60, 128)) < rng.uniform(0, 0.1, (60, 1)))
    hash_N2 = np.packbits(np.concatenate([bits, near]), axis=1).view(np.uint64)
    difference = np.bitwise_count(hash_N2[:, None] ^ hash_N2[None]).sum(axis=-1)
    wanted = splits.connected_components(difference <= splits.ALIKE, directed=False)[1]
    found = splits._alike(hash_N2)
    assert (found[:, None] == found[None]).tolist() == (wanted[:, None] == wanted[None]).tolist()


def test_copies_of_training_images_are_found_whatever_they_are_called(root: Path):
    write(root / "classes.txt", "common\n")
    for split, numbers in (("train", range(40)), ("val", range(40, 61)), ("test", range(61, 82))):
        for number in numbers:
            add(root, f"{split}/{number}", number)
    shutil.copy(root / "images/train/0.jpg", root / "images/val/41.jpg")
    manifest = prepared(root)
    assert manifest["splits"]["val"]["warnings"] == {"copies_of_training_images": 1}
    shutil.copy(root / "images/train/1.jpg", root / "images/val/42.jpg")
    with pytest.raises(InputError, match=r"2 images are in the training split too, under other names, .*, a copy of"):
        prepared(root)
    findings = validation.Findings()
    validation.check_overlap({"train/a.jpg": "1"}, {"val/a.jpg": "1", "val/b.jpg": "2"}, findings)
    assert findings.errors == ["1 image is in the training split too, for example val/a.jpg"]
