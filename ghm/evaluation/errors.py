"""What kinds of error cost how much AP50.

Source: Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020, arXiv 2008.08115,
sections 2.2 and 2.3: each false positive has one kind, and a kind costs what AP50 gains when an oracle mends it alone.

Shapes: D detections, G boxes.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pycocotools import mask

from ghm.evaluation.matches import Array, Matches, weighted
from ghm.truth import Record, counts

Kind = Literal["classification", "localisation", "both", "duplicate", "background", "missed"]
KINDS: tuple[Kind, ...] = ("classification", "localisation", "both", "duplicate", "background", "missed")
FOREGROUND, BACKGROUND = 0.5, 0.1  # IoU: from here on a box is meant; below, nothing is


@dataclass(frozen=True)
class Error:
    """A false positive: its place in the file of detections, its kind, and the box that it was meant for."""

    detection: int
    kind: Kind
    box: int | None  # id


def analyse(truth: Record, detections: list[Record], found: Matches) -> dict[str, float]:
    """How much AP50 each kind of error costs, fractions; and how many: `false_positives_<kind>`, `boxes_missed`.

    Where every box was missed, that costs all of AP50: 1. Where there is none, nothing costs anything.

    Args:
        truth: a COCO file's content, of `ghm.truth.read`.
        detections: in COCO's result format.
        found: how pycocotools matched them.
    """
    boxes = {box["id"]: box for box in truth["annotations"] if counts(box)}
    errors = false_positives(boxes, detections, found)
    score_D = np.array([box["score"] for box in detections])
    class_D = np.searchsorted(found.class_id_K, [box["category_id"] for box in detections]).astype(int)
    counted = found.detection_D[~found.ignored_TD[0]]
    hit_D = np.zeros(len(detections), bool)
    hit_D[found.detection_D[found.hit_TD[0]]] = True
    base = _ap50(score_D, class_D, hit_D, counted, found.box_class_G, found)
    hit_boxes = set(found.box_D[found.hit_TD[0]].tolist())
    result: dict[str, float] = {}
    for kind in KINDS[:-1]:
        own = [error for error in errors if error.kind == kind]
        mended = _mended(own, hit_boxes, score_D)
        class_of, hit_of = class_D.copy(), hit_D.copy()
        for detection, box in mended.items():
            class_of[detection] = int(np.searchsorted(found.class_id_K, boxes[box]["category_id"]))
            hit_of[detection] = True
        left_out = {error.detection for error in own} - mended.keys()
        kept = counted[~np.isin(counted, list(left_out))]
        result[kind] = _ap50(score_D, class_of, hit_of, kept, found.box_class_G, found) - base
        result[f"false_positives_{kind}"] = float(len(own))
    blamed = {error.box for error in errors if error.kind in ("classification", "localisation")}
    seen = hit_boxes | blamed
    missed = [box["category_id"] for box in boxes.values() if box["id"] not in seen]
    rest_K = np.bincount(found.box_class_G, minlength=len(found.class_id_K))
    rest_K -= np.bincount(np.searchsorted(found.class_id_K, missed).astype(int), minlength=len(rest_K))
    without = _ap50(score_D, class_D, hit_D, counted, np.repeat(np.arange(len(rest_K)), rest_K), found)
    result["missed"] = (1.0 if boxes and not rest_K.any() else without) - base
    result["boxes_missed"] = float(len(missed))
    return result


def false_positives(boxes: dict[int, Record], detections: list[Record], found: Matches) -> list[Error]:
    """The kind of every detection that counts and hits no box at IoU 0.5."""
    wrong = found.detection_D[~found.hit_TD[0] & ~found.ignored_TD[0]].tolist()
    wrong_of, boxes_of = defaultdict(list), defaultdict(list)
    for place in wrong:
        wrong_of[detections[place]["image_id"]].append(place)
    for box in boxes.values():
        boxes_of[box["image_id"]].append(box)
    errors = []
    for image, places in wrong_of.items():
        errors += _of_image([(place, detections[place]) for place in places], boxes_of[image])
    return errors


def _of_image(wrong: list[tuple[int, Record]], boxes: list[Record]) -> list[Error]:
    if not boxes:
        return [Error(place, "background", None) for place, _ in wrong]
    overlap_DG = mask.iou([box["bbox"] for _, box in wrong], [box["bbox"] for box in boxes], [0] * len(boxes))
    same_DG = np.equal.outer([box["category_id"] for _, box in wrong], [box["category_id"] for box in boxes])
    right_DG, other_DG = np.where(same_DG, overlap_DG, 0), np.where(same_DG, 0, overlap_DG)
    errors = []
    for (place, _), right_G, other_G in zip(wrong, right_DG, other_DG, strict=True):
        kind, box_G = _kind(right_G.max(), other_G.max(), right_G, other_G)
        errors.append(Error(place, kind, None if box_G is None else boxes[int(box_G.argmax())]["id"]))
    return errors


def _kind(right: float, other: float, right_G: Array, other_G: Array) -> tuple[Kind, Array | None]:
    """By the largest IoU with boxes of the detection's class and of the others; and where to look for the box."""
    if BACKGROUND <= right < FOREGROUND:
        return "localisation", right_G
    if other >= FOREGROUND:
        return "classification", other_G
    if right >= FOREGROUND:
        return "duplicate", None
    return ("both", None) if other >= BACKGROUND else ("background", None)


def _mended(errors: list[Error], hit_boxes: set[int], score_D: Array) -> dict[int, int]:
    """Detection -> box that the oracle gives it: the best of each box that nothing hits."""
    mended: dict[int, int] = {}
    taken = set(hit_boxes)
    for error in sorted(errors, key=lambda error: -score_D[error.detection]):
        if error.box is not None and error.box not in taken:
            taken.add(error.box)
            mended[error.detection] = error.box
    return mended


def _ap50(score_D: Array, class_D: Array, hit_D: Array, kept: Array, box_class_G: Array, like: Matches) -> float:
    """AP at IoU 0.5 of the detections `kept`, each a hit of its class or a false positive."""
    order = kept[np.lexsort((-score_D[kept], class_D[kept]))]
    found = Matches(
        image_id_I=np.zeros(1, np.int64),
        class_id_K=like.class_id_K,
        start_K=np.searchsorted(class_D[order], np.arange(len(like.class_id_K) + 1)),
        image_D=np.zeros(len(order), np.int32),
        detection_D=order,
        box_D=np.zeros(len(order), np.int64),
        hit_TD=hit_D[order][None],
        ignored_TD=np.zeros((1, len(order)), bool),
        box_image_G=np.zeros(len(box_class_G), np.int32),
        box_class_G=box_class_G,
    )
    return float(weighted(found, np.ones((1, 1), np.int32)).summary()["AP50"][0])
