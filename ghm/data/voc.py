"""Data sets in the format of Pascal VOC, rewritten as COCO files: VOC 2007 + 2012, and BCCD.

VOC names the first and the last pixel, counted from 1, both inside; COCO's box begins at the outer corner of the first
pixel, so x = xmin - 1 and width = xmax - xmin + 1. Objects marked `difficult` are kept with `iscrowd: 1`: training
leaves them out, and the evaluation counts a detection of one neither way. That is VOC's rule, but that pycocotools
measures the overlap with a crowd box in shares of the detection. Source: Everingham et al., VOC 2007.
"""

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from tqdm import tqdm

from ghm import files
from ghm.errors import InputError


@dataclass(frozen=True)
class Voc:
    """The classes in the order of their labels, and for each split the folders and the lists in `ImageSets/Main`."""

    classes: tuple[str, ...]
    splits: dict[str, tuple[tuple[str, str], ...]]


SETS = {
    "voc": Voc(
        classes=(
            *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
            *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
            "tvmonitor",
        ),
        splits={
            "train": (("VOC2007", "trainval"), ("VOC2012", "trainval")),
            "test": (("VOC2007", "test"),),
        },
    ),
    "bccd": Voc(
        classes=("RBC", "WBC", "Platelets"),
        splits={name: (("BCCD", name),) for name in ("train", "val", "test")},
    ),
}


def convert(voc: Voc, root: Path, out: Path) -> None:
    """Write `out/instances_<split>.json` for the VOC folders below `root`.

    Raises:
        InputError: a file is missing or malformed, or names a class that the data set does not have.
    """
    for split, parts in voc.splits.items():
        names = [(folder, name) for folder, images in parts for name in _names(root, folder, images)]
        progress = tqdm(names, desc=f"reading {split}", unit="file", mininterval=2, leave=False)
        files.write_json(out / f"instances_{split}.json", _content(voc.classes, root, progress))


def _names(root: Path, folder: str, images: str) -> list[str]:
    path = root / folder / "ImageSets" / "Main" / f"{images}.txt"
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError:
        raise InputError(f"the list of images {path} is missing") from None
    except UnicodeDecodeError:
        raise InputError(f"the list of images {path} must be UTF-8") from None


def _content(classes: tuple[str, ...], root: Path, names: Iterable[tuple[str, str]]) -> dict[str, Any]:
    labels = {name: number for number, name in enumerate(classes, start=1)}
    images, boxes = [], []
    for number, (folder, name) in enumerate(names, start=1):
        path = root / folder / "Annotations" / f"{name}.xml"
        labelled = read(path)
        image = PurePath(folder, "JPEGImages", labelled.file_name).as_posix()
        images.append({"id": number, "file_name": image, "width": labelled.width, "height": labelled.height})
        for label, (left, top, right, bottom), is_difficult in labelled.objects:
            if label not in labels:
                raise InputError(f"{path} has an object of class {label!r}, which is none of {', '.join(labels)}")
            width, height = right - left + 1, bottom - top + 1
            box = {
                "id": len(boxes) + 1,
                "image_id": number,
                "category_id": labels[label],
                "bbox": (left - 1, top - 1, width, height),
                "area": width * height,
                "iscrowd": int(is_difficult),
            }
            boxes.append(box)
    categories = [{"id": number, "name": name} for name, number in labels.items()]
    return {"images": images, "annotations": boxes, "categories": categories}


@dataclass(frozen=True)
class Labelled:
    """What an annotation file says of its image."""

    file_name: str
    width: int
    height: int
    objects: list[tuple[str, tuple[float, ...], bool]]  # class, xmin, ymin, xmax, ymax, and whether it is difficult


def read(path: Path, *, needs_image: bool = True) -> Labelled:
    """Read an annotation file.

    Args:
        needs_image: whether the name and the size of the image have to be there; else "" and 0 stand for them.

    Raises:
        InputError: it is missing or malformed.
    """
    try:
        tree = ET.parse(path).getroot()
    except OSError:
        raise InputError(f"the annotation file {path} is missing") from None
    except (ET.ParseError, ValueError, LookupError) as error:  # of an encoding that the parser does not know
        raise InputError(f"the annotation file {path} is not XML that can be read: {error}") from None
    if needs_image or tree.find("size") is not None:
        width, height = (int(_number(tree, f"size/{key}", path)) for key in ("width", "height"))
    else:
        width = height = 0
    name = _text(tree, "filename", path) if needs_image else ""
    objects = []
    for entry in tree.iter("object"):
        corners = tuple(_number(entry, f"bndbox/{key}", path) for key in ("xmin", "ymin", "xmax", "ymax"))
        is_difficult = (entry.findtext("difficult") or "0").strip() == "1"
        objects.append((_text(entry, "name", path), corners, is_difficult))
    return Labelled(name, width, height, objects)


def _text(entry: ET.Element, key: str, path: Path) -> str:
    text = (entry.findtext(key) or "").strip()
    if not text:
        raise InputError(f"{path} lacks `{key}` in its <{entry.tag}>")
    return text


def _number(entry: ET.Element, key: str, path: Path) -> float:
    text = _text(entry, key, path)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{path} must hold a number as `{key}`, got {text!r}")
    return number
