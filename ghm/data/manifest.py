"""What a data set is: checked, summed up in the log, and described in the manifest that DVC tracks."""

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ghm.data import annotations, content, validation
from ghm.data.annotations import Annotations
from ghm.errors import InputError
from ghm.words import count

SIZES = {"small": 32**2, "medium": 96**2, "large": np.inf}  # COCO's, by area in pixels
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Where a split lies below its data set's root."""

    annotations: str
    folder: str
    source: Path | None = None  # the user's file that the annotations were made from: messages name it


def describe(
    name: str, root: Path, splits: dict[str, Split], memory: Path, *, check_images: str, max_bad_images: int = 0
) -> dict[str, Any]:
    """Check the data set `name` at `root` and describe it: what DVC tracks in place of the images.

    Args:
        splits: `train` first.
        memory: folder of what is remembered of the content of files.
        check_images: none | sample | all.
        max_bad_images: how many images of a split may be missing or unreadable, and are left out.

    Returns:
        `name`, `classes` in the order of their labels and their `category_ids`, and for each split its images, boxes,
        boxes per class and size, images without boxes, warnings, unreadable images and checksums. Paths are relative to
        the root.

    Raises:
        InputError: a file is missing or malformed, the splits differ in their classes, or `validation` finds an error.
    """
    described, categories, classes, checksums = {}, [], [], {}
    for split_name, split in splits.items():
        path, folder = root / split.annotations, root / split.folder
        labels = annotations.read(path, Annotations)
        if not folder.is_dir():
            raise InputError(f"the image folder {folder} is missing")
        names = [image.file_name for image in labels.images]
        contents = content.contents(memory, folder, [name for name in names if not validation.leaves_folder(name)])
        findings = validation.Findings()
        purpose = "train on" if split_name == "train" else "measure"
        validation.check(labels, purpose, findings)
        bad = validation.check_images(labels, folder, contents, check_images, max_bad_images, findings)
        theirs = [entry.name for entry in labels.categories]  # mmdet numbers labels in this order
        files = {f"{split.folder}/{file}": entry.sha256 for file, entry in contents.items()}
        if split_name == "train":
            categories, classes, checksums = labels.categories, theirs, files
        else:
            validation.check_overlap(checksums, files, findings)
        if theirs != classes:
            others = ", ".join(map(repr, sorted({*theirs} ^ {*classes}))) or "their order differs"
            findings.errors.append(f"its classes must be those of train, in the same order: {others}")
        if findings.errors:
            raise InputError(f"{split.source or path}: {'; '.join(findings.errors)}")
        described[split_name] = {
            **_counts(labels),
            "annotations": split.annotations,
            "annotations_sha256": content.contents(memory, path.parent, [path.name], images=False)[path.name].sha256,
            "folder": split.folder,
            "files_sha256": content.combined(names, contents),
            "unreadable": sorted(bad),
            "warnings": {k: number for k, (number, _) in findings.warnings.items() if k not in validation.BY_DECODING},
        }
        boxes = described[split_name]["boxes_per_class"]
        classes_text = ", ".join(f"{label} {number:,}" for label, number in boxes.items())
        _log.info("%s %s: %s, boxes: %s", name, split_name, count(len(names), "image"), classes_text)
        for _, warning in findings.warnings.values():
            _log.warning("  warning: %s", warning)
    ids = [entry.id for entry in categories]
    return {"name": name, "classes": classes, "category_ids": ids, "splits": described}


def _counts(content: Annotations) -> dict[str, Any]:
    boxes = content.annotations
    per_category = Counter(box.category_id for box in boxes)
    per_size = np.histogram([box.area or 0 for box in boxes], bins=[-np.inf, *SIZES.values()])[0].tolist()
    return {
        "images": len(content.images),
        "images_without_boxes": len(content.images) - len({box.image_id for box in boxes}),
        "boxes": len(boxes),
        "boxes_per_class": {entry.name: per_category[entry.id] for entry in content.categories},
        "boxes_per_size": dict(zip(SIZES, per_size, strict=True)),
    }
