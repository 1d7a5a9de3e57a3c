"""What kinds of error cost how much AP50.

Source: Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020, arXiv 2008.08115,
sections 2.2 and 2.3: each false positive has one kind, and a kind costs what AP50 gains when an oracle mends it alone.

Shapes: D detections in the order of their file, G boxes that count in an image, N = 1 + boxes, by id.
"""

from collections import defaultdict
from dataclasses import replace

import numpy as np
from pycocotools import mask

from ghm.evaluation.matches import Array, Matches, weighted
from ghm.truth import Record, counts

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
FOREGROUND, BACKGROUND = 0.5, 0.1  # IoU: from here on a box is meant; below, nothing is


def analyse(truth: Record, detections: list[Record], matches: Matches) -> dict[str, float]:
    """How much AP50 each kind of error costs, fractions; and how many: `false_positives_<kind>`, `boxes_missed`.

    Where every box was missed, that costs all of AP50: 1. Where there is none, nothing costs anything.

    Args:
        truth: a COCO file's content, of `ghm.truth.read`.
        detections: in COCO's result format.
        matches: how pycocotools matched them.
    """
    boxes = truth["annotations"]
    score_D = np.array([row["score"] for row in detections])
    class_D, class_N = (
        np.searchsorted(matches.class_id_K, ids).astype(int)
        for ids in ([row["category_id"] for row in detections], [0, *(box["category_id"] for box in boxes)])
    )
    counts_N = np.array([False, *map(counts, boxes)])
    counted = matches.detection_D[~matches.ignored_TD[0]]
    box_D = np.zeros(len(detections), int)  # id of the box that it hits
    box_D[matches.detection_D] = np.where(matches.hit_TD[0], matches.box_D, 0)
    wrong = counted[box_D[counted] == 0]
    kind_D, meant_D = kinds(boxes, detections, wrong)
    base = _ap50(matches, score_D, class_D, box_D > 0, counted, class_N[counts_N])
    result: dict[str, float] = {}
    for kind in KINDS[:-1]:
        of_kind = wrong[kind_D[wrong] == kind]
        # The oracle gives each box that nothing hits to the best of those that were meant for it; the rest it removes.
        free = of_kind[(meant_D[of_kind] > 0) & ~np.isin(meant_D[of_kind], box_D)]
        free = free[np.argsort(-score_D[free], kind="stable")]
        mended = free[np.unique(meant_D[free], return_index=True)[1]]
        hit_D, class_of_D = box_D > 0, class_D.copy()
        hit_D[mended], class_of_D[mended] = True, class_N[meant_D[mended]]
        kept = counted[~np.isin(counted, np.setdiff1d(of_kind, mended))]
        result[kind] = _ap50(matches, score_D, class_of_D, hit_D, kept, class_N[counts_N]) - base
        result[f"false_positives_{kind}"] = float(len(of_kind))
    missed_N = counts_N.copy()
    missed_N[box_D] = missed_N[meant_D] = False
    rest = class_N[counts_N & ~missed_N]
    nothing_left = counts_N.any() and not len(rest)
    result["missed"] = (1.0 if nothing_left else _ap50(matches, score_D, class_D, box_D > 0, counted, rest)) - base
    result["boxes_missed"] = float(missed_N.sum())
    return result


def kinds(boxes: list[Record], detections: list[Record], wrong: Array) -> tuple[Array, Array]:
    """The kind of each of the false positives `wrong`, "" of others; and the id of the box that it was meant for or 0.

    By the largest IoU with boxes of the detection's class, and of the others: the first kind that fits.

    Args:
        boxes: numbered from 1.
    """
    kind_D, meant_D = np.full(len(detections), "", "U14"), np.zeros(len(detections), int)
    kind_D[wrong] = "background"
    wrong_of, boxes_of = defaultdict(list), defaultdict(list)
    for number in wrong.tolist():
        wrong_of[detections[number]["image_id"]].append(number)
    for box in filter(counts, boxes):
        boxes_of[box["image_id"]].append(box)
    for image in wrong_of.keys() & boxes_of.keys():
        numbers, there = wrong_of[image], boxes_of[image]
        found = [detections[number] for number in numbers]
        overlap_DG = mask.iou([row["bbox"] for row in found], [box["bbox"] for box in there], [0] * len(there))
        same_DG = np.equal.outer([row["category_id"] for row in found], [box["category_id"] for box in there])
        right_DG, other_DG = np.where(same_DG, overlap_DG, 0), np.where(same_DG, 0, overlap_DG)
        right_D, other_D = right_DG.max(axis=1), other_DG.max(axis=1)
        id_G = np.array([box["id"] for box in there])
        rules = {
            "localisation": ((right_D >= BACKGROUND) & (right_D < FOREGROUND), id_G[right_DG.argmax(axis=1)]),
            "classification": (other_D >= FOREGROUND, id_G[other_DG.argmax(axis=1)]),
            "duplicate": (right_D >= FOREGROUND, 0),
            "both": (other_D >= BACKGROUND, 0),
        }
        fits, meant = zip(*rules.values(), strict=True)
        kind_D[numbers] = np.select(fits, list(rules), "background")
        meant_D[numbers] = np.select(fits, meant, 0)
    return kind_D, meant_D


def _ap50(matches: Matches, score_D: Array, class_D: Array, hit_D: Array, kept: Array, box_class_G: Array) -> float:
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
    return float(weighted(changed, np.ones((1, 1), np.int32))[0]["AP50"][0])
