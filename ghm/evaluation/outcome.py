"""The operating point, which is the score of the best F1; what is found from it on; AP by how full the images are.

Shapes: D detections as `Matches` has them, I images, K classes and, in the confusion matrix, background after them.
"""

from typing import Any

import numpy as np
from pycocotools import mask

from ghm.evaluation.judge import Judged
from ghm.evaluation.matches import Array, weighted
from ghm.truth import Record, counts

IOU = 0.5  # from here on a detection is of a box
FULLNESS = (1, 2, 5, 10, 20)  # boxes in an image, at which each group of images begins


def measure(judged: Judged, score: float) -> dict[str, Any]:
    """Say what is found from a score on: fractions, rounded to 4 digits.

    Returns:
        `score`; `precision`, `recall` and `f1`, of all classes together; `classes`, for each its `boxes`, `detections`,
        `hits` and, where they are defined, the same three; `confusion`, of `confusion`, as lists of the true class, the
        found one (None: background) and how often, where that is not 0; `density`, of `by_density`.
    """
    names, (score_D, counted_D) = [*judged.classes, None], _scores(judged)
    count_KK = confusion(judged, np.flatnonzero(counted_D & (score_D >= score)))
    boxes_K, found_K, hits_K = count_KK.sum(axis=1)[:-1], count_KK.sum(axis=0)[:-1], count_KK.diagonal()[:-1]
    of_class = zip(judged.classes, boxes_K.tolist(), found_K.tolist(), hits_K.tolist(), strict=True)
    return {
        "score": score,
        **figures(int(boxes_K.sum()), int(found_K.sum()), int(hits_K.sum())),
        "classes": {
            name: {"boxes": boxes, "detections": found, "hits": hits, **figures(boxes, found, hits)}
            for name, boxes, found, hits in of_class
        },
        "confusion": [[names[true], names[found], int(count_KK[true, found])] for true, found in np.argwhere(count_KK)],
        "density": by_density(judged),
    }


def best_score(judged: Judged) -> float:
    """The score from which on F1 is best, all classes together; of several the highest, and 1 where nothing is hit."""
    score_D, counted_D = _scores(judged)
    order_D = np.flatnonzero(counted_D)
    order_D = order_D[np.argsort(-score_D[order_D], kind="stable")]
    score_D, hits_D = score_D[order_D], np.cumsum(judged.matches.hit_TD[0, order_D])
    f1_D = 2 * hits_D / (np.arange(1, len(score_D) + 1) + len(judged.matches.box_class_G))
    f1_D[:-1][score_D[:-1] == score_D[1:]] = 0  # a score has all that tie in it
    return float(score_D[f1_D.argmax()]) if f1_D.any() else 1.0


def _scores(judged: Judged) -> tuple[Array, Array]:
    """The score of each detection, and whether it counts: it hits no crowd."""
    score_D = np.array([judged.detections[number]["score"] for number in judged.matches.detection_D])
    return score_D, ~judged.matches.ignored_TD[0]


def figures(boxes: int, found: int, hits: int) -> dict[str, float]:
    """Precision, recall and F1, those that are defined."""
    parts = {"precision": (hits, found), "recall": (hits, boxes), "f1": (2 * hits, boxes + found)}
    return {name: round(part / whole, 4) for name, (part, whole) in parts.items() if whole}


def confusion(judged: Judged, chosen_D: Array) -> Array:
    """How often each true class (rows) is found as each class (columns), [K + 1, K + 1], with background in the end.

    Hits are pycocotools's, so that the diagonal, by the sums of its rows and columns, gives recall and precision. Then
    each other detection takes, best score first, the box of any class that is left and that it overlaps most, by IOU or
    more. The rest is background: also a second detection of a box. Crowds and what hits them count neither way.

    Args:
        chosen_D: the detections that are taken, as indices.
    """
    matches = judged.matches
    classes = len(matches.class_id_K)
    count_KK = np.zeros((classes + 1, classes + 1), int)
    class_D = np.repeat(np.arange(classes), np.diff(matches.start_K))
    is_hit_D = matches.hit_TD[0, chosen_D]
    hit_D, rest_D = chosen_D[is_hit_D], chosen_D[~is_hit_D]
    np.add.at(count_KK, (class_D[hit_D], class_D[hit_D]), 1)
    left: dict[int, list[Record]] = {}
    taken = set(matches.box_D[hit_D].tolist())
    for box in judged.truth["annotations"]:
        if counts(box) and box["id"] not in taken:
            left.setdefault(box["image_id"], []).append(box)
    rows = [judged.detections[number] for number in matches.detection_D[rest_D]]
    for place in np.argsort([-row["score"] for row in rows], kind="stable"):
        row, true = rows[place], classes
        if boxes := left.get(row["image_id"]):
            overlap_G: Any = mask.iou([row["bbox"]], [box["bbox"] for box in boxes], [0] * len(boxes))  # type: ignore
            if overlap_G.max() >= IOU:
                true = np.searchsorted(matches.class_id_K, boxes.pop(int(overlap_G.argmax()))["category_id"])
        count_KK[true, class_D[rest_D[place]]] += 1
    for box in (box for boxes in left.values() for box in boxes):
        count_KK[np.searchsorted(matches.class_id_K, box["category_id"]), classes] += 1
    return count_KK


def by_density(judged: Judged) -> list[dict[str, Any]]:
    """AP on the images of each group of FULLNESS that has any: `least`, `most` (None: no limit), `images`, `AP`.

    It is what pycocotools gives on these images alone. Images without a box are in no group.
    """
    boxes_I = np.bincount(judged.matches.box_image_G, minlength=len(judged.matches.image_id_I))
    groups = [*zip(FULLNESS, [*(start - 1 for start in FULLNESS[1:]), None], strict=True)]
    weight_BI = np.array([(boxes_I >= least) & (boxes_I <= (most or np.inf)) for least, most in groups], np.int32)
    ap_B = weighted(judged.matches, weight_BI)[0]["AP"]
    return [
        {"least": least, "most": most, "images": int(weight_I.sum()), "AP": round(float(ap), 4)}
        for (least, most), weight_I, ap in zip(groups, weight_BI, ap_B, strict=True)
        if weight_I.any()
    ]
