"""Stored detections -> COCO metrics, by pycocotools, and VOC's, by mmdet."""

import contextlib
import io
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.evaluation.functional import eval_map
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ghm.errors import InputError
from ghm.evaluation.matches import Array, Matches, joined, matches
from ghm.truth import Record, index, read

# Name -> place in COCOeval.stats.
SUMMARY = {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5, "AR100": 8}
AT_ONCE = 10  # classes
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judged:
    """What pycocotools says of one result."""

    stats: Array  # as COCOeval prints them
    precision_TRK: Array  # IoU, recall, class; all sizes, 100 detections an image; -1: the class has no box
    classes: list[str]  # by id
    matches: Matches
    truth: Record  # content of the annotations, as `ghm.truth.read` has it
    found: list[Record]  # the detections


def judge(annotations: Path, detections: Path) -> Judged:
    """Judge stored detections with pycocotools, a few classes at a time: all of COCO's at once take 5 GB.

    Raises:
        InputError: detections of images or classes that the annotations lack.
    """
    found = json.loads(detections.read_text(encoding="utf-8"))
    if not found:
        _log.warning("%s holds no detection: AP is 0", detections)
    content = read(annotations)
    truth = index(content)
    with contextlib.redirect_stdout(io.StringIO()):
        _require_known(found, truth, detections, annotations)
        evaluation = COCOeval(truth, _results(truth, found), "bbox")
        classes = evaluation.params.catIds
        precision, recall, matched = [], [], []
        for start in range(0, len(classes), AT_ONCE):
            evaluation.params.catIds = classes[start : start + AT_ONCE]
            evaluation.evaluate()
            evaluation.accumulate()
            precision.append(evaluation.eval["precision"])
            recall.append(evaluation.eval["recall"])
            matched.append(matches(evaluation))
    evaluation.eval["precision"] = np.concatenate(precision, axis=2)
    evaluation.eval["recall"] = np.concatenate(recall, axis=1)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        evaluation.summarize()
    _log.info("%d detections judged\n%s", len(found), printed.getvalue())
    names = [truth.cats[category]["name"] for category in classes]
    precision_TRK = evaluation.eval["precision"][:, :, :, 0, -1]
    return Judged(evaluation.stats, precision_TRK, names, joined(matched), content, found)


def _require_known(found: list[Record], truth: COCO, detections: Path, annotations: Path) -> None:
    for key, known in (("image_id", truth.imgs), ("category_id", truth.cats)):
        unknown = sorted({box[key] for box in found} - known.keys())
        if unknown:
            shown = ", ".join(map(str, unknown[:5])) + f" and {len(unknown) - 5} more" * (len(unknown) > 5)
            raise InputError(f"{detections} has detections with {key} {shown}, which {annotations} does not have")


def coco_metrics(judged: Judged) -> dict[str, float]:
    """`AP, AP50, AP75, APs, APm, APl, AR100`, fractions, not rounded: those that the split has a box for.

    0 without any detection.
    """
    metrics = {name: float(judged.stats[place]) for name, place in SUMMARY.items()}
    return {name: value for name, value in metrics.items() if value > -1}


def class_ap(judged: Judged) -> dict[str, float]:
    """AP of each class that the split has a box of, a fraction, not rounded."""
    defined_TRK = judged.precision_TRK > -1  # pycocotools marks what is not defined by -1
    return {
        name: float(judged.precision_TRK[:, :, column][defined_TRK[:, :, column]].mean())
        for column, name in enumerate(judged.classes)
        if defined_TRK[:, :, column].any()
    }


def voc_ap50(annotations: Path, detections: Path) -> float:
    """Judge stored detections as VOC 2007 does, by mmdet: AP at IoU 0.5 from 11 points of recall, mean of classes.

    A detection whose best match is a difficult object (`iscrowd: 1`, see `ghm.data.voc`) counts neither way.
    """
    content = read(annotations)
    labels = {entry["id"]: label for label, entry in enumerate(content["categories"])}
    truth = _by_image(content["images"], content["annotations"], labels, "iscrowd")
    found = _by_image(content["images"], json.loads(detections.read_text(encoding="utf-8")), labels, "score")
    result: Any = eval_map(
        [[rows[rows[:, 5] == label, :5] for label in labels.values()] for rows in found],
        [
            {
                "bboxes": rows[rows[:, 4] == 0, :4],
                "labels": rows[rows[:, 4] == 0, 5],
                "bboxes_ignore": rows[rows[:, 4] != 0, :4],
                "labels_ignore": rows[rows[:, 4] != 0, 5],
            }
            for rows in truth
        ],
        eval_mode="11points",
        logger="silent",
    )[0]
    return float(result)


def _by_image(images: list[Record], boxes: list[Record], labels: dict[int, int], key: str) -> list[np.ndarray]:
    """For each image the rows left, top, right, bottom, `key`, label: float32 [boxes, 6]."""
    rows: dict[int, list[tuple[float, ...]]] = {image["id"]: [] for image in images}
    for box in boxes:
        left, top, width, height = box["bbox"]
        rows[box["image_id"]].append((left, top, left + width, top + height, box[key], labels[box["category_id"]]))
    return [np.array(each, dtype=np.float32).reshape(-1, 6) for each in rows.values()]


def _results(truth: Any, found: list[Record]) -> COCO:
    """`loadRes` fails on an empty list; no detections are a result too."""
    if found:
        return truth.loadRes(found)
    empty: Any = COCO()
    empty.dataset = {**truth.dataset, "annotations": []}
    empty.createIndex()
    return empty
