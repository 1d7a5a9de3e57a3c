"""Laws of validation: every fault is found, counted and named; errors stop, warnings do not, nothing is dropped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ghm.data.manifest import Split
from ghm.errors import InputError
from tests.data.conftest import PLACES, SPLITS, content, describe, write

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
    return describe(root, PLACES, check_images)["splits"]["train"]["warnings"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (setter("images", "id", 1), "1 image has an id that another one has, for example 1"),
        (setter("annotations", "id", 1), "1 box has an id that another one has, for example 1"),
        (setter("categories", "id", 7), "1 category has the id or the name of another one, for example 7"),
        (setter("categories", "name", "seven"), "1 category has the id or the name of another one, .* 'seven'"),
        (setter("annotations", "image_id", 9), "1 box names an image that the file does not have, for example 9"),
        (setter("annotations", "category_id", 9), "1 box names a category that the file does not have, .* 9"),
        (
            setter("annotations", "bbox", [0, float("nan"), 1, 1]),
            r"1 box holds a number that is not finite.*of image 1",
        ),
        (setter("annotations", "bbox", [0, 0, float("inf"), 1]), "1 box holds a number that is not finite"),
        (setter("annotations", "area", float("nan")), "1 box holds a number that is not finite"),
        (setter("images", "width", 0), r"1 image has a width or height below 1, for example train2\.jpg"),
        (setter("images", "file_name", "../train/train2.jpg"), r"1 file name leaves the image folder or .*'\.\./train"),
        (
            setter("images", "file_name", "/etc/passwd"),
            "1 file name leaves the image folder or .*'/etc/passwd'",
        ),
        (setter("images", "file_name", "a\\b.jpg"), "1 file name leaves the image folder"),
        (setter("images", "file_name", "a\0b.jpg"), r"1 file name leaves the image folder or cannot be .*'a\\x00b"),
        (
            setter("images", "file_name", "a\ud800b.jpg"),
            r"1 file name leaves the image folder or cannot be a file's name",
        ),
        (setter("images", "file_name", ""), "1 file name leaves the image folder or cannot be a file's name"),
        (setter("categories", "name", "a\0b"), r"1 class has a name that is no text, for example 'a\\x00b'"),
        (setter("categories", "name", "\udcff"), r"1 class has a name that is no text, for example '\\udcff'"),
        (setter("annotations", "id", 0), r"1 box has the id 0, which .* example \[5\.5, 5\.0, 20\.0, 25\.0\]"),
        (setter("images", "file_name", "none.jpg"), r"1 image is not in the image folder, for example none\.jpg"),
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
    with pytest.raises(InputError, match=r"names a category.*; .*not in the image folder"):
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
        (setter("annotations", "area", 0), {"boxes_of_area_0": 1}),
        (setter("annotations", "ignore", 1), {"ignored_boxes": 1}),
        (setter("annotations", "iscrowd", True), {"crowd_boxes": 1}),
        (setter("images", "file_name", "train1.jpg"), {"images_listed_twice": 1}),
        (setter("annotations", "category_id", 7), {"classes_without_boxes": 1}),
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
        if box % 3:
            x, y, width, height = 1, 1, 20, 20
        entry = {"id": box, "image_id": 1, "category_id": 3, "bbox": [x, y, width, height], "area": width * height}
        file["annotations"].append({**entry, "iscrowd": 0, "area": float(rng.choice([0, 9, 9, 9]))})
    warnings = counted(tmp_path, file)
    data = CocoDataset(
        str(tmp_path / "annotations" / "train.json"), metainfo={"classes": ("seven", "three")}, data_prefix={"img": ""}
    )
    kept = sum(len(data.get_data_info(index)["instances"]) for index in range(len(data)))
    assert warnings["boxes_without_area"] > 0 < warnings["boxes_of_area_0"]
    assert warnings["boxes_without_area"] + warnings["boxes_of_area_0"] == len(file["annotations"]) - kept


@pytest.mark.parametrize("check_images", ["none", "sample", "all"])
def test_an_image_that_ends_too_early_or_is_none_is_found_however_little_is_checked(tmp_path: Path, check_images: str):
    write(tmp_path, "val", content("val"))
    whole = (tmp_path / "val" / "val1.jpg").read_bytes()
    file = content()
    for data in (whole[:-200], b"no image", b""):
        file["images"][1]["file_name"] = "spoilt.jpg"
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "train" / "spoilt.jpg").write_bytes(data)
        with pytest.raises(
            InputError, match=r"1 image cannot be decoded, for example spoilt\.jpg \(.*raise it to leave"
        ):
            counted(tmp_path, file, check_images)


def spoil(root: Path, images: int, names: tuple[str, ...], missing: tuple[str, ...]) -> dict[str, Any]:
    """A training split of which some images are damaged in the middle, cut off, or not there."""
    file = content()
    (root / "train").mkdir(exist_ok=True)
    for number in range(3, images + 1):
        file["images"].append({"id": number, "file_name": f"{number}.png", "width": 40, "height": 30})
        Image.new("RGB", (40, 30), (number, 0, 0)).save(root / "train" / f"{number}.png")
    for name in names:
        (root / "train" / name).write_bytes(b"")
    for name in missing:
        (root / "train" / name).unlink()
    return file


def test_what_is_found_by_decoding_is_said_and_changes_no_manifest(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file = content()
    file["images"][0]["height"] = 31
    write(tmp_path, "train", file)
    write(tmp_path, "val", content("val"))
    damaged = tmp_path / "train" / "train2.jpg"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:200] + b"\xff\xc4\x00\x02" + whole[-2:])  # begins and ends as it should
    found = [describe(tmp_path, PLACES, level, 1) for level in ("none", "all")]
    assert found[0] == found[1]
    assert (
        "1 image has another size than the file says, for example train1.jpg, (40, 30) and not (40, 31)" in caplog.text
    )
    assert "1 image is missing or cannot be decoded, and left out, for example train2.jpg" in caplog.text


@pytest.mark.parametrize("check_images", ["none", "sample", "all"])
def test_as_many_images_may_be_bad_as_the_parameter_says_and_they_are_named(tmp_path: Path, check_images: str):
    file = spoil(tmp_path, 8, names=("4.png", "7.png"), missing=("5.png",))
    write(tmp_path, "train", file)
    write(tmp_path, "val", content("val"))
    described = describe(tmp_path, PLACES, check_images, 3)["splits"]["train"]
    assert described["unreadable"] == ["4.png", "5.png", "7.png"]
    assert described["warnings"] == {}
    with pytest.raises(InputError) as caught:
        describe(tmp_path, PLACES, check_images, 2)
    for words in (
        "1 image is not in the image folder, for example 5.png",
        "2 images cannot be decoded, for example 4.png (the file is empty)",
        "data.max_bad_images is 2: mend or add them, or raise it to leave them out",
    ):
        assert words in str(caught.value)


def test_an_image_that_only_decoding_shows_to_be_bad_counts_like_the_others(tmp_path: Path):
    file = spoil(tmp_path, 4, (), ())
    whole = (tmp_path / "train" / "4.png").read_bytes()
    (tmp_path / "train" / "4.png").write_bytes(whole[:20] + bytes(len(whole) - 32) + whole[-12:])
    write(tmp_path, "train", file)
    write(tmp_path, "val", content("val"))
    assert describe(tmp_path, PLACES, "all", 1)["splits"]["train"]["unreadable"] == []
    with pytest.raises(InputError, match=r"1 image cannot be decoded, for example 4\.png"):
        describe(tmp_path, PLACES, "all", 0)


def test_a_split_without_a_single_good_image_is_refused_whatever_may_be_left_out(tmp_path: Path):
    file = spoil(tmp_path, 2, (), ())
    write(tmp_path, "train", file)
    write(tmp_path, "val", content("val"))
    for name in ("train1.jpg", "train2.jpg"):
        (tmp_path / "train" / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"2 images cannot be decoded.*; no image is left"):
        describe(tmp_path, PLACES, "all", 100)


def boxes(number: int, **keys: Any) -> list[dict[str, Any]]:
    box = {"image_id": 1, "category_id": 7, "bbox": [1, 2, 10, 10], "area": 100, "iscrowd": 0}
    return [{**box, "id": index + 1, **keys} for index in range(number)]


def mixed(*parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**box, "id": number} for number, box in enumerate([box for part in parts for box in part], start=1)]


USELESS = [
    (boxes(0), "it has no boxes: there is nothing to {}"),
    (boxes(3, iscrowd=1), "all of its boxes are marked as crowd: there is nothing to {}"),
    (boxes(3, area=0), "3 of 3 boxes cannot be used: 3 of `area` 0 .leave `area` out, .* there is nothing to {}"),
    (boxes(1, bbox=[1, 1, 0.5, 9]), "1 of 1 box cannot be used: 1 less than a pixel wide or .* nothing to {}"),
    (
        boxes(3, bbox=[0.1, 0.2, 0.3, 0.8], area=0.24),
        r"its boxes look normalised to 0..1 and must be in pixels, for example \[0.1, 0.2, 0.3, 0.8\] of image 1 \(",
    ),
    (
        mixed(boxes(8), boxes(100, area=0), boxes(45, bbox=[99, 99, 9, 9])),
        "145 of 153 boxes cannot be used: 45 less than a pixel .*, 100 of `area` 0 .*: there is too little to {}",
    ),
    (
        mixed(boxes(1), boxes(2, area=0), boxes(5, iscrowd=1)),
        "2 of 3 boxes cannot be used.*: there is too little to {}",
    ),
]


@pytest.mark.parametrize(("split", "purpose"), [("train", "train on"), ("val", "measure")])
@pytest.mark.parametrize(("annotations", "words"), USELESS, ids=range(len(USELESS)))
def test_a_split_without_boxes_of_use_is_refused_with_the_reason(
    tmp_path: Path, split: str, purpose: str, annotations: list[dict[str, Any]], words: str
):
    for name in SPLITS:
        write(tmp_path, name, {**content(name), "annotations": annotations} if name == split else content(name))
    with pytest.raises(InputError, match=words.format(purpose)) as caught:
        describe(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "annotations" / f"{split}.json"))


def test_half_of_the_boxes_may_be_useless_and_any_share_crowd(tmp_path: Path):
    file = {**content(), "annotations": mixed(boxes(4), boxes(4, area=0), boxes(50, iscrowd=1))}
    assert counted(tmp_path, file) == {"boxes_of_area_0": 4, "crowd_boxes": 50, "classes_without_boxes": 1}


def test_boxes_marked_ignore_are_nothing_to_train_on_and_count_in_the_evaluation(tmp_path: Path):
    for name in SPLITS:
        write(tmp_path, name, {**content(name), "annotations": boxes(3, ignore=1)} if name == "val" else content(name))
    describe(tmp_path)
    write(tmp_path, "train", {**content(), "annotations": boxes(3, ignore=1)})
    with pytest.raises(InputError, match="3 of 3 boxes cannot be used: 3 marked `ignore`.*nothing to train on"):
        describe(tmp_path)


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
    only_its_ends = b"\xff\xd8" + bytes(100) + b"\xff\xd9"
    (tmp_path / "train" / "5.jpg").write_bytes(only_its_ends)
    assert counted(tmp_path, file, "sample") == {}
    (tmp_path / "train" / "9.jpg").write_bytes(only_its_ends)
    with pytest.raises(InputError, match=r"1 image cannot be decoded, for example 9\.jpg"):
        counted(tmp_path, file, "sample")


def test_an_image_of_the_training_split_in_another_one_stops(tmp_path: Path):
    other = content("val")
    other["images"][1]["file_name"] = "train1.jpg"
    write(tmp_path, "train", content())
    write(tmp_path, "val", other)
    (tmp_path / "val" / "train1.jpg").write_bytes((tmp_path / "val" / "val1.jpg").read_bytes())
    describe(tmp_path)  # the same name alone is no copy
    (tmp_path / "val" / "train1.jpg").write_bytes((tmp_path / "train" / "train1.jpg").read_bytes())
    with pytest.raises(InputError, match=r"1 image is in the training split too, for example val/train1\.jpg"):
        describe(tmp_path)
    write(tmp_path, "val", other, folder="train")
    with pytest.raises(InputError, match=r"1 image is in the training split too, for example train/train1\.jpg"):
        describe(tmp_path, {**PLACES, "val": Split("annotations/val.json", "train")})
