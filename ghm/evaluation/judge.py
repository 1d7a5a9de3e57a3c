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
from pycocotools.cocoeval import COCOeval

from ghm import truth
from ghm.errors import InputError
from ghm.evaluation import matches
from ghm.evaluation.matches import Array, Matches
from ghm.truth import Record

SUMMARY = {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5, "AR100": 8}  # name -> index in COCOeval.stats
AT_ONCE = 10  # classes
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judged:
    """What pycocotools says of one result."""

    stats: Array  # as COCOeval prints them
    classes: list[str]  # by id
    matches: Matches
    truth: Record  # content of the annotations, as `ghm.truth.read` has it
    detections: list[Record]


def judge(annotations: Path, path: Path) -> Judged:
    """Judge stored detections with pycocotools, a few classes at a time: all of COCO's at once take 5 GB.

    Raises:
        InputError: detections of images or classes that the annotations lack.
    """
    detections = json.loads(path.read_text(encoding="utf-8"))
    if not detections:
        _log.warning("%s holds no detection: AP is 0", path)
    content = truth.read(annotations)
    indexed = truth.index(content)
    for key, known in (("image_id", indexed.imgs), ("category_id", indexed.cats)):
        unknown = sorted({box[key] for box in detections} - known.keys())
        if unknown:
            shown = ", ".join(map(str, unknown[:5])) + f" and {len(unknown) - 5} more" * (len(unknown) > 5)
            raise InputError(f"{path} has detections with {key} {shown}, which {annotations} does not have")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        evaluation = COCOeval(indexed, truth.results(indexed, detections), "bbox")
        classes = evaluation.params.catIds
        precision, recall, columns = [], [], []
        for start in range(0, len(classes), AT_ONCE):
            evaluation.params.catIds = classes[start : start + AT_ONCE]
            evaluation.evaluate()
            evaluation.accumulate()
            precision.append(evaluation.eval["precision"])
            recall.append(evaluation.eval["recall"])
            columns += matches.of_classes(evaluation)
        evaluation.eval["precision"] = np.concatenate(precision, axis=2)
        evaluation.eval["recall"] = np.concatenate(recall, axis=1)
        printed.truncate(0)
        printed.seek(0)
        evaluation.summarize()
    _log.info("%d detections judged\n%s", len(detections), printed.getvalue())
    return Judged(
        stats=evaluation.stats,
        classes=[indexed.cats[category]["name"] for category in classes],
        matches=matches.together(evaluation.params.imgIds, classes, columns),
        truth=content,
        detections=detections,
    )


def coco_metrics(judged: Judged) -> dict[str, float]:
    """`AP, AP50, AP75, APs, APm, APl, AR100`, fractions, not rounded: those that the split has a box for.

    0 without any detection.
    """
    return {name: float(judged.stats[index]) for name, index in SUMMARY.items() if judged.stats[index] > -1}


def voc_ap50(annotations: Path, detections: Path) -> float:
    """Judge stored detections as VOC 2007 does, by mmdet: AP at IoU 0.5 from 11 points of recall, mean of classes.

    A detection whose best match is a difficult object (`iscrowd: 1`, see `ghm.data.voc`) counts neither way.
    """
    content = truth.read(annotations)
    labels = {entry["id"]: label for label, entry in enumerate(content["categories"])}
    boxes = _by_image(content["images"], content["annotations"], labels, "iscrowd")
    found = _by_image(content["images"], json.loads(detections.read_text(encoding="utf-8")), labels, "score")

    def split(rows: Array, suffix: str) -> dict[str, Array]:
        return {f"bboxes{suffix}": rows[:, :4], f"labels{suffix}": rows[:, 5]}

    result: Any = eval_map(
        [[rows[rows[:, 5] == label, :5] for label in labels.values()] for rows in found],
        [split(rows[rows[:, 4] == 0], "") | split(rows[rows[:, 4] != 0], "_ignore") for rows in boxes],
        eval_mode="11points",
        logger="silent",
    )[0]
    return float(result)


def _by_image(images: list[Record], boxes: list[Record], labels: dict[int, int], key: str) -> list[Array]:
    """For each image the rows left, top, right, bottom, `key`, label: float32 [boxes, 6]."""
    rows: dict[int, list[tuple[float, ...]]] = {image["id"]: [] for image in images}
    for box in boxes:
        left, top, width, height = box["bbox"]
        rows[box["image_id"]].append((left, top, left + width, top + height, box[key], labels[box["category_id"]]))
    return [np.array(values, dtype=np.float32).reshape(-1, 6) for values in rows.values()]
