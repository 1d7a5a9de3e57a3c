"""COCO annotation files, read quickly and into little memory: COCO's own has 860,001 boxes in 450 MB of text."""

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from ghm.errors import InputError

Id = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]  # what NumPy and pycocotools can hold
Rectangle = tuple[float, float, float, float]  # x, y, width, height in pixels


class Image(msgspec.Struct, gc=False):
    id: Id
    file_name: str
    width: int
    height: int


class Box(msgspec.Struct, gc=False):
    """An annotation; masks and keypoints are passed over. `custom` fills in what may be missing, others refuse it."""

    image_id: Id
    category_id: Id
    bbox: Rectangle
    id: Any = 0
    area: float | None = None
    iscrowd: int | bool | None = 0
    ignore: int | bool | None = 0  # mmdet does not train on such a box; pycocotools does not know the key


class Category(msgspec.Struct, gc=False):
    id: Id
    name: str


class Unlabelled(msgspec.Struct):
    """The images and categories of a file, for who needs no boxes."""

    images: list[Image]
    categories: list[Category]


class Annotations(Unlabelled):
    annotations: list[Box]


class ExportedImage(msgspec.Struct, gc=False):
    id: Id | str
    file_name: str
    width: float | None = None
    height: float | None = None


class ExportedBox(msgspec.Struct, gc=False):
    image_id: Id | str
    category_id: Id | str
    bbox: list[float] | None = None
    segmentation: msgspec.Raw = msgspec.Raw(b"null")
    area: float | None = None
    iscrowd: int | bool | None = 0
    ignore: int | bool | None = 0


class ExportedCategory(msgspec.Struct, gc=False):
    id: Id | str
    name: str
    supercategory: str | None = None


class Exported(msgspec.Struct):
    """A COCO file as labelling tools write it, for `layouts.coco` to put right."""

    images: list[ExportedImage]
    categories: list[ExportedCategory]
    annotations: list[ExportedBox]


Content = TypeVar("Content", Unlabelled, Annotations, Exported)


def read(path: Path, kind: type[Content], *, any_encoding: bool = False) -> Content:
    """Read a COCO annotation file: in UTF-8, all that mmdet and pycocotools read, or in any encoding of Unicode.

    Raises:
        InputError: it is missing, is in another encoding, is no JSON, lacks a key or holds a value of another type, has
            no images or no categories.
    """
    try:
        text = path.read_bytes()
        encoding = json.detect_encoding(text)
        if encoding != "utf-8" and not any_encoding:
            raise InputError(
                f"the annotation file {path} must be UTF-8, it is {encoding} (`data.name: custom` reads it)"
            )
        content = _decode(text if encoding == "utf-8" and text.isascii() else text.decode(encoding).encode(), kind)
    except OSError as error:
        raise InputError(f"the annotation file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(
            f"the annotation file {path} is neither UTF-8 nor UTF-16, perhaps GBK or Latin-1: save it as UTF-8"
        ) from None
    except msgspec.ValidationError as error:
        raise InputError(f"the annotation file {path} is not in COCO format: {error}") from None
    except ValueError as error:
        raise InputError(f"the annotation file {path} is not JSON: {error}") from None
    for key in ("images", "categories"):
        if not getattr(content, key):
            raise InputError(f"the annotation file {path} holds no {key}: there is nothing to train on or to measure")
    return content


def _decode(text: bytes, kind: type[Content]) -> Content:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        # Python's own reader knows NaN and Infinity, which are no JSON; what holds them is found by `validation`.
        return msgspec.convert(json.loads(text), kind)
