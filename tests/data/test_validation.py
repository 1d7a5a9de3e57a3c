"""Laws of validation: every fault is found, counted and named; errors stop, warnings do not, nothing is dropped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from PIL import Image

from ghm.data.manifest import Split
from ghm.errors import InputError
from tests.data.conftest import PLACES, content, describe, write

Change = Callable[[dict[str, Any]], None]
ONLY_ITS_ENDS = b"\xff\xd8" + bytes(100) + b"\xff\xd9"  # of a JPEG


def setter(section: str, key: str, value: Any) -> Change:
    """A change of the second entry of a section."""

    def change(file: dict[str, Any]) -> None:
        file[section][1][key] = value

    return change


def described(root: Path, file: dict[str, Any], check_images: str = "all", most: int = 0) -> dict[str, Any]:
    """What the manifest says of a training split whose file this is; its first two images are written where absent."""
    for split in ("train", "val"):
        if not (root / split / f"{split}1.jpg").exists():
            write(root, split, content(split))
    write_file(root, "train", file)
    return describe(root, PLACES, check_images, most)["splits"]["train"]


def write_file(root: Path, split: str, file: dict[str, Any]) -> None:
    (root / "annotations" / f"{split}.json").write_text(json.dumps(file))


def with_images(root: Path, **images: bytes | Image.Image) -> dict[str, Any]:
    """A training split with further images, `<name>.jpg` of 40 x 30, and these contents."""
    write(root, "train", content())
    write(root, "val", content("val"))
    file = content()
    for number, (name, image) in enumerate(images.items(), start=3):
        file["images"].append({"id": number, "file_name": f"{name}.jpg", "width": 40, "height": 30})
        path = root / "train" / f"{name}.jpg"
        if isinstance(image, bytes):
            path.write_bytes(image)
        else:
            image.save(path)
    return file


def refusal(root: Path, file: dict[str, Any], *arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        described(root, file, *arguments)
    assert str(caught.value).startswith(str(root / "annotations" / "train.json")) and "\n" not in str(caught.value)
    return str(caught.value)


PLAIN = Image.new("RGB", (40, 30))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (setter("images", "id", 1), "1 image has an id that another one has, for example 1"),
        (setter("annotations", "id", 1), "1 box has an id that another one has, for example 1"),
        (setter("categories", "id", 7), "1 category has the id or the name of another one, for example 7"),
        (setter("categories", "name", "seven"), "has the id or the name of another one, for example 'seven'"),
        (setter("annotations", "image_id", 9), "1 box names an image that the file does not have, for example 9"),
        (setter("annotations", "category_id", 9), "1 box names a category that the file does not have, for example 9"),
        (setter("annotations", "bbox", [0, float("nan"), 1, 1]), "1 box holds a number that is not finite"),
        (setter("annotations", "area", None), "1 box holds a number that is not finite, or no `area`, for example"),
        (setter("annotations", "bbox", [0, 0, float("inf"), 1]), "1 box holds a number that is not finite"),
        (setter("images", "width", 0), "1 image has a width or height below 1, for example train2.jpg"),
        (setter("images", "file_name", "../train/train2.jpg"), "1 file name leaves the image folder or "),
        (setter("images", "file_name", "/etc/passwd"), "for example '/etc/passwd'"),
        (setter("images", "file_name", "a\0b.jpg"), r"for example 'a\x00b"),
        (setter("images", "file_name", "a\ud800b.jpg"), "1 file name leaves the image folder or cannot be a "),
        (setter("categories", "name", "a\0b"), r"1 class has a name that is no text, for example 'a\x00b'"),
        (setter("images", "file_name", "none.jpg"), "1 image is not in the image folder, for example none.jpg"),
    ],
)
def test_an_error_stops_and_is_named(tmp_path: Path, change: Change, words: str):
    file = content()
    change(file)
    assert words in refusal(tmp_path, file)


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
    assert described(tmp_path, file)["warnings"] == warnings


def test_boxes_said_to_be_left_out_are_those_that_mmdet_leaves_out(tmp_path: Path):
    rng = np.random.default_rng(0)
    file = content()
    for box in range(4, 500):
        x, y, width, height = rng.choice([-30, -1, 0, 0.5, 1, 20, 39.5, 40, 60], 4).tolist()
        if box % 3:
            x, y, width, height = 1, 1, 20, 20
        entry = {"id": box, "image_id": 1, "category_id": 3, "bbox": [x, y, width, height], "area": width * height}
        file["annotations"].append({**entry, "iscrowd": 0, "area": float(rng.choice([0, 9, 9, 9]))})
    warnings = described(tmp_path, file)["warnings"]
    path = str(tmp_path / "annotations" / "train.json")
    data = CocoDataset(path, metainfo={"classes": ("seven", "three")}, data_prefix={"img": ""})
    kept = sum(len(data.get_data_info(index)["instances"]) for index in range(len(data)))
    assert warnings["boxes_without_area"] > 0 < warnings["boxes_of_area_0"]
    assert warnings["boxes_without_area"] + warnings["boxes_of_area_0"] == len(file["annotations"]) - kept


def test_what_is_found_by_decoding_is_said_and_changes_no_manifest(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file = with_images(tmp_path, damaged=ONLY_ITS_ENDS)
    file["images"][0]["height"] = 31
    assert described(tmp_path, file, "none", 1) == described(tmp_path, file, "all", 1)
    assert (
        "1 image has another size than the file says, for example train1.jpg, (40, 30) and not (40, 31)" in caplog.text
    )
    assert "1 image is missing or cannot be decoded, and left out, for example damaged.jpg" in caplog.text
    assert "1 image cannot be decoded, for example damaged.jpg" in refusal(tmp_path, file, "all", 0)


@pytest.mark.parametrize("check_images", ["none", "sample", "all"])
def test_as_many_images_may_be_bad_as_the_parameter_says_and_they_are_named(tmp_path: Path, check_images: str):
    file = with_images(tmp_path, a=PLAIN, b=b"", c=PLAIN, d=b"")
    (tmp_path / "train" / "c.jpg").unlink()
    split = described(tmp_path, file, check_images, 3)
    assert (split["unreadable"], split["warnings"]) == (["b.jpg", "c.jpg", "d.jpg"], {})
    message = refusal(tmp_path, file, check_images, 2)
    for words in (
        "1 image is not in the image folder, for example c.jpg",
        "2 images cannot be decoded, for example b.jpg (the file is empty)",
        "data.max_bad_images is 2: mend or add them, or raise it to leave them out",
    ):
        assert words in message


def boxes(number: int, **keys: Any) -> list[dict[str, Any]]:
    box = {"image_id": 1, "category_id": 7, "bbox": [1, 2, 10, 10], "area": 100, "iscrowd": 0}
    return [{**box, "id": index + 1, **keys} for index in range(number)]


def mixed(*parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**box, "id": number} for number, box in enumerate([box for part in parts for box in part], start=1)]


USELESS = [
    (boxes(0), "it has no boxes: there is nothing to {}"),
    (boxes(3, iscrowd=1), "all of its boxes are marked as crowd: there is nothing to {}"),
    (
        boxes(1, bbox=[0.1, 0.2, 0.3, 0.8]),
        "1 of 1 box cannot be used, too little is left to {}: 1 box is less than",
    ),
    (boxes(3, area=0), "3 of 3 boxes cannot be used, too little is left to {}: 3 boxes have an `area` of 0"),
    (
        mixed(boxes(8), boxes(100, area=0), boxes(45, bbox=[99, 99, 9, 9])),
        "145 of 153 boxes cannot be used, too little is left to {}: 45 boxes are less .*; 100 boxes have an `area` ",
    ),
    (mixed(boxes(1), boxes(2, area=0), boxes(5, iscrowd=1)), "2 of 3 boxes cannot be used, too little is left to {}"),
]


@pytest.mark.parametrize(("split", "purpose"), [("train", "train on"), ("val", "measure")])
@pytest.mark.parametrize(("annotations", "words"), USELESS, ids=range(len(USELESS)))
def test_a_split_without_boxes_of_use_is_refused_with_the_reason(
    tmp_path: Path, split: str, purpose: str, annotations: list[dict[str, Any]], words: str
):
    with_images(tmp_path)
    write_file(tmp_path, split, {**content(split), "annotations": annotations})
    with pytest.raises(InputError, match=words.format(purpose)) as caught:
        describe(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "annotations" / f"{split}.json"))


def test_half_of_the_boxes_may_be_useless_and_any_share_crowd(tmp_path: Path):
    file = {**content(), "annotations": mixed(boxes(4), boxes(4, area=0), boxes(50, iscrowd=1))}
    warnings = {"boxes_of_area_0": 4, "crowd_boxes": 50, "classes_without_boxes": 1}
    assert described(tmp_path, file)["warnings"] == warnings


def test_boxes_marked_ignore_are_nothing_to_train_on_and_count_in_the_evaluation(tmp_path: Path):
    file = with_images(tmp_path)
    write_file(tmp_path, "val", {**content("val"), "annotations": boxes(3, ignore=1)})
    described(tmp_path, file)
    message = refusal(tmp_path, {**content(), "annotations": boxes(3, ignore=1)})
    assert "3 of 3 boxes cannot be used, too little is left to train on: 3 boxes are marked `ignore`" in message


def test_an_image_turned_by_exif_has_the_size_that_training_sees(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file = with_images(tmp_path, turned=PLAIN, odd=PLAIN)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 40)).save(tmp_path / "train" / "turned.jpg", exif=exif)
    letter = bytes.fromhex("4d4d002a00000008000101120002000000024100000000000000")  # as orientation
    PLAIN.save(tmp_path / "train" / "odd.jpg", exif=b"Exif\0\0" + letter)
    assert described(tmp_path, file)["warnings"] == {}
    assert "another size" not in caplog.text


def test_a_sample_is_evenly_spaced_over_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ghm.data.validation.SAMPLE", 2)
    file = with_images(tmp_path, a=PLAIN, b=ONLY_ITS_ENDS, c=PLAIN)
    assert described(tmp_path, file, "sample")["warnings"] == {}
    (tmp_path / "train" / "c.jpg").write_bytes(ONLY_ITS_ENDS)
    assert "1 image cannot be decoded, for example c.jpg" in refusal(tmp_path, file, "sample")


def test_an_image_of_the_training_split_in_another_one_stops(tmp_path: Path):
    file, other = with_images(tmp_path), content("val")
    other["images"][1]["file_name"] = "train1.jpg"
    write_file(tmp_path, "val", other)
    copy, original = tmp_path / "val" / "train1.jpg", tmp_path / "train" / "train1.jpg"
    copy.write_bytes((tmp_path / "val" / "val1.jpg").read_bytes())
    described(tmp_path, file)  # the same name alone is no copy
    copy.write_bytes(original.read_bytes())
    with pytest.raises(InputError, match=r"1 image is in the training split too, for example val/train1\.jpg"):
        describe(tmp_path)
    write(tmp_path, "val", other, folder="train")
    with pytest.raises(InputError, match=r"1 image is in the training split too, for example train/train1\.jpg"):
        describe(tmp_path, {**PLACES, "val": Split("annotations/val.json", "train")})
