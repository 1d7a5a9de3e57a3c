"""Laws of the layouts: whatever tool wrote a folder, its images, classes, boxes and splits are those that it means."""

import contextlib
import json
import logging
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghm import data
from ghm.data import layouts
from ghm.data.layouts.tree import Tree, split_of
from ghm.errors import InputError
from tests.data.conftest import parameters
from tests.data.layouts.conftest import (
    BOXES,
    CLASSES,
    IMAGES,
    Writer,
    coco,
    everything,
    labelled,
    picture,
    plain_coco,
    plain_voc,
    plain_yolo,
    prepared,
    voc,
    write,
    yolo,
)

PARTS = {"train": range(8), "valid": range(8, 10), "test": range(10, IMAGES)}


def ultralytics(root: Path) -> None:
    """`images/train`, `labels/train`, a dict of names, and paths of another machine."""
    for part, numbers in PARTS.items():
        for number in numbers:
            picture(root / f"images/{part}/{number}.jpg", number)
            if BOXES[number]:  # an image without objects has no label file
                write(root / f"labels/{part}/{number}.txt", yolo(BOXES[number]))
    paths = "path: /content/sets/own\ntrain: images/train\nval: images/valid\ntest: images/test\n"
    write(root / "data.yaml", f"{paths}names:\n  0: cat\n  1: dog\n")


def roboflow_yolo(root: Path) -> None:
    """`train/images`, `train/labels`, and paths that lead out of the folder."""
    for part, numbers in PARTS.items():
        for number in numbers:
            picture(root / f"{part}/images/{number}_jpg.rf.{number:032x}.jpg", number)
            write(root / f"{part}/labels/{number}_jpg.rf.{number:032x}.txt", yolo(BOXES[number]))
    text = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['cat', 'dog']\n"
    write(root / "data.yaml", text)


