"""Laws of a data set of one's own: whatever tool exported it, training, evaluation and report read the same in it."""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from unicodedata import normalize

import pytest
from mmdet.datasets import CocoDataset

from ghm import data
from ghm.errors import InputError
from ghm.params import Custom, CustomSplit
from tests.data.conftest import SETTINGS, SHARED, content, parameters, write

CUSTOM = Custom(
    **SETTINGS,
    train=CustomSplit("annotations/train.json", "train"),
    val=CustomSplit("annotations/val.json", "val"),
    test=None,
)
CHESS = Custom(
    **SETTINGS,
    train=CustomSplit("train/_annotations.coco.json", "train"),
    val=CustomSplit("valid/_annotations.coco.json", "valid"),
    test=CustomSplit("test/_annotations.coco.json", "test"),
)
TEXT = json.dumps(content())
Form = Literal["NFC", "NFD"]
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def root(here: Path) -> Path:
    """The user's folder."""
    for split in ("train", "val"):
        write(here / "own", split, content(split))
    return here / "own"


def prepared(root: Path, custom: Custom = CUSTOM, **changes: Any) -> dict[str, Any]:
    """The manifest that the stage `data` writes."""
    setting = parameters("custom", custom=custom, root=str(root), **changes)
    data.prepare(setting)
    data.ensure(setting)
    return data.read_manifest(setting)


def read(split: str) -> dict[str, Any]:
    """The annotation file that everything downstream reads."""
    return json.loads((Path("data/custom/annotations") / f"instances_{split}.json").read_text("ascii"))


def change(root: Path, split: str, *changes: Change) -> None:
    file = content(split)
    for edit in changes:
        edit(file)
    write(root, split, file)


def snapshot(root: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_the_users_files_stay_as_they_are_and_are_read_once(root: Path):
    before = snapshot(root)
    prepared(root)
    place = Path("data/custom").resolve()
    assert place.parent == root.parent / "store" and snapshot(root) == before
    made = snapshot(place)
    prepared(root)
    assert snapshot(Path("data/custom").resolve()) == made


def test_an_annotation_file_that_changed_is_not_the_one_of_the_manifest(root: Path):
    prepared(root)
    change(root, "train", lambda file: file["annotations"].pop())
    with pytest.raises(InputError, match=r"data/custom\.json describes: .*own/annotations/train\.json has changed"):
        data.ensure(parameters("custom", custom=CUSTOM, root=str(root)))
    assert prepared(root)["splits"]["train"]["boxes"] == 2


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_every_encoding_of_unicode_is_read(root: Path, encoding: str):
    change(root, "train", lambda file: file["categories"][0].update(name="犬é"))
    change(root, "val", lambda file: file["categories"][0].update(name="犬é"))
    expected = prepared(root)
    path = root / "annotations" / "train.json"
    path.write_bytes(path.read_text().encode(encoding))
    assert prepared(root) == expected
    path.write_bytes(json.dumps(json.loads(path.read_bytes()), ensure_ascii=False).encode(encoding))
    assert prepared(root) == expected
    assert read("train")["categories"][0] == {"id": 7, "name": "犬é"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TEXT.replace("seven", "汽车和行人").encode("gbk"), "is neither UTF-8 nor UTF-16, perhaps GBK or Lat"),
        (TEXT.encode("utf-16")[:-3], "is neither UTF-8 nor UTF-16"),
        (TEXT.replace('"id": 1,', '"id": "1",', 1).encode(), r"Expected `int`, got `str` - at `\$.images"),
        (TEXT.replace("20, 25", "20, NaN").encode(), r"1 box holds a number that is not .* \(train1"),
    ],
)
def test_what_cannot_be_read_is_one_sentence_that_names_the_users_file(root: Path, text: bytes, words: str):
    path = root / "annotations" / "train.json"
    path.write_bytes(text)
    with pytest.raises(InputError, match=words) as caught:
        prepared(root)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and "store" not in str(caught.value)


@pytest.mark.parametrize("ids", [[0, 1, 2], [2**70] * 3])
def test_ids_of_boxes_mean_nothing(root: Path, ids: list[int]):
    expected = prepared(root)
    change(
        root,
        "train",
        lambda file: [box.update(id=number) for box, number in zip(file["annotations"], ids, strict=True)],
    )
    assert prepared(root) == expected
    assert [box["id"] for box in read("train")["annotations"]] == [1, 2, 3]
    change(root, "train", lambda file: [box.pop("id") for box in file["annotations"]])
    assert prepared(root) == expected


