"""Which images the gallery shows, and which of their boxes were found, wrong or missed."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pycocotools import mask

from ghm.report.inputs import Record

MIN_IOU = 0.5

Kind = Literal["truth", "found", "wrong", "missed"]


@dataclass(frozen=True)
class Mark:
    """A box to draw: a COCO annotation or detection (`bbox`: [x, y, width, height] in pixels), and its kind."""

    box: Record
    kind: Kind
    truth: Record | None = None  # the true box that is found


def choose(images: list[Record], boxes: list[Record], number: int) -> list[Record]:
    """Return `number` images (or all, where there are fewer), evenly spaced by id among those with boxes.

    Images with crowd regions are left out: whether a detection in a crowd is right has no yes-or-no answer.
    """
    crowded = {box["image_id"] for box in boxes if box.get("iscrowd")}
    wanted = {box["image_id"] for box in boxes} - crowded
    usable = sorted((image for image in images if image["id"] in wanted), key=lambda image: image["id"])
    places = np.linspace(0, len(usable) - 1, min(number, len(usable)))
    return [usable[round(place)] for place in places]


def compare(truth: list[Record], found: list[Record]) -> list[Mark]:
    """Match the detections of an image to its true boxes: best score first, same class, highest IoU of the free ones.

    Returns:
        First what is missed, then the detections.
    """
    found = sorted(found, key=lambda box: -box["score"])
    overlap = mask.iou([box["bbox"] for box in found], [box["bbox"] for box in truth], [0] * len(truth))
    free = set(range(len(truth)))
    marks = []
    for row, detection in zip(np.reshape(overlap, (len(found), len(truth))), found, strict=True):
        same = [place for place in free if truth[place]["category_id"] == detection["category_id"]]
        best = max(same, key=lambda place: row[place], default=None)
        if best is not None and row[best] >= MIN_IOU:
            free.remove(best)
            marks.append(Mark(detection, "found", truth[best]))
        else:
            marks.append(Mark(detection, "wrong"))
    return [*(Mark(truth[place], "missed") for place in sorted(free)), *marks]
