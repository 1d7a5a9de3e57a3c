"""The annotations of a split, as everything that judges detections reads them."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

Record = dict[str, Any]
AREA = (0, 1e5**2)  # of the boxes that count, COCOeval's "all"


def read(annotations: Path) -> Record:
    """The content of a COCO file, its boxes numbered 1, 2, ... in the order of the file, with `iscrowd` on each.

    The ids of boxes mean nothing and are not kept: COCOeval carries them in float64, where those beyond 2^53 run into
    each other, and takes the box with id 0 for none. `iscrowd` may be left out of a file, but COCOeval asks for it.
    """
    content = json.loads(annotations.read_bytes())
    for number, box in enumerate(content["annotations"], start=1):
        box["id"] = number
        box["iscrowd"] = box.get("iscrowd") or 0
    return content


def index(content: Record) -> COCO:
    """`content`, of `read`, as pycocotools wants it; prints nothing."""
    with contextlib.redirect_stdout(io.StringIO()):
        indexed: Any = COCO()
        indexed.dataset = content
        indexed.createIndex()
    return indexed


def results(truth: COCO, detections: list[Record]) -> COCO:
    """Detections in COCO's result format as pycocotools wants them; its own `loadRes` fails where there are none."""
    with contextlib.redirect_stdout(io.StringIO()):
        if detections:
            return truth.loadRes(detections)  # type: ignore[arg-type]
    return index({**truth.dataset, "annotations": []})


def counts(box: Record) -> bool:
    """Whether a box must be found, as COCOeval has it for objects of all sizes; the others count neither way."""
    return not box["iscrowd"] and AREA[0] <= box["area"] <= AREA[1]
