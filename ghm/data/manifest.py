"""What a data set is: checked, summed up in the log, and described in the manifest that DVC tracks."""

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ghm.data import annotations, validation
from ghm.data.annotations import Annotations, Box, Unlabelled
from ghm.data.content import Content, Memory, combined
from ghm.data.findings import BY_DECODING, Findings
from ghm.errors import InputError
from ghm.words import count

SIZES = {"small": 32**2, "medium": 96**2, "large": np.inf}  # COCO's, by area in pixels
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Where a split lies below its data set's root."""

    annotations: str
    folder: str
    labelled: bool = True
    source: Path | None = None  # the user's file that the annotations were made from: messages name it


def describe(
    name: str, root: Path, splits: dict[str, Split], memory: Memory, *, check_images: str, max_bad_images: int = 0
) -> dict[str, Any]:
    """Check the data set `name` at `root` and describe it: what DVC tracks in place of the images.

    Args:
        splits: `train` first.
        memory: of the contents of files.
        check_images: none | sample | all.
        max_bad_images: how many images of a split may be missing or unreadable, and are left out.

    Returns:
        `name`, `classes` in the order of their labels and their `category_ids`, and for each split its images, boxes,
        boxes per class and size, images without boxes, warnings, unreadable images, files, bytes and checksums. Paths
        are relative to the root.

    Raises:
        InputError: a file is missing or malformed, the splits differ in their classes, or `validation` finds an error.
    """
    try:
        return _describe_all(name, root, splits, memory, check_images, max_bad_images)
    except InputError as error:
        if name != "coco":
            raise
        raise InputError(f"{error} (files of your own belong to `data.name: custom`, which reads more)") from None


def _describe_all(
    name: str, root: Path, splits: dict[str, Split], memory: Memory, check_images: str, max_bad_images: int
) -> dict[str, Any]:
    described, categories, seen = {}, {}, {}
    for split_name, split in splits.items():
        content = annotations.read(root / split.annotations, Annotations if split.labelled else Unlabelled)
        categories[split_name] = content.categories  # mmdet numbers labels in this order
        found = _contents(memory, root / split.folder, content)
        findings = Findings()
        purpose = "train on" if split_name == "train" else "measure"
        bad = validation.check(content, root / split.folder, found, check_images, max_bad_images, purpose, findings)
        seen[split_name] = {f"{split.folder}/{file}": entry.sha256 for file, entry in found.items()}
        if split_name != "train":
            validation.check_overlap(seen["train"], seen[split_name], findings)
        findings.stop_at_errors(split.source or root / split.annotations)
        described[split_name] = {
            **_describe(content, findings, split, root, memory, found),
            "unreadable": sorted(bad),
        }
        _log_summary(f"{name} {split_name}", described[split_name], findings)
    classes = {split_name: [entry.name for entry in entries] for split_name, entries in categories.items()}
    for split_name, names in classes.items():
        if names != classes["train"]:
            raise InputError(_other_classes(name, split_name, names, classes["train"]))
    ids = [entry.id for entry in categories["train"]]
    return {"name": name, "classes": classes["train"], "category_ids": ids, "splits": described}


def _other_classes(name: str, split: str, theirs: list[str], ours: list[str]) -> str:
    """What differs between the classes of a split and those of train, and both lists."""
    differences = {"train": sorted({*ours} - {*theirs}), split: sorted({*theirs} - {*ours})}
    only = "; ".join(f"only {place} has {_quoted(names)}" for place, names in differences.items() if names)
    return (
        f"{name}'s splits train and {split} must have the same classes: {only or 'their order differs'}; "
        f"train: {_quoted(ours)}; {split}: {_quoted(theirs)}"
    )


def _quoted(names: list[str]) -> str:
    return ", ".join(map(repr, names))


def _describe(
    content: Unlabelled, findings: Findings, split: Split, root: Path, memory: Memory, found: dict[str, Content]
) -> dict[str, Any]:
    boxes = content.annotations if isinstance(content, Annotations) else []
    per_category = Counter(box.category_id for box in boxes)
    path = root / split.annotations
    own = memory.contents(path.parent, [path.name], images=False)[path.name]
    return {
        "annotations": split.annotations,
        "annotations_bytes": own.size,
        "annotations_sha256": own.sha256,
        "folder": split.folder,
        "files_bytes": sum(entry.size for entry in found.values()),
        "files_sha256": combined((image.file_name for image in content.images), found),
        "images": len(content.images),
        "images_without_boxes": len(content.images) - len({box.image_id for box in boxes}),
        "boxes": len(boxes),
        "boxes_per_class": {entry.name: per_category[entry.id] for entry in content.categories},
        "boxes_per_size": _per_size(boxes),
        "warnings": {kind: n for kind, n in findings.counts("warning").items() if kind not in BY_DECODING},
    }


def _per_size(boxes: list[Box]) -> dict[str, int]:
    counts = np.histogram([box.area for box in boxes], bins=[-np.inf, *SIZES.values()])[0]
    return dict(zip(SIZES, map(int, counts), strict=True))


def _contents(memory: Memory, folder: Path, content: Unlabelled) -> dict[str, Content]:
    """Name -> content of those images that are there.

    Raises:
        InputError: the folder is missing.
    """
    if not folder.is_dir():
        raise InputError(f"the image folder {folder} is missing")
    names = [image.file_name for image in content.images]
    return memory.contents(folder, [name for name in names if not validation.leaves_folder(name)])


def _log_summary(name: str, described: dict[str, Any], findings: Findings) -> None:
    per_size = ", ".join(f"{number:,} {size}" for size, number in described["boxes_per_size"].items())
    images, boxes = count(described["images"], "image"), count(described["boxes"], "box|boxes")
    _log.info(
        "%s: %s (%s without boxes), %s (%s)", name, images, f"{described['images_without_boxes']:,}", boxes, per_size
    )
    if described["boxes"]:
        _log.info("  %s", ", ".join(f"{label} {number:,}" for label, number in described["boxes_per_class"].items()))
    for kind in findings.counts("warning"):
        _log.warning("  warning: %s", findings.sentence(kind))
