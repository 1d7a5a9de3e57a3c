"""Small data sets of one's own in the layouts of the field, all with the same images, classes and boxes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ghm import data
from ghm.params import Custom
from tests.data.conftest import SETTINGS, parameters

SIZE = (40, 30)
IMAGES = 12
CLASSES = ("cat", "dog")
# Image by image, the class and x, y, width, height in pixels; the last one is empty.
BOXES = [[(number % 2, (4, 6, 20, 12)), (1, (10, 3, 8, 24))] for number in range(IMAGES - 1)] + [[]]
Writer = Callable[[Path], None]


def picture(path: Path, seed: int, size: tuple[int, int] = SIZE, **options: Any) -> None:
    """An image that looks like no other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), np.uint8)
    Image.fromarray(colours).resize(size, Image.Resampling.NEAREST).save(path, **options)


def write(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)


def yolo(boxes: list[Any]) -> str:
    """The text of a YOLO label."""
    (width, height), lines = SIZE, []
    for label, (x, y, w, h) in boxes:
        lines.append(f"{label} {(x + w / 2) / width} {(y + h / 2) / height} {w / width} {h / height}\n")
    return "".join(lines)


def voc(boxes: list[Any], size: tuple[int, int] | None = SIZE, name: str = "elsewhere/x.jpg") -> str:
    """The text of a VOC annotation, whose file name is wrong."""
    size_text = "<size><width>{}</width><height>{}</height></size>".format(*size) if size else ""
    objects = "".join(
        f"<object><name>{CLASSES[label]}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
        f"<xmax>{x + w + 1}</xmax><ymax>{y + h + 1}</ymax></bndbox></object>"
        for label, (x, y, w, h) in boxes
    )
    return f"<annotation><filename>{name}</filename>{size_text}{objects}</annotation>"


def coco(numbers: range, name: str = "{}.jpg", first: int = 1) -> dict[str, Any]:
    """The content of a COCO file; ids begin with `first`."""
    boxes = [(number, *box) for number in numbers for box in BOXES[number]]
    width, height = SIZE
    return {
        "images": [
            {"id": number + first, "file_name": name.format(number), "width": width, "height": height}
            for number in numbers
        ],
        "categories": [{"id": index + first, "name": label} for index, label in enumerate(CLASSES)],
        "annotations": [
            {"id": index, "image_id": number + first, "category_id": label + first, "bbox": [*bbox]}
            for index, (number, label, bbox) in enumerate(boxes)
        ],
    }


def plain_yolo(root: Path) -> None:
    """`images/`, `labels/` and a list of names."""
    for number, boxes in enumerate(BOXES):
        picture(root / f"images/{number}.jpg", number)
        write(root / f"labels/{number}.txt", yolo(boxes))
    write(root / "classes.txt", "cat\r\ndog\r\n\r\n")


def plain_voc(root: Path) -> None:
    """XML files beside the images."""
    for number, boxes in enumerate(BOXES):
        picture(root / f"{number}.jpg", number)
        write(root / f"{number}.xml", voc(boxes))


def plain_coco(root: Path) -> None:
    """One file and the images in a folder."""
    for number in range(IMAGES):
        picture(root / f"images/{number}.jpg", number)
    write(root / "result.json", json.dumps(coco(range(IMAGES))))


def prepared(root: Path, **custom: Any) -> dict[str, Any]:
    """The manifest of the stage `data` for the folder, whose layout is recognised."""
    own = Custom(**{**SETTINGS, **custom}, train=None, val=None, test=None)
    setting = parameters("custom", custom=own, root=str(root))
    data.prepare(replace(setting, data=replace(setting.data)))
    data.ensure(setting)
    return data.read_manifest(setting)


def labelled(split: str) -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    """Image -> class and box of its objects, as everything downstream reads them."""
    content = json.loads((Path("data/custom/annotations") / f"instances_{split}.json").read_text("ascii"))
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    found: dict[int, list[Any]] = {image["id"]: [] for image in content["images"]}
    for box in content["annotations"]:
        found[box["image_id"]].append((names[box["category_id"]], tuple(box["bbox"])))
    return {image["file_name"]: found[image["id"]] for image in content["images"]}


def everything() -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    return labelled("train") | labelled("val") | labelled("test")


@pytest.fixture
def root(here: Path) -> Path:
    """The user's folder, empty."""
    (here / "own").mkdir()
    return here / "own"


def said(root: Path, caplog: pytest.LogCaptureFixture, **custom: Any) -> str:
    """What the stage says about a folder."""
    caplog.clear()
    with caplog.at_level("INFO", "ghm"):
        prepared(root, **custom)
    return "\n".join(caplog.messages)