def test_area_is_that_of_the_box_and_crowd_is_no_where_the_file_says_nothing(root: Path):
    def leave_out(file: dict[str, Any]) -> None:
        first, second, third = file["annotations"]
        del first["area"], first["iscrowd"], third["area"]
        second.update(area=None, iscrowd=None, segmentation=[[1, 2, 3, 4]], keypoints=[0] * 6)
        third.update(iscrowd=True)

    change(root, "train", leave_out)
    prepared(root)
    boxes = read("train")["annotations"]
    assert [(box["area"], box["iscrowd"]) for box in boxes] == [(9, 0), (500, 0), (1200, 1)]
    assert all(set(box) == {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore"} for box in boxes)


def rename(number: int, name: str) -> Change:
    return lambda file: file["images"][number - 1].update(file_name=name)


@pytest.mark.parametrize("name", [".\\a\\b\\1.jpg", "./a//b/1.jpg"])
def test_a_file_name_with_backslashes_or_dots_is_found(root: Path, name: str):
    (root / "train" / "a" / "b").mkdir(parents=True)
    (root / "train" / "train1.jpg").rename(root / "train" / "a" / "b" / "1.jpg")
    change(root, "train", rename(1, name))
    prepared(root)
    assert read("train")["images"][0]["file_name"] == "a/b/1.jpg"


@pytest.mark.parametrize(("on_disk", "in_file"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_is_found_in_either_form_of_unicode_and_written_as_on_the_disk(root: Path, on_disk: Form, in_file: Form):
    folder, name = "Fotos à", "Glück é한.jpg"
    expected = f"{normalize(on_disk, folder)}/{normalize(on_disk, name)}"
    (root / "train" / normalize(on_disk, folder)).mkdir()
    (root / "train" / "train1.jpg").rename(root / "train" / expected)
    change(root, "train", rename(1, f"{normalize(in_file, folder)}/{normalize(in_file, name)}"))
    prepared(root)
    assert read("train")["images"][0]["file_name"] == expected


@pytest.mark.parametrize("name", ["..\\train\\train1.jpg", "\\\\server\\1.jpg"])
def test_a_name_that_leaves_the_folder_stays_refused(root: Path, name: str):
    change(root, "train", rename(1, name))
    with pytest.raises(InputError, match="1 file name leaves the image folder or cannot be a file's name, for example"):
        prepared(root)


def labels(split: str, classes: list[str]) -> list[list[tuple[str, tuple[float, ...]]]]:
    """Image by image, the class and corners of each box as mmdet trains on them."""
    place = Path("data/custom/annotations") / f"instances_{split}.json"
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = CocoDataset(str(place), metainfo={"classes": tuple(classes)}, data_prefix={"img": ""})
    infos: list[Any] = [dataset.get_data_info(index) for index in range(len(dataset))]
    return [[(classes[box["bbox_label"]], tuple(box["bbox"])) for box in info["instances"]] for info in infos]


def reorder(file: dict[str, Any]) -> None:
    file["categories"].reverse()


def renumber(file: dict[str, Any]) -> None:
    """The ids of the classes exchanged: `seven` is 3 now, and `three` 7."""
    for entry in file["categories"]:
        entry["id"] = 10 - entry["id"]
    for box in file["annotations"]:
        box["category_id"] = 10 - box["category_id"]


@pytest.mark.parametrize("changes", [[reorder], [renumber]])
def test_classes_of_another_order_or_other_ids_are_those_of_train(root: Path, changes: list[Change]):
    expected = prepared(root)
    before = labels("val", expected["classes"])
    change(root, "val", *changes)
    manifest = prepared(root)
    assert manifest == expected
    assert labels("val", manifest["classes"]) == before != []
    classes = [{"id": 7, "name": "seven"}, {"id": 3, "name": "three"}]
    assert read("val")["categories"] == read("train")["categories"] == classes


def test_a_class_that_no_category_names_is_refused_and_never_taken_for_another(root: Path):
    change(root, "val", renumber, lambda file: file["categories"].__setitem__(0, {"id": 4, "name": "seven"}))
    with pytest.raises(InputError, match=r"val\.json: 2 boxes name a category that the file does not have.* 3"):
        prepared(root)


@pytest.mark.skipif(not (SHARED / "chess").exists(), reason="a copy of the chess export is not there")
def test_an_export_of_roboflow_is_read_as_it_is(root: Path, tmp_path: Path):
    own = tmp_path / "chess"
    shutil.copytree(SHARED / "chess", own, copy_function=os.symlink)
    expected = prepared(own, CHESS, check_images="none")
    assert expected["category_ids"] == list(range(14)) and expected["classes"][0] == "pieces"
    boxes = {name: split["boxes"] for name, split in expected["splits"].items()}
    assert boxes == {"train": 1056, "val": 386, "test": 376}
    assert all(set(split["warnings"]) <= {"classes_without_boxes"} for split in expected["splits"].values())
    theirs = json.loads((own / "test/_annotations.coco.json").read_text())["annotations"]
    ours = read("test")["annotations"]
    assert [box["id"] for box in ours] == list(range(1, 377))
    kept = ("image_id", "category_id", "bbox", "area", "iscrowd")
    assert [[box[key] for key in kept] for box in ours] == [[box[key] for key in kept] for box in theirs]


@pytest.mark.skipif(not (SHARED / "carla").exists(), reason="a copy of CARLA is not there")
@pytest.mark.parametrize("split", ["train", "val"])
def test_broken_coco_files_of_the_wild_are_refused_in_one_sentence(root: Path, split: str):
    part = CustomSplit(f"annotations/{split}.json", "images")
    words = r"carla/annotations/.*\.json is not in COCO format: Expected `int`, got `str`"
    with pytest.raises(InputError, match=words):
        prepared(SHARED / "carla", Custom(**SETTINGS, train=part, val=part, test=None))
