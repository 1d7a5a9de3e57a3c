"""Laws of validation: every fault is found, counted and named; errors stop, warnings do not, nothing is dropped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ghm.data import manifest
from ghm.data.manifest import Split
from ghm.errors import InputError
from tests.data.coco_files import SPLITS, content, write

PLACES = {name: Split(f"annotations/{name}.json", name) for name in SPLITS}
Change = Callable[[dict[str, Any]], None]


def setter(section: str, key: str, value: Any) -> Change:
    """A change of the second entry of a section."""

    def change(file: dict[str, Any]) -> None:
        file[section][1][key] = value

    return change


def counted(root: Path, file: Any, check_images: str = "all") -> dict[str, int]:
    """The warnings about a training split."""
    write(root, "train", file)
    write(root, "val", content("val"))
    return manifest.describe("own", root, PLACES, check_images)["splits"]["train"]["warnings"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (setter("images", "id", 1), "1 images have an id that another one has, for example 1"),
        (setter("annotations", "id", 1), "1 boxes have an id that another one has, for example 1"),
        (setter("categories", "id", 7), "1 categories have the id or the name of another one, for example 7"),
        (setter("categories", "name", "seven"), "1 categories have the id or the name of another one, .* 'seven'"),
        (setter("annotations", "image_id", 9), "1 boxes name an image that the file does not have, for example 9"),
        (setter("annotations", "category_id", 9), "1 boxes name a category that the file does not have, .* 9"),
        (setter("annotations", "bbox", [0, float("nan"), 1, 1]), r"1 boxes hold a number that is not finite.*box 2 of"),
        (setter("annotations", "bbox", [0, 0, float("inf"), 1]), "1 boxes hold a number that is not finite"),
        (setter("annotations", "area", float("nan")), "1 boxes hold a number that is not finite"),
        (setter("images", "width", 0), r"1 images have a width or height below 1, for example train2\.jpg"),
        (setter("images", "file_name", "../train/train2.jpg"), r"1 file names leave the image folder, .*'\.\./train"),
        (
            setter("images", "file_name", "/etc/passwd"),
            "1 file names leave the image folder, .*'/etc/passwd'",
        ),
        (setter("images", "file_name", "a\\b.jpg"), "1 file names leave the image folder"),
        (setter("images", "file_name", "none.jpg"), r"1 images are not in the image folder, for example none\.jpg"),
    ],
)
def test_an_error_stops_and_is_named(tmp_path: Path, change: Change, words: str):
    file = content()
    change(file)
    with pytest.raises(InputError, match=words) as caught:
        counted(tmp_path, file)
    assert str(tmp_path / "annotations" / "train.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_errors_of_a_file_are_told_at_once(tmp_path: Path):
    file = content()
    file["images"][0]["file_name"] = "none.jpg"
    file["annotations"][0]["category_id"] = 9
    with pytest.raises(InputError, match=r"name a category.*; .*not in the image folder"):
        counted(tmp_path, file)


@pytest.mark.parametrize(
    ("change", "warnings"),
    [
        (setter("annotations", "bbox", [30, 5, 10.9, 5]), {}),
        (setter("annotations", "bbox", [30, 5, 12, 5]), {"boxes_outside": 1}),
        (setter("annotations", "bbox", [-2, 5, 12, 5]), {"boxes_outside": 1}),
        (setter("annotations", "bbox", [50, 5, 10, 5]), {"boxes_outside": 1, "boxes_without_area": 1}),
        (setter("annotations", "bbox", [5, 5, 0.5, 5]), {"boxes_without_area": 1}),
        (setter("annotations", "bbox", [5, 5, 5, -5]), {"boxes_without_area": 1}),
        (setter("annotations", "area", 0), {"boxes_without_area": 1}),
        (setter("annotations", "iscrowd", True), {"crowd_boxes": 1}),
        (setter("annotations", "id", 0), {"boxes_with_id_0": 1}),
        (setter("images", "file_name", "train1.jpg"), {"images_listed_twice": 1}),
        (setter("images", "height", 31), {"images_of_other_size": 1}),
        (setter("annotations", "category_id", 7), {"classes_without_boxes": 1}),
        (lambda file: file["annotations"].clear(), {"classes_without_boxes": 2}),
    ],
)
def test_a_warning_is_counted_in_the_manifest_and_nothing_is_dropped(
    tmp_path: Path, change: Change, warnings: dict[str, int]
):
    file = content()
    change(file)
    assert counted(tmp_path, file) == warnings


def test_boxes_said_to_be_left_out_are_those_that_mmdet_leaves_out(tmp_path: Path):
    from mmdet.datasets import CocoDataset

    rng = np.random.default_rng(0)
    file = content()
    for box in range(4, 500):
        x, y, width, height = rng.choice([-30, -1, 0, 0.5, 1, 20, 39.5, 40, 60], 4).tolist()
        entry = {"id": box, "image_id": 1, "category_id": 3, "bbox": [x, y, width, height], "area": width * height}
        file["annotations"].append({**entry, "iscrowd": 0})
    warnings = counted(tmp_path, file)
    data = CocoDataset(
        str(tmp_path / "annotations" / "train.json"), metainfo={"classes": ("seven", "three")}, data_prefix={"img": ""}
    )
    kept = sum(len(data.get_data_info(index)["instances"]) for index in range(len(data)))
    assert 0 < warnings["boxes_without_area"] == len(file["annotations"]) - kept


def test_an_image_that_ends_too_early_or_is_none_is_found(tmp_path: Path):
    write(tmp_path, "val", content("val"))
    whole = (tmp_path / "val" / "val1.jpg").read_bytes()
    file = content()
    for data in (whole[:-200], b"no image", b""):
        file["images"][1]["file_name"] = "spoilt.jpg"
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "train" / "spoilt.jpg").write_bytes(data)
        with pytest.raises(InputError, match=r"1 images cannot be decoded, for example spoilt\.jpg \("):
            counted(tmp_path, file)
        assert counted(tmp_path, file, "none") == {}


def test_an_image_turned_by_exif_has_the_size_that_training_sees(tmp_path: Path):
    write(tmp_path, "val", content("val"))
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "train").mkdir()
    Image.new("RGB", (30, 40)).save(tmp_path / "train" / "turned.jpg", exif=exif)
    file = content()
    file["images"][1]["file_name"] = "turned.jpg"
    assert counted(tmp_path, file) == {}


def test_an_orientation_that_is_none_does_not_make_an_image_unreadable(tmp_path: Path):
    write(tmp_path, "val", content("val"))
    (tmp_path / "train").mkdir()
    letter = bytes.fromhex("4d4d002a00000008000101120002000000024100000000000000")
    Image.new("RGB", (40, 30)).save(tmp_path / "train" / "odd.jpg", exif=b"Exif\0\0" + letter)
    with Image.open(tmp_path / "train" / "odd.jpg") as picture:
        assert picture.getexif()[0x0112] == "A"
    file = content()
    file["images"][1]["file_name"] = "odd.jpg"
    assert counted(tmp_path, file) == {}


def test_a_sample_is_spread_over_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ghm.data.validation.SAMPLE", 2)
    file = content()
    (tmp_path / "train").mkdir()
    for number in range(3, 10):
        file["images"].append({"id": number, "file_name": f"{number}.jpg", "width": 40, "height": 30})
        Image.new("RGB", (40, 30)).save(tmp_path / "train" / f"{number}.jpg")
    (tmp_path / "train" / "5.jpg").write_bytes(b"")
    assert counted(tmp_path, file, "sample") == {}
    (tmp_path / "train" / "9.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"1 images cannot be decoded, for example 9\.jpg"):
        counted(tmp_path, file, "sample")


def test_an_image_of_the_training_split_in_another_one_stops(tmp_path: Path):
    other = content("val")
    other["images"][1]["file_name"] = "train1.jpg"
    write(tmp_path, "train", content())
    write(tmp_path, "val", other)
    (tmp_path / "val" / "train1.jpg").write_bytes((tmp_path / "val" / "val1.jpg").read_bytes())
    manifest.describe("own", tmp_path, PLACES, "all")  # the same name alone is no copy
    (tmp_path / "val" / "train1.jpg").write_bytes((tmp_path / "train" / "train1.jpg").read_bytes())
    with pytest.raises(InputError, match=r"1 images are in the training split too, for example val/train1\.jpg"):
        manifest.describe("own", tmp_path, PLACES, "all")
    write(tmp_path, "val", other, folder="train")
    with pytest.raises(InputError, match=r"1 images are in the training split too, for example train/train1\.jpg"):
        manifest.describe("own", tmp_path, {**PLACES, "val": Split("annotations/val.json", "train")}, "all")
