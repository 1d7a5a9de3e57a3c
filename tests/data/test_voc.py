"""Laws of the conversion from VOC to COCO."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ghm.data import sources, voc
from ghm.data.sets import locate
from ghm.data.voc import Voc
from ghm.errors import InputError
from tests.data.conftest import SHARED, parameters

BCCD = SHARED / "bccd"

FORMAT = Voc(("cat", "dog"), {"train": (("A", "trainval"), ("B", "trainval")), "test": (("A", "test"),)})


def thing(name: str, box: str = "2 3 4 5", difficult: str | None = "0") -> str:
    corners = zip(("xmin", "ymin", "xmax", "ymax"), box.split(), strict=True)
    bounds = "".join(f"<{key}>{value}</{key}>" for key, value in corners)
    mark = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"  # VOC marks heads and hands of persons
    return f"<object>{part}<name>{name}</name>{mark}<bndbox>{bounds}</bndbox></object>"


def write(root: Path, folder: str, name: str, objects: str, split: str) -> None:
    for below in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder / below).mkdir(parents=True, exist_ok=True)
    size = "<size><width>9</width><height>8</height><depth>3</depth></size>"
    text = f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"
    (root / folder / "Annotations" / f"{name}.xml").write_text(text)
    with (root / folder / "ImageSets" / "Main" / f"{split}.txt").open("a") as file:
        file.write(f"{name}\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "in", "A", "1", thing("dog") + thing("cat", "1 1 9 8", "1"), "trainval")
    write(tmp_path / "in", "A", "2", "", "test")
    write(tmp_path / "in", "B", "1", thing("cat", "1.5 2 3.25 4", None), "trainval")
    return tmp_path / "in"


def converted(root: Path, split: str = "train") -> dict[str, Any]:
    voc.convert(FORMAT, root, root.parent / "out")
    return json.loads((root.parent / "out" / f"instances_{split}.json").read_text())


def test_the_first_and_the_last_pixel_are_inside_and_the_first_one_is_1(root: Path):
    train = converted(root)
    assert [image["file_name"] for image in train["images"]] == ["A/JPEGImages/1.jpg", "B/JPEGImages/1.jpg"]
    assert [(image["width"], image["height"]) for image in train["images"]] == [(9, 8)] * 2
    assert [box["bbox"] for box in train["annotations"]] == [[1, 2, 3, 3], [0, 0, 9, 8], [0.5, 1, 2.75, 3]]
    assert [box["area"] for box in train["annotations"]] == [9, 72, 8.25]
    assert [box["image_id"] for box in train["annotations"]] == [1, 1, 2]
    assert train["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert [box["category_id"] for box in train["annotations"]] == [2, 1, 1]
    assert [box["iscrowd"] for box in train["annotations"]] == [0, 1, 0]  # what is difficult
    assert converted(root, "test")["annotations"] == []


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        (thing("cow"), "has an object of class 'cow', which is none of cat, dog"),
        (thing("cat").replace("<xmin>2</xmin>", ""), "lacks `bndbox/xmin` in its <object>"),
        (thing("cat", "1 2 3 nan"), "must hold a number as `bndbox/ymax`, got 'nan'"),
        (thing("cat") + "<", "is not XML"),
    ],
)
def test_a_bad_file_is_named(root: Path, objects: str, words: str):
    write(root, "A", "3", objects, "trainval")
    with pytest.raises(InputError, match=words) as caught:
        converted(root)
    assert "3.xml" in str(caught.value)


@pytest.mark.parametrize("declared", ["GBK", "no-such-encoding"])
def test_an_encoding_that_cannot_be_read_is_named(root: Path, declared: str):
    path = root / "A" / "Annotations" / "1.xml"
    text = path.read_text().replace("dog", "狗")
    path.write_bytes(f'<?xml version="1.0" encoding="{declared}"?>{text}'.encode("gbk"))
    with pytest.raises(InputError, match=r"1\.xml is not XML that can be read") as caught:
        converted(root)
    assert "\n" not in str(caught.value)
    (root / "A" / "ImageSets" / "Main" / "trainval.txt").write_bytes("图像\n".encode("gbk"))
    with pytest.raises(InputError, match=r"the list of images .*trainval\.txt must be UTF-8"):
        converted(root)


def test_a_missing_list_or_annotation_is_named(root: Path):
    (root / "A" / "Annotations" / "2.xml").unlink()
    with pytest.raises(InputError, match=r"2\.xml is missing"):
        converted(root)
    (root / "A" / "ImageSets" / "Main" / "test.txt").unlink()
    with pytest.raises(InputError, match=r"test\.txt is missing"):
        converted(root)


def test_a_file_that_changes_is_converted_again_and_a_missing_folder_is_named(
    root: Path, here: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(voc.SETS, "voc", FORMAT)
    monkeypatch.setitem(sources.ARCHIVES, "voc", ())
    setting = parameters("voc", root=str(root))
    first = locate(setting).root
    assert locate(setting).root == first
    write(root, "B", "2", "", "trainval")
    assert locate(setting).root != first
    shutil.rmtree(root / "B" / "Annotations")
    with pytest.raises(InputError, match=r"B/Annotations/.*xml is missing"):
        locate(setting)


@pytest.mark.skipif(not BCCD.exists(), reason="a copy of BCCD is not there")
def test_bccd_has_the_boxes_that_its_files_say(tmp_path: Path):
    voc.convert(voc.SETS["bccd"], BCCD, tmp_path)
    boxes = []
    for split, images in (("train", 205), ("val", 87), ("test", 72)):
        file = json.loads((tmp_path / f"instances_{split}.json").read_text())
        assert len(file["images"]) == images
        boxes += file["annotations"]
    text = "".join(path.read_text() for path in (BCCD / "BCCD" / "Annotations").iterdir())
    for number, name in enumerate(voc.SETS["bccd"].classes, start=1):
        assert sum(box["category_id"] == number for box in boxes) == text.count(f"<name>{name}</name>")
