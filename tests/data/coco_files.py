"""A small data set in COCO format, to be spoilt by tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ghm.data import manifest
from ghm.data.content import Memory
from ghm.data.images import fault
from ghm.data.manifest import Split

SPLITS = ("train", "val")


def content(split: str = "train") -> dict[str, Any]:
    """Two images and three boxes; categories in an order that is not that of their ids."""
    return {
        "images": [{"id": n, "file_name": f"{split}{n}.jpg", "width": 40, "height": 30} for n in (1, 2)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 3, 3], "area": 9, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 3, "bbox": [5.5, 5, 20, 25], "area": 1100.0, "iscrowd": 0},
            {"id": 3, "image_id": 2, "category_id": 7, "bbox": [0, 0, 40, 30], "area": 1200, "segmentation": [[1, 2]]},
        ],
        "categories": [{"id": 7, "name": "seven", "supercategory": "odd"}, {"id": 3, "name": "three"}],
    }


def write(root: Path, split: str, file: dict[str, Any] | str, folder: str | None = None) -> None:
    """Write `root/annotations/<split>.json`, and images into `root/<folder>` which do not depend on `file`."""
    place = root / "annotations" / f"{split}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(file if isinstance(file, str) else json.dumps(file))
    for image in content(split)["images"]:
        path = root / (folder or split) / image["file_name"]
        path.parent.mkdir(exist_ok=True)
        noise = np.random.default_rng([image["id"], len(split)]).integers(0, 255, (30, 40, 3), np.uint8)
        Image.fromarray(noise).save(path)


def describe(
    name: str, root: Path, splits: dict[str, Split], check_images: str, max_bad_images: int = 0
) -> dict[str, Any]:
    """The manifest of the files below `root`, read for the first time."""
    memory = Memory(root / ".memory", fault)
    return manifest.describe(name, root, splits, memory, check_images=check_images, max_bad_images=max_bad_images)
