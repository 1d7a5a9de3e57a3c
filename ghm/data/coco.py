"""COCO-format data sets on disk: where their files lie, what a manifest says of them, and the link to them."""

import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghm.errors import InputError
from ghm.files import digest


@dataclass(frozen=True)
class Split:
    """Where a split lies below its data set's root."""

    annotations: str
    folder: str


LAYOUTS: dict[str, dict[str, Split]] = {
    "digits": {name: Split(f"annotations/instances_{name}.json", name) for name in ("train", "val", "test")},
    "coco": {name: Split(f"annotations/instances_{name}2017.json", f"{name}2017") for name in ("train", "val")},
}


def read_annotations(path: Path) -> dict[str, Any]:
    """Read a COCO annotation file.

    Raises:
        InputError: it is missing, is no COCO JSON, holds no images or no categories, or a box names an image or a
            category that the file lacks.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"the annotation file {path} is missing") from None
    except ValueError as error:
        raise InputError(f"the annotation file {path} is not JSON: {error}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"the annotation file {path} must be COCO format with a list `{key}`")
    for key in ("images", "categories"):
        if not content[key]:
            raise InputError(f"the annotation file {path} holds no {key}: there is nothing to train on or to measure")
    for key, ids in (("image_id", content["images"]), ("category_id", content["categories"])):
        unknown = {box[key] for box in content["annotations"]} - {entry["id"] for entry in ids}
        if unknown:
            raise InputError(f"the annotation file {path} has boxes with an unknown {key}, for example {min(unknown)}")
    return content


def manifest(name: str, root: Path) -> dict[str, Any]:
    """Describe the data set `name` at `root`: what DVC tracks in place of the images.

    Returns:
        `name`, `classes` in the order of their labels, and for each split its images, boxes, boxes a class, images
        without boxes, files, bytes and checksums. Paths are relative to the root.

    Raises:
        InputError: a file is missing or malformed, or the splits differ in their classes.
    """
    splits, classes = {}, {}
    for split_name, split in LAYOUTS[name].items():
        annotations = read_annotations(root / split.annotations)
        classes[split_name] = _class_names(annotations)
        splits[split_name] = _describe(annotations, split, root)
    for split_name, names in classes.items():
        if names != classes["train"]:
            raise InputError(f"the classes of {name}'s split {split_name} differ from those of train: {names}")
    return {"name": name, "classes": classes["train"], "splits": splits}


def _class_names(annotations: dict[str, Any]) -> list[str]:
    # In the file's order: mmdet numbers labels by it, not by category id.
    return [entry["name"] for entry in annotations["categories"]]


def _describe(annotations: dict[str, Any], split: Split, root: Path) -> dict[str, Any]:
    sizes = _file_sizes(root / split.folder)
    missing = [image["file_name"] for image in annotations["images"] if image["file_name"] not in sizes]
    if missing:
        raise InputError(
            f"{len(missing)} images of {root / split.annotations} are not in {root / split.folder}, "
            f"for example {missing[0]}"
        )
    listing = "".join(f"{image['file_name']} {sizes[image['file_name']]}\n" for image in annotations["images"])
    names = {entry["id"]: entry["name"] for entry in annotations["categories"]}
    boxes = Counter(names[box["category_id"]] for box in annotations["annotations"])
    occupied = {box["image_id"] for box in annotations["annotations"]}
    return {
        "annotations": split.annotations,
        "annotations_bytes": (root / split.annotations).stat().st_size,
        "annotations_sha256": digest(root / split.annotations),
        "folder": split.folder,
        "files_bytes": sum(sizes[image["file_name"]] for image in annotations["images"]),
        "files_sha256": hashlib.sha256(listing.encode()).hexdigest(),
        "images": len(annotations["images"]),
        "images_without_boxes": len(annotations["images"]) - len(occupied),
        "boxes": len(annotations["annotations"]),
        "boxes_per_class": {name: boxes[name] for name in _class_names(annotations)},
    }


def _file_sizes(folder: Path) -> dict[str, int]:
    """Name -> bytes of the files of a folder, in one pass: COCO has 118,287 of them."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries}
    except OSError:
        raise InputError(f"the image folder {folder} is missing") from None


def link(target: Path, place: Path, replaceable: Path) -> None:
    """Make `place` a symlink to `target`.

    A link into `replaceable`, the folder where this program keeps what it made, is moved to the new target; a link to
    anywhere else and a real file or folder are somebody's and stay.

    Raises:
        InputError: something else is at `place`.
    """
    if place.is_symlink():
        current = place.readlink()
        if current == target:
            return
        if replaceable not in current.parents:
            raise InputError(f"{place} is a link to {current}, not to {target}: remove it or set data.root to it")
    elif place.exists():
        raise InputError(f"{place} is in the way of a link to {target}: move it and set data.root to where it is")
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    temporary.symlink_to(target)
    temporary.replace(place)
