"""Laws of what exports get wrong: it is put right and said, or refused in a sentence with file, entry and remedy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ghm.errors import InputError
from tests.data.layouts.conftest import (
    BOXES,
    IMAGES,
    SIZE,
    coco,
    everything,
    picture,
    plain_coco,
    plain_voc,
    plain_yolo,
    prepared,
    said,
    voc,
    write,
)

Change = Callable[[dict[str, Any]], object]
FLOAT = "0 0.5 0.5 0.2 0.2"


# ---- YOLO ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("2 0.5 0.5 0.2 0.2", r"class 2 is none of 0 to 1, which classes\.txt names"),
        ("-1 0.5 0.5 0.2 0.2", r"class -1 is none of 0 to 1"),
        ("0 0,5 0,5 0,2 0,2", r"got '0 0,5 0,5 0,2 0,2': write numbers with a point"),
        ("cat 0.5 0.5 0.2 0.2", "`class x y width height` is expected, got 'cat 0.5 0.5 0.2 0.2'$"),
        ("0 20 15 8 6", "numbers are expected in shares of the image, 0 to 1, got '0 20 15 8 6'"),
        ("0 nan 0.5 0.2 0.2", "numbers are expected in shares of the image"),
        ("0 0.5 0.5 0.2", "5 numbers are expected, or a class and the corners of a polygon, got 4"),
        ("0 0.5 0.5 0.2 0.2 0.9", "got 6: a score after the box is not for training"),
    ],
)
def test_a_wrong_line_of_a_label_is_named_with_its_file_and_number(line: str, words: str, root: Path):
    plain_yolo(root)
    write(root / "labels/3.txt", f"{FLOAT}\n\n{line}\n")
    with pytest.raises(InputError, match=rf"own/labels/3\.txt, line 3: .*{words}"):
        prepared(root)


@pytest.mark.parametrize("text", [f"\ufeff{FLOAT}\r\n", f"0.0 {FLOAT[2:]}", f"\n  {FLOAT}\t\n\n", f"0 {FLOAT[2:]}\r"])
def test_marks_line_ends_blank_lines_and_numbers_as_fractions_do_not_matter(text: str, root: Path):
    plain_yolo(root)
    write(root / "labels/0.txt", text)
    prepared(root)
    assert everything()["images/0.jpg"] == [("cat", (16, 12, 8, 6))]


def test_oriented_boxes_and_polygons_become_the_boxes_around_them(root: Path, caplog: pytest.LogCaptureFixture):
    plain_yolo(root)
    write(root / "labels/0.txt", "1 0.5 0.2 0.7 0.5 0.5 0.8 0.3 0.5\n0 0.1 0.1 0.3 0.2 0.2 0.4\n")
    assert "2 lines with an oriented box or a polygon, read as the upright box around it" in said(root, caplog)
    assert everything()["images/0.jpg"] == [("dog", (12, 6, 16, 18)), ("cat", (4, 3, 8, 9))]


def test_of_a_line_with_keypoints_the_box_is_read(root: Path):
    plain_yolo(root)
    (root / "classes.txt").unlink()
    write(root / "data.yaml", "names: [cat, dog]\nkpt_shape: [2, 3]\n")
    write(root / "labels/0.txt", f"{FLOAT} 0.1 0.1 2 0.4 0.2 1\n")
    prepared(root)
    assert everything()["images/0.jpg"] == [("cat", (16, 12, 8, 6))]


def test_images_without_labels_count_as_empty_and_labels_without_images_are_said(
    root: Path, caplog: pytest.LogCaptureFixture
):
    plain_yolo(root)
    write(root / "labels/5.txt", "")
    (root / "labels/6.txt").unlink()
    (root / "images/7.jpg").unlink()
    text = said(root, caplog)
    assert (
        "1 image without a label file, which is YOLO's way to say that nothing is on it, for example images/6.jpg"
        in text
    )
    assert "1 label file without an image, passed over, for example labels/7.txt" in text
    assert everything()["images/5.jpg"] == everything()["images/6.jpg"] == [] and len(everything()) == IMAGES - 1


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("data.yaml", "names: [cat, dog]\nnc: 3\n", r"data\.yaml: `nc` is 3, and `names` has 2"),
        (
            "data.yaml",
            "names: cat\n",
            r"data\.yaml: `names` must be a list of names, or .*, got 'cat'",
        ),
        ("data.yaml", "names: {0: cat, a: dog}\n", "`names` must be a list of names, or a name for each"),
        ("data.yaml", "names: [cat, dog\n", r"data\.yaml, line 2: it is not valid YAML"),
        ("classes.txt", "cat\n\ndog\n", r"classes\.txt, line 2: it is empty, the name of a class is"),
        ("classes.txt", "cät\ndog\n".encode("latin-1"), r"classes\.txt is not UTF-8, perhaps Latin-1 or UTF-16"),
        ("old/obj.names", "dog\ncat\n", r"classes\.txt and old/obj\.names in .* name other classes: keep one"),
    ],
)
def test_names_of_classes_that_cannot_be_read_are_refused(name: str, text: str | bytes, words: str, root: Path):
    plain_yolo(root)
    write(root / name, text)
    with pytest.raises(InputError, match=words):
        prepared(root)


def test_labels_without_names_of_classes_are_refused(root: Path):
    plain_yolo(root)
    (root / "classes.txt").unlink()
    with pytest.raises(InputError, match=r"no names of classes: add data\.yaml with `names`, or classes\.txt"):
        prepared(root)


def test_a_validation_set_that_is_the_training_set_is_none(root: Path):
    plain_yolo(root)
    write(root / "data.yaml", "names: [cat, dog]\ntrain: images\nval: images\n")
    manifest = prepared(root, val_share=0.25, test_share=0.25)
    assert {name: split["images"] for name, split in manifest["splits"].items()} == {"train": 6, "val": 3, "test": 3}


# ---- VOC -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            voc(BOXES[0]).replace("<xmin>5", "<xmin>5,5"),
            "must hold a number as `bndbox/xmin`, got '5,5': write it with a point",
        ),
        (voc(BOXES[0]).replace("<name>cat</name>", ""), "lacks `name` in its <object>"),
        (voc(BOXES[0])[:-5], "is not XML that can be read"),
        ("<annotation>ä</annotation>".encode("latin-1"), "is not XML that can be read"),
    ],
)
def test_a_wrong_annotation_file_is_named_with_what_is_wrong_in_it(text: str | bytes, words: str, root: Path):
    plain_voc(root)
    write(root / "0.xml", text)
    with pytest.raises(InputError, match=rf"own/0\.xml {words}"):
        prepared(root)


def test_images_without_an_annotation_file_were_not_labelled(root: Path, caplog: pytest.LogCaptureFixture):
    plain_voc(root)
    picture(root / "unlabelled.jpg", 99)
    write(root / "lost.xml", voc(BOXES[0]))
    text = said(root, caplog)
    assert "1 image without a label file, left out, for example unlabelled.jpg" in text
    assert "1 label file without an image, passed over, for example lost.xml" in text
    assert len(everything()) == IMAGES


def test_a_size_that_is_lacking_is_read_from_the_image(root: Path):
    plain_voc(root)
    write(root / "0.xml", voc(BOXES[0], size=None))
    write(root / "1.xml", voc(BOXES[1], size=(0, 0)))
    assert sum(split["boxes"] for split in prepared(root)["splits"].values()) == 22


def test_a_class_stands_where_a_list_of_names_has_it_and_else_by_the_alphabet(root: Path):
    plain_voc(root)
    assert prepared(root)["classes"] == ["cat", "dog"]
    write(root / "labels.txt", "dog\nbird\ncat")
    assert prepared(root)["classes"] == ["dog", "bird", "cat"]
    write(root / "labels.txt", "dog\nbird")
    assert prepared(root)["classes"] == ["cat", "dog"]


# ---- COCO ------------------------------------------------------------------------------------------------------------
def changed(root: Path, *changes: Change) -> None:
    plain_coco(root)
    content = coco(range(IMAGES))
    for change in changes:
        change(content)
    write(root / "result.json", json.dumps(content))


def text_ids(content: dict[str, Any]) -> None:
    for image in content["images"]:
        image["id"] = f"image {image['id']}"
    for box in content["annotations"]:
        box["image_id"] = f"image {box['image_id']}"


def doubled(content: dict[str, Any]) -> None:
    text_ids(content)
    content["images"][1]["id"] = content["images"][2]["id"] = "image 1"
    content["images"][3]["file_name"] = "nowhere.jpg"


def shares(content: dict[str, Any]) -> None:
    for box in content["annotations"]:
        x, y, w, h = box["bbox"]
        box.update(bbox=[x / SIZE[0], y / SIZE[1], w / SIZE[0], h / SIZE[1]], area=0.1)


def corners(content: dict[str, Any]) -> None:
    for box in content["annotations"]:
        x, y, w, h = box["bbox"]
        box["bbox"] = [x + 14, y, x + w + 15, y + h]


def polygons(content: dict[str, Any]) -> None:
    for box in content["annotations"]:
        x, y, w, h = box.pop("bbox")
        box["segmentation"] = [[x, y, x + w, y], [x + w / 2, y + h, x, y + 1]]
        box["bbox"] = []


def at(**values: Any) -> Change:
    """Changes the third annotation."""
    return lambda content: content["annotations"][2].update(values)


@pytest.mark.parametrize("change", [text_ids, shares, polygons, lambda content: content["images"][0].pop("width")])
def test_what_can_be_put_right_gives_the_same_data_set(change: Change, root: Path):
    changed(root)
    prepared(root)
    expected = everything()
    changed(root, change)
    prepared(root)
    assert {
        name: [(label, pytest.approx(box)) for label, box in boxes] for name, boxes in expected.items()
    } == everything()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            doubled,
            r"1 image id stands in it .*, 'image 1' 3 times, .*; 1 of 12 images are not on disk, .*'now",
        ),
        (lambda content: content["categories"][0].update(id=2), "1 category id stands in it more than once, 2 2 times"),
        (
            corners,
            r"seem to be corners \[x1, y1, x2, y2\]; .* leave their image, .*export them as \[x, y, w",
        ),
        (at(image_id=99), r"annotations\[2\] has the image_id 99, which"),
        (
            lambda content: content["annotations"][2].update(bbox=[1, 2, 3]),
            r"annotations\[2\] has no `bbox` of four numbers",
        ),
        (
            at(bbox=None, segmentation={"counts": "ab", "size": [1, 2]}),
            r"annotations\[2\] has no `bbox` of four numbers and no polygon: export it with boxes",
        ),
        (
            lambda content: content["annotations"][2].update(bbox=["1", 2, 3, 4]),
            r"got `str` - at `\$\.annotations\[2\]\.bbox",
        ),
        (
            lambda content: content["images"][0].update(file_name="lost.jpg"),
            "1 image is not in the image folder, .* lost.jpg",
        ),
    ],
)
def test_what_cannot_be_put_right_is_named_with_file_and_entry(change: Change, words: str, root: Path):
    changed(root, change)
    with pytest.raises(InputError, match=words) as caught:
        prepared(root)
    assert str(root) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_every_encoding_of_unicode_is_recognised(encoding: str, root: Path):
    plain_coco(root)
    write(root / "result.json", json.dumps(coco(range(IMAGES))).encode(encoding))
    assert prepared(root)["classes"] == ["cat", "dog"]


def test_two_files_that_tell_no_split_are_asked_about(root: Path):
    plain_coco(root)
    write(root / "other.json", json.dumps(coco(range(IMAGES))))
    with pytest.raises(InputError, match=r"other\.json and result\.json in .*: it cannot be told .* custom\.train"):
        prepared(root)
