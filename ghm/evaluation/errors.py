"""What kinds of error cost how much AP50.

Source: Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020, arXiv 2008.08115,
sections 2.2 and 2.3: each false positive has one kind, and a kind costs what AP50 gains when an oracle mends it alone.

Shapes: D detections, G boxes.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
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
    """A false positive, its kind, and the box that it was meant for."""

    detection: int  # index in the file of detections
    kind: Kind
    box: int | None  # id


def analyse(truth: Record, detections: list[Record], matches: Matches) -> dict[str, float]:
    """How much AP50 each kind of error costs, fractions; and how many: `false_positives_<kind>`, `boxes_missed`.

    Where every box was missed, that costs all of AP50: 1. Where there is none, nothing costs anything.

    Args:
        truth: a COCO file's content, of `ghm.truth.read`.
        detections: in COCO's result format.
        matches: how pycocotools matched them.
    """
    boxes = {box["id"]: box for box in truth["annotations"] if counts(box)}
    errors = false_positives(boxes, detections, matches)
    score_D = np.array([box["score"] for box in detections])
    class_D = np.searchsorted(matches.class_id_K, [box["category_id"] for box in detections]).astype(int)
    counted = matches.detection_D[~matches.ignored_TD[0]]
    hit_D = np.zeros(len(detections), bool)
    hit_D[matches.detection_D[matches.hit_TD[0]]] = True
    base = _ap50(score_D, class_D, hit_D, counted, matches, matches.box_class_G)
    hit_boxes = set(matches.box_D[matches.hit_TD[0]].tolist())
    result: dict[str, float] = {}
    for kind in KINDS[:-1]:
        of_kind = [error for error in errors if error.kind == kind]
        mended = _mended(of_kind, hit_boxes, score_D)
        class_of, hit_of = class_D.copy(), hit_D.copy()
        for detection, box in mended.items():
            class_of[detection] = int(np.searchsorted(matches.class_id_K, boxes[box]["category_id"]))
            hit_of[detection] = True
        left_out = {error.detection for error in of_kind} - mended.keys()
        kept = counted[~np.isin(counted, list(left_out))]
        result[kind] = _ap50(score_D, class_of, hit_of, kept, matches, matches.box_class_G) - base
        result[f"false_positives_{kind}"] = float(len(of_kind))
    blamed = {error.box for error in errors if error.kind in ("classification", "localisation")}
    missed = [box["category_id"] for box in boxes.values() if box["id"] not in hit_boxes | blamed]
    rest_K = np.bincount(matches.box_class_G, minlength=len(matches.class_id_K))
    rest_K -= np.bincount(np.searchsorted(matches.class_id_K, missed).astype(int), minlength=len(rest_K))
    without = _ap50(score_D, class_D, hit_D, counted, matches, np.repeat(np.arange(len(rest_K)), rest_K))
    result["missed"] = (1.0 if boxes and not rest_K.any() else without) - base
    result["boxes_missed"] = float(len(missed))
    return result


def false_positives(boxes: dict[int, Record], detections: list[Record], matches: Matches) -> list[Error]:
    """The kind of every detection that counts and hits no box at IoU 0.5.

    Args:
        boxes: those that count, by id.
    """
    wrong_of, boxes_of = defaultdict(list), defaultdict(list)
    for number in matches.detection_D[~matches.hit_TD[0] & ~matches.ignored_TD[0]].tolist():
        wrong_of[detections[number]["image_id"]].append(number)
    for box in boxes.values():
        boxes_of[box["image_id"]].append(box)
    errors = []
    for image, numbers in wrong_of.items():
        wrong, there = [detections[number] for number in numbers], boxes_of[image]
        if not there:
            errors += [Error(number, "background", None) for number in numbers]
            continue
        overlap_DG = mask.iou([box["bbox"] for box in wrong], [box["bbox"] for box in there], [0] * len(there))
        same_DG = np.equal.outer([box["category_id"] for box in wrong], [box["category_id"] for box in there])
        right_DG, other_DG = np.where(same_DG, overlap_DG, 0), np.where(same_DG, 0, overlap_DG)
        for number, right_G, other_G in zip(numbers, right_DG, other_DG, strict=True):
            kind, box_G = _kind(right_G, other_G)
            errors.append(Error(number, kind, None if box_G is None else there[int(box_G.argmax())]["id"]))
    return errors


def _kind(right_G: Array, other_G: Array) -> tuple[Kind, Array | None]:
    """By the largest IoU with boxes of the detection's class and of the others; and where to look for the box."""
    right, other = right_G.max(), other_G.max()
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


def _ap50(score_D: Array, class_D: Array, hit_D: Array, kept: Array, matches: Matches, box_class_G: Array) -> float:
    """AP at IoU 0.5 of the detections `kept`, each a hit of its class or a false positive, as if all were one image."""
    order_D = kept[np.lexsort((-score_D[kept], class_D[kept]))]
    changed = replace(
        matches,
        image_id_I=np.zeros(1, np.int64),
        start_K=np.searchsorted(class_D[order_D], np.arange(len(matches.class_id_K) + 1)),
        image_D=np.zeros(len(order_D), np.int32),
        hit_TD=hit_D[order_D][None],
        ignored_TD=np.zeros((1, len(order_D)), bool),
        box_image_G=np.zeros(len(box_class_G), np.int32),
        box_class_G=box_class_G,
    )
    return float(weighted(changed, np.ones((1, 1), np.int32)).summary()["AP50"][0])
