"""Laws of real data sets, read as their owners left them."""

import json
from pathlib import Path
from typing import Any

import pytest

from ghm.data import voc
from ghm.errors import InputError
from tests.data.conftest import SHARED
from tests.data.layouts.conftest import everything, labelled, prepared

pytestmark = [
    pytest.mark.usefixtures("here"),
    pytest.mark.skipif(not (SHARED / "carla").exists(), reason="copies of real data sets are not there"),
]


def test_carla_as_voc_and_as_yolo_is_the_same_data_set():
    found = {}
    for layout in ("voc", "yolo"):
        manifest = prepared(SHARED / "carla", layout=layout)
        found[layout] = {split: labelled(split) for split in ("train", "val", "test")}
        assert manifest["classes"] == ["vehicle", "bike", "motobike", "traffic_light", "traffic_sign"]
        assert [len(images) for images in found[layout].values()] == [623, 156, 249]
        assert sum(split["boxes"] for split in manifest["splits"].values()) == 4395
    for split, images in found["voc"].items():
        assert images.keys() == found["yolo"][split].keys()
        for name, boxes in images.items():
            assert boxes == [(label, pytest.approx(box, abs=0.002)) for label, box in found["yolo"][split][name]]


def test_carla_is_asked_about_and_its_coco_file_refused_with_what_is_wrong():
    with pytest.raises(InputError, match=r"4 COCO .* 1,028 Pascal VOC .* 1,028 YOLO .*custom\.layout to coco or"):
        prepared(SHARED / "carla")
    words = r"train\.json: 88 image ids stand in it more than once, '_semantic' 126 times.*623 of 623 images are not on"
    with pytest.raises(InputError, match=words) as caught:
        prepared(SHARED / "carla", layout="coco")
    assert "\n" not in str(caught.value)


def test_photographs_that_stand_twice_in_raccoon_are_in_one_split():
    manifest = prepared(SHARED / "raccoon")
    assert {name: split["images"] for name, split in manifest["splits"].items()} == {
        "train": 140,
        "val": 30,
        "test": 30,
    }
    images = manifest["made_splits"]["images"]
    split = {name: part for part, names in images.items() for name in names}
    for copies in ((11, 116), (120, 83), (50, 52, 74)):
        assert len({split[f"images/raccoon-{number}.jpg"] for number in copies}) == 1


@pytest.mark.parametrize("below", ["", "BCCD"])
def test_bccd_as_a_folder_of_ones_own_has_the_splits_of_its_lists(below: str, tmp_path: Path):
    manifest = prepared(SHARED / "bccd" / below)
    assert manifest["classes"] == ["Platelets", "RBC", "WBC"] and "made_splits" not in manifest
    voc.convert(voc.SETS["bccd"], SHARED / "bccd", tmp_path / "theirs")
    for split in ("train", "val", "test"):
        theirs = json.loads((tmp_path / "theirs" / f"instances_{split}.json").read_text())
        ours = {Path(name).name: boxes for name, boxes in labelled(split).items()}
        assert [Path(image["file_name"]).name for image in theirs["images"]] == sorted(ours)
        corners: dict[str, list[Any]] = {Path(image["file_name"]).name: [] for image in theirs["images"]}
        for box in theirs["annotations"]:
            x, y, w, h = box["bbox"]  # with the last pixel inside
            corners[Path(theirs["images"][box["image_id"] - 1]["file_name"]).name].append((x, y, w - 1, h - 1))
        assert {name: [box for _, box in boxes] for name, boxes in ours.items()} == corners


def test_chess_is_roboflows_export_without_its_parent_class():
    manifest = prepared(SHARED / "chess")
    assert [split["images"] for split in manifest["splits"].values()] == [29, 101, 58]  # test, train, val
    assert manifest["category_ids"] == list(range(1, 14)) and "pieces" not in manifest["classes"]
    for split, folder in (("train", "train"), ("val", "valid"), ("test", "test")):
        theirs = json.loads((SHARED / "chess" / folder / "_annotations.coco.json").read_text())
        places = {image["id"]: f"{folder}/{image['file_name']}" for image in theirs["images"]}
        boxes: dict[str, list[Any]] = {place: [] for place in places.values()}
        for box in theirs["annotations"]:
            boxes[places[box["image_id"]]].append(tuple(box["bbox"]))
        assert {name: [box for _, box in found] for name, found in labelled(split).items()} == boxes
    assert len(everything()) == 188