def cvat_yolo(root: Path) -> None:
    """CVAT's `YOLO 1.1`: `obj.names`, labels beside the images, and lists of them."""
    for part, folder in (("train", "obj_train_data"), ("valid", "obj_valid_data"), ("test", "obj_test_data")):
        for number in PARTS[part]:
            picture(root / f"{folder}/{number}.jpg", number)
            write(root / f"{folder}/{number}.txt", yolo(BOXES[number]))
        write(root / f"{part}.txt", "".join(f"data/{folder}/{number}.jpg\n" for number in PARTS[part]))
    write(root / "obj.names", "cat\ndog\n")
    write(root / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")


def label_studio_yolo(root: Path) -> None:
    plain_yolo(root)
    write(root / "notes.json", json.dumps({"categories": [{"id": 0, "name": "cat"}], "info": {"version": "1.0"}}))


def label_studio_coco(root: Path) -> None:
    """`result.json` with ids from 0 and paths of the server."""
    plain_coco(root)
    write(root / "result.json", json.dumps(coco(range(IMAGES), "../../label-studio/data/media/upload/7/{}.jpg", 0)))


def cvat_coco(root: Path) -> None:
    for number in range(IMAGES):
        picture(root / f"images/default/{number}.jpg", number)
    write(root / "annotations/instances_default.json", json.dumps(coco(range(IMAGES))))


def coco_2017(root: Path) -> None:
    """COCO's own names, with files of other tasks beside, in UTF-8 with a mark."""
    for part, split in (("train", "train"), ("valid", "val"), ("test", "test")):
        for number in PARTS[part]:
            picture(root / f"{split}2017/{number}.jpg", number)
        text = json.dumps(coco(PARTS[part])).encode("utf-8-sig")
        write(root / f"annotations/instances_{split}2017.json", text)
        write(root / f"annotations/person_keypoints_{split}2017.json", text)


def roboflow_coco(root: Path) -> None:
    """A parent class without boxes, number 0, and the same file names in all folders."""
    for part, numbers in PARTS.items():
        content = coco(numbers)
        content["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
        for entry in content["categories"][1:]:
            entry["supercategory"] = "animals"
        for image, number in zip(content["images"], numbers, strict=True):
            image["file_name"] = f"same{number - numbers.start}.jpg"
            picture(root / part / image["file_name"], number)
        write(root / part / "_annotations.coco.json", json.dumps(content))


def voc_2012(root: Path) -> None:
    """`Annotations`, `JPEGImages`, and lists in `ImageSets/Main`, one of which has extensions."""
    for number, boxes in enumerate(BOXES):
        picture(root / f"VOC2012/JPEGImages/{number}.jpg", number)
        write(root / f"VOC2012/Annotations/{number}.xml", voc(boxes))
    main = root / "VOC2012/ImageSets/Main"
    for name, numbers in (("train", PARTS["train"]), ("val", PARTS["valid"]), ("trainval", range(10))):
        write(main / f"{name}.txt", "".join(f"{number}\r\n" for number in numbers))
    write(main / "test.txt", "".join(f"{number}.jpg\n" for number in PARTS["test"]))
    write(main / "cat_train.txt", "".join(f"{number}  -1\n" for number in range(IMAGES)))  # of VOC's classification
    write(root / "VOC2012/ImageSets/Segmentation/val.txt", "0\n1\n")


def roboflow_voc(root: Path) -> None:
    for part, numbers in PARTS.items():
        for number in numbers:
            picture(root / f"{part}/{number}.png", number)
            write(root / f"{part}/{number}.xml", voc(BOXES[number]))


WITH_SPLITS = (ultralytics, roboflow_yolo, cvat_yolo, coco_2017, roboflow_coco, voc_2012, roboflow_voc)
WITHOUT = (plain_yolo, label_studio_yolo, plain_coco, label_studio_coco, cvat_coco, plain_voc)


@pytest.mark.parametrize("layout", [*WITH_SPLITS, *WITHOUT], ids=lambda layout: layout.__name__)
def test_every_layout_gives_the_same_classes_and_boxes(layout: Writer, root: Path):
    layout(root)
    manifest = prepared(root)
    assert manifest["classes"] == [*CLASSES]
    found = sorted(everything().values(), key=str)
    expected = [[(CLASSES[label], tuple(map(float, box))) for label, box in boxes] for boxes in BOXES]
    assert [
        [(label, pytest.approx(box, abs=0.01)) for label, box in boxes] for boxes in sorted(expected, key=str)
    ] == found


@pytest.mark.parametrize("layout", WITH_SPLITS, ids=lambda layout: layout.__name__)
def test_splits_that_are_there_stay_as_they_are(layout: Writer, root: Path):
    layout(root)
    manifest = prepared(root)
    assert {name: split["images"] for name, split in manifest["splits"].items()} == {"train": 8, "val": 2, "test": 2}
    assert "made_splits" not in manifest and labelled("val").keys() & labelled("test").keys() == set()


@pytest.mark.parametrize("layout", WITHOUT, ids=lambda layout: layout.__name__)
def test_splits_that_are_lacking_are_made_and_written_into_the_manifest(layout: Writer, root: Path):
    layout(root)
    manifest = prepared(root, val_share=0.25, test_share=0.25)
    assert {name: split["images"] for name, split in manifest["splits"].items()} == {"train": 6, "val": 3, "test": 3}
    made = manifest["made_splits"]["images"]
    assert {name: sorted(labelled(name)) for name in ("train", "val", "test")} == made


def test_a_split_that_is_lacking_is_taken_out_of_the_training_images(root: Path):
    for number, boxes in enumerate(BOXES):
        part = "test" if number >= 9 else "train"
        picture(root / f"images/{part}/{number}.jpg", number)
        write(root / f"labels/{part}/{number}.txt", yolo(boxes))
    write(root / "classes.txt", "cat\ndog")
    manifest = prepared(root, val_share=0.33)
    assert {name: split["images"] for name, split in manifest["splits"].items()} == {"train": 6, "val": 3, "test": 3}


def test_what_was_found_is_said_in_one_line(root: Path, caplog: pytest.LogCaptureFixture):
    plain_voc(root)
    with caplog.at_level(logging.INFO, "ghm"):
        prepared(root)
    assert f"{root}: 12 Pascal VOC files, 12 images, 2 classes; train 8, val 2 (made), test 2 (made)" in caplog.messages


def test_a_folder_with_labels_in_two_forms_is_asked_about_and_the_answer_taken(root: Path):
    plain_yolo(root)
    for number, boxes in enumerate(BOXES):
        write(root / f"Annotations/{number}.xml", voc(boxes))
    with pytest.raises(InputError, match=r"12 Pascal VOC .*0\.xml.*12 YOLO .*custom\.layout to voc or yolo"):
        prepared(root)
    for layout in ("voc", "yolo"):
        assert sum(split["boxes"] for split in prepared(root, layout=layout)["splits"].values()) == 22
    with pytest.raises(InputError, match=r"has no COCO file beside its 12 images: set it to the folder that holds"):
        prepared(root, layout="coco")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: [path.unlink() for path in root.rglob("*.txt")], "no COCO file .* beside its 12 images"),
        (lambda root: [path.unlink() for path in root.rglob("*.jpg")], "has no images: set it to the folder"),
        (
            lambda root: write(root / "train.txt", "0.jpg\nnone.jpg\n"),
            r"train\.txt: 1 line names no image .*line 2: 'none",
        ),
        (lambda root: write(root / "test.txt", "".join(f"{n}\n" for n in range(12))), "there is no image to train on"),
        (
            lambda root: write(root / "old/0.txt", "0 1 1 1 1"),
            r"labels/0\.txt and old/0\.txt .* both label images/0\.jpg",
        ),
        (lambda root: picture(root / "copies/0.jpg", 0), r"0\.txt in .* may mean copies/0\.jpg or images/0\.jpg"),
    ],
)
def test_what_cannot_be_read_is_one_sentence_that_names_files_and_a_remedy(spoil: Writer, words: str, root: Path):
    plain_yolo(root)
    spoil(root)
    with pytest.raises(InputError, match=words) as caught:
        prepared(root)
    assert "\n" not in str(caught.value) and not Path("data/custom.json").exists()


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(("train2017", "train"), ("Valid", "val"), ("test_images", "test"), ("obj_train_data", "train")),
        *(
            ("train_yolo", "train"),
            ("trainval", "trainval"),
            ("trains", None),
            ("contest", None),
            ("aeroplane_train", None),
        ),
    ],
)
def test_a_split_is_told_by_whole_words_alone(name: str, split: str | None):
    assert split_of(name) == split


