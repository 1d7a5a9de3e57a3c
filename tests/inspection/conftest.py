"""Data sets of drawn boxes, and real ones."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ghm.inspection.anchors import Boxes
from tests.conftest import ROOT

SHARED = ROOT.parent / "shared" / "data"  # real data sets beside the repository, where there is a copy


@pytest.fixture
def chess() -> Path:
    """The folder of the chess set."""
    if not (SHARED / "chess").is_dir():
        pytest.skip(f"the chess set is not in {SHARED}")
    return SHARED / "chess"


def drawn(
    number: int, side: float, *, spread: float = 0.4, seed: int = 0, image: tuple[int, int] = (640, 480)
) -> Boxes:
    """Boxes of about this side, anywhere in images of one size."""
    rng = np.random.default_rng(seed)
    size_N2 = np.exp(rng.normal(np.log(side), spread, (number, 2))).clip(1, image)
    corner_N2 = rng.uniform(0, 1, (number, 2)) * (np.array(image) - size_N2)
    return Boxes(np.concatenate([corner_N2, corner_N2 + size_N2], axis=1), np.tile(np.array(image, float), (number, 1)))


def write_set(
    root: Path, images: int, classes: Sequence[str], boxes: int = 3, size: tuple[int, int] = (96, 64), side: int = 20
) -> dict[str, Any]:
    """Write a COCO data set with train and val below `root`; returns what `params.yaml` needs for it."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        content: dict[str, Any] = {"images": [], "annotations": []}
        content["categories"] = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
        for number in range(1, images + 1):
            name = f"{number}.png"
            Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), np.uint8)).save(root / split / name)
            content["images"].append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
            for _ in range(boxes):
                left, top = (int(rng.integers(0, length - side)) for length in size)
                content["annotations"].append(
                    {"id": len(content["annotations"]) + 1, "image_id": number, "bbox": [left, top, side, side],
                     "category_id": 1 + len(content["annotations"]) % len(classes), "area": side**2, "iscrowd": 0}
                )  # fmt: skip
        (root / f"{split}.json").write_text(json.dumps(content))
    splits = {f"custom.{split}": {"annotations": f"{split}.json", "images": split} for split in ("train", "val")}
    return {"data.name": "custom", "data.root": str(root), "evaluate.split": "val", **splits}
