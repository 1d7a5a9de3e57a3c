"""COCO annotation files, read quickly and into little memory: COCO's own has 860,001 boxes in 450 MB of text."""

import json
from pathlib import Path
from typing import TypeVar

import msgspec

from ghm.errors import InputError


class Image(msgspec.Struct, gc=False):
    id: int
    file_name: str
    width: int
    height: int


class Box(msgspec.Struct, gc=False):
    """An annotation; masks and keypoints are passed over."""

    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]  # x, y, width, height in pixels
    area: float
    iscrowd: int | bool = 0


class Category(msgspec.Struct, gc=False):
    id: int
    name: str


class Unlabelled(msgspec.Struct):
    """A file of images without labels, as that of COCO's test2017."""

    images: list[Image]
    categories: list[Category]


class Annotations(Unlabelled):
    annotations: list[Box]


Content = TypeVar("Content", Unlabelled, Annotations)


def read(path: Path, kind: type[Content]) -> Content:
    """Read a COCO annotation file.

    Raises:
        InputError: it is missing, is no JSON, lacks a key or holds a value of another type, has no images or no
            categories.
    """
    try:
        text = path.read_bytes()
    except OSError:
        raise InputError(f"the annotation file {path} is missing") from None
    try:
        content = msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        raise InputError(f"the annotation file {path} is not in COCO format: {error}") from None
    except msgspec.DecodeError:
        content = _read_lenient(path, text, kind)
    for key in ("images", "categories"):
        if not getattr(content, key):
            raise InputError(f"the annotation file {path} holds no {key}: there is nothing to train on or to measure")
    return content


def _read_lenient(path: Path, text: bytes, kind: type[Content]) -> Content:
    """Python's own reader knows NaN and Infinity, which are no JSON; what holds them is found by `validation`."""
    try:
        return msgspec.convert(json.loads(text), kind)
    except msgspec.ValidationError as error:
        raise InputError(f"the annotation file {path} is not in COCO format: {error}") from None
    except ValueError as error:
        raise InputError(f"the annotation file {path} is not JSON: {error}") from None