def test_an_archive_is_unpacked_and_recognised(root: Path):
    roboflow_yolo(root / "Export v3")
    archive = shutil.make_archive(str(root.parent / "export"), "zip", root)
    setting = parameters("custom", source=archive)
    data.prepare(setting)
    assert data.read_manifest(setting)["splits"]["train"]["images"] == 8


def test_links_that_go_round_in_a_circle_are_walked_once(root: Path):
    plain_voc(root)
    (root / "again").symlink_to(root)
    assert len(Tree(root).images) == IMAGES


@pytest.mark.parametrize("layout", [ultralytics, cvat_yolo, roboflow_coco, voc_2012], ids=lambda each: each.__name__)
@given(seed=st.integers(0, 2**32))
def test_a_folder_whose_files_are_spoilt_anywhere_is_read_or_refused_with_a_sentence(layout: Writer, seed: int):
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        layout(root)
        files = [path for path in sorted(root.rglob("*")) if path.is_file()]
        for path in chance.sample(files, 5):
            text = bytearray(path.read_bytes())
            where = chance.randrange(len(text) + 1)
            kind = chance.choice(["cut", "change", "insert", "remove"])
            if kind == "remove":
                path.unlink()
                continue
            if kind == "cut":
                del text[where:]
            elif kind == "insert":
                text[where:where] = chance.choice([b",", b"\xe9", b"\r\n", b"-1 ", b'"', b"nan", b"{}", b"9" * 400])
            elif text:
                text[where - 1] = chance.randrange(256)
            path.write_bytes(text)
        with contextlib.suppress(InputError):
            layouts.read(Tree(root), None)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("path: sets/own\ntrain: day\nval: night\n", {"train": 6, "val": 4, "test": 2}),
        ("train: /home/me/own/day\nval: D:\\own\\night\\\n", {"train": 6, "val": 4, "test": 2}),
        ("train: [day, night]\nval: ../gone/day\n", {"train": 7, "val": 3, "test": 2}),
        ("train: day.txt\nval: night.txt\n", {"train": 2, "val": 1, "test": 1}),
        ("train: gone\n", {"train": 7, "val": 3, "test": 2}),
    ],
)
def test_splits_are_those_that_data_yaml_names(settings: str, expected: dict[str, int], root: Path):
    for number, boxes in enumerate(BOXES):
        part = "day" if number < 8 else "night"
        picture(root / f"own/{part}/{number}.jpg", number)
        write(root / f"own/{part}/{number}.txt", yolo(boxes))
    write(root / "data.yaml", f"names: [cat, dog]\n{settings}")
    write(root / "day.txt", "own/day/0.jpg\nown/day/1.jpg\nown/day/2.jpg\n")
    write(root / "night.txt", "own/night/8.jpg\n")
    manifest = prepared(root, val_share=0.25, test_share=0.2)
    assert {name: split["images"] for name, split in manifest["splits"].items()} == expected
