"""Laws of training boxes that are made wrong on purpose.

Shapes: N boxes that are trained on.
"""

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given
from mmdet.datasets import CocoDataset
from mmdet.structures.bbox import bbox_overlaps
from torch import tensor

from ghm import data
from ghm.data.noise import LEAST, REACH, Noise
from ghm.errors import InputError
from ghm.params import Custom, CustomSplit
from tests.data import conftest

IDS = [7, 3, 12]


def coco(boxes: list[list[float]], side: tuple[int, int] = (40, 30), ids: list[int] = IDS) -> dict[str, Any]:
    """A COCO file of one image."""
    return {
        "images": [{"id": 5, "file_name": "5.jpg", "width": side[0], "height": side[1]}],
        "categories": [{"id": number, "name": str(number)} for number in ids],
        "annotations": [
            dict(id=n, image_id=5, category_id=ids[n % len(ids)], bbox=box, area=box[2] * box[3], iscrowd=0, ignore=0)
            for n, box in enumerate(boxes, start=1)
        ],
    }


def spoilt(content: dict[str, Any], **noise: Any) -> list[dict[str, Any]]:
    changed = copy.deepcopy(content)
    Noise(**noise).apply(changed)
    assert {**changed, "annotations": 0} == {**content, "annotations": 0}
    return changed["annotations"]


def drawn(number: int, seed: int = 0) -> list[list[float]]:
    """Boxes inside an image of 400 x 300, from 1 pixel to 100."""
    random = np.random.default_rng(seed)
    sizes, corners = 100 ** random.uniform(0, 1, (number, 2)), random.uniform(0, 1, (number, 2))
    return np.concatenate([corners * ([400, 300] - sizes), sizes], axis=1).tolist()


CONTENT = coco(drawn(997), (400, 300))


@pytest.mark.parametrize("key", ["labels", "boxes"])
def test_the_share_is_exact_and_what_is_wrong_at_one_share_is_so_at_every_larger_one(key: str):
    clean = before = CONTENT["annotations"]
    for share in (0.0, 0.1, 0.2, 0.4, 0.75, 1.0):
        after = spoilt(CONTENT, **{key: share})
        wrong = [now != then for now, then in zip(after, clean, strict=True)]
        assert sum(wrong) == round(share * len(clean))
        assert all(now == then for now, then, was in zip(after, before, clean, strict=True) if then != was)
        before = after


def test_wrong_classes_are_of_the_file_and_all_as_frequent():
    boxes = spoilt(CONTENT, labels=1.0)
    places = [
        (IDS.index(now["category_id"]) - IDS.index(was["category_id"])) % len(IDS)
        for now, was in zip(boxes, CONTENT["annotations"], strict=True)
    ]
    assert np.bincount(places).tolist()[0] == 0
    assert abs(np.bincount(places)[1] - len(boxes) / 2) < 3 * np.sqrt(len(boxes)) / 2


def test_classes_and_boxes_are_changed_independently_and_by_the_seed():
    both = spoilt(CONTENT, labels=0.3, boxes=0.3)
    labels, boxes = spoilt(CONTENT, labels=0.3), spoilt(CONTENT, boxes=0.3)
    assert [box["category_id"] for box in both] == [box["category_id"] for box in labels]
    assert [box["bbox"] for box in both] == [box["bbox"] for box in boxes]
    assert {**both[0], "category_id": 0, "bbox": 0, "area": 0} == {**labels[0], "category_id": 0, "bbox": 0, "area": 0}
    for key in ("labels", "boxes"):
        assert spoilt(CONTENT, **{key: 0.3}) != spoilt(CONTENT, **{key: 0.3}, seed=1)


@given(seed=st.integers(0, 2**31), width=st.integers(2, 400), height=st.integers(2, 300), number=st.integers(1, 9))
def test_a_moved_box_lies_in_the_image_and_has_pixels(seed: int, width: int, height: int, number: int):
    content = coco(drawn(number, seed), (width, height))
    pairs = list(zip(spoilt(content, boxes=1.0, seed=seed), content["annotations"], strict=True))
    for now, was in pairs:
        x, y, w, h = now["bbox"]
        if now == was:
            assert was["bbox"][0] >= width or was["bbox"][1] >= height
        else:
            assert min(x, y) >= 0 and x + w <= width + 1e-9 and y + h <= height + 1e-9
            assert min(w, h) >= LEAST - 1e-9 and now["area"] == w * h


def test_boxes_are_moved_as_far_as_the_documentation_says():
    boxes = [[5000.0, 5000.0, width, 50.0] for width in np.linspace(20, 80, 20_000)]
    moved = [box["bbox"] for box in spoilt(coco(boxes, (10_000, 10_000)), boxes=1.0)]
    now_N4, was_N4 = (np.array([[x, y, x + w, y + h] for x, y, w, h in each]) for each in (moved, boxes))
    move_N4 = (now_N4 - was_N4) / np.tile(np.array(boxes)[:, 2:], 2)
    assert np.abs(move_N4).max() <= REACH + 1e-9
    assert np.quantile(move_N4, [0.25, 0.5, 0.75], axis=0) == pytest.approx(
        np.array([[-REACH / 2], [0], [REACH / 2]]).repeat(4, axis=1), abs=0.01
    )
    assert np.corrcoef(move_N4.T) == pytest.approx(np.eye(4), abs=0.03)
    iou_N = bbox_overlaps(tensor(now_N4), tensor(was_N4), is_aligned=True).numpy()
    assert iou_N.mean() == pytest.approx(0.57, abs=0.005) and (iou_N < 0.5).mean() == pytest.approx(0.26, abs=0.01)


ODD: list[dict[str, Any]] = [
    *({"iscrowd": 1}, {"ignore": 1}, {"area": 0.0}, {"area": -3}, {"bbox": [5, 5, 0.9, 9]}, {"bbox": [5, 5, 9, 0]}),
    *({"bbox": [41, 3, 5, 5]}, {"bbox": [-7, 3, 6, 5]}, {"bbox": [3, 30, 5, 5]}, {"bbox": [5, 5, -4, 9]}),
]
SEEN: list[dict[str, Any]] = [{"bbox": [-3, -3, 9, 9]}, {"bbox": [39, 29, 50, 50]}, {"bbox": [5, 5, 1, 1]}]


def test_what_mmdet_leaves_out_stays_as_it_is_and_does_not_count(tmp_path: Path):
    content = coco([[5.0, 5.0, 9.0, 9.0]] * (len(ODD) + len(SEEN)))
    for box, odd in zip(content["annotations"], ODD + SEEN, strict=True):
        box.update(odd)
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = CocoDataset(str(path), metainfo={"classes": tuple(map(str, IDS))}, data_prefix={"img": ""})
    instances: Any = dataset.get_data_info(0)["instances"]
    assert len([box for box in instances if not box["ignore_flag"]]) == len(SEEN)
    for noise in ({"labels": 1.0}, {"boxes": 1.0}):
        pairs = zip(spoilt(content, **noise), content["annotations"], strict=True)
        assert [now != was for now, was in pairs] == [False] * len(ODD) + [True] * len(SEEN)


NUMBER = st.floats() | st.integers(-5, 50)


@given(
    boxes=st.lists(st.lists(NUMBER, min_size=4, max_size=4), max_size=4),
    places=st.lists(st.tuples(st.integers(4, 6), st.sampled_from([*IDS, 99]), NUMBER), min_size=4, max_size=4),
    side=st.tuples(st.integers(-1, 50), st.integers(-1, 50)),
)
@example(boxes=[[5.0, -1.7e308, 1.7e308, 1.75e308]], places=[(5, 3, 1.0)], side=(50, 50))
def test_no_file_whatever_stops_it_or_becomes_worse_by_it(
    boxes: list[list[float]], places: list[tuple[int, int, float]], side: tuple[int, int]
):
    content = coco(boxes, side)
    for box, (image, category, area) in zip(content["annotations"], places, strict=False):
        box.update(image_id=image, category_id=category, area=area)
    for now, was in zip(spoilt(content, labels=1.0, boxes=1.0), content["annotations"], strict=True):
        assert repr(now["bbox"]) == repr(was["bbox"]) or (np.isfinite(now["bbox"]).all() and min(now["bbox"][2:]) > 0)


def test_a_wrong_class_of_one_is_refused():
    with pytest.raises(InputError) as caught:
        Noise(labels=0.3).apply(coco([[1.0, 1.0, 9.0, 9.0]], ids=[4]))
    assert str(caught.value) == "data.label_noise must be 0 where the data have one class, got 0.3"
    Noise(boxes=0.3).apply(coco([[1.0, 1.0, 9.0, 9.0]], ids=[4]))


PAIRS = Custom(
    **conftest.SETTINGS,
    train=CustomSplit("annotations/train.json", "train"),
    val=CustomSplit("annotations/val.json", "val"),
    test=None,
)
RECOGNISED = Custom(**conftest.SETTINGS, train=None, val=None, test=None)


@pytest.mark.parametrize("custom", [PAIRS, RECOGNISED])
def test_of_ones_own_data_nothing_but_the_training_boxes_changes(here: Path, custom: Custom):
    for split in ("train", "val", *["test"] * (custom is RECOGNISED)):
        conftest.write(here / "own", split, conftest.content(split))

    def prepared(**noise: float) -> tuple[dict[str, Any], dict[str, Any], bytes]:
        """Manifest, training file, and all else in the folder of the annotations."""
        parameters = conftest.parameters("custom", custom=custom, root=str(here / "own"), **noise)
        data.prepare(parameters)
        data.ensure(parameters)
        files = sorted(Path("data/custom/annotations").iterdir())
        rest = b"".join(path.read_bytes() for path in files if "train" not in path.name)
        return (
            data.read_manifest(parameters),
            json.loads(next(path for path in files if "train" in path.name).read_bytes()),
            rest,
        )

    manifest, clean, others = prepared()
    for noise, keys in (({"label_noise": 1.0}, {"category_id"}), ({"box_noise": 1.0}, {"bbox", "area"})):
        noisy_manifest, noisy, noisy_others = prepared(**noise)
        assert noisy_others == others
        changed = [
            {key for key in was if was[key] != now[key]}
            for was, now in zip(clean["annotations"], noisy["annotations"], strict=True)
        ]
        assert set().union(*changed) == keys and all(changed)
        assert {**noisy, "annotations": 0} == {**clean, "annotations": 0}
        for split in ("train", "val"):
            before, after = manifest["splits"][split], noisy_manifest["splits"][split]
            assert after["files_sha256"] == before["files_sha256"]
            assert (after["annotations_sha256"] == before["annotations_sha256"]) == (split != "train")
    assert prepared() == (manifest, clean, others)
