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

    @property
    def metrics(self) -> dict[str, float]:
        """Those of SUMMARY that the split has a box for, fractions; 0 without any detection."""
        return {name: float(self.stats[index]) for name, index in SUMMARY.items() if self.stats[index] > -1}


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
            raise InputError(f"{path} has detections with {key} {unknown[0]}, which {annotations} does not have")
    with contextlib.redirect_stdout(io.StringIO()):
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
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        evaluation.summarize()
    _log.info("%d detections judged\n%s", len(detections), printed.getvalue())
    return Judged(
        stats=evaluation.stats,
        classes=[indexed.cats[category]["name"] for category in classes],
        matches=matches.together(evaluation.params.imgIds, classes, columns),
        truth=content,
        detections=detections,
    )


def voc_ap50(judged: Judged) -> float:
    """AP as VOC 2007 has it, by mmdet: at IoU 0.5 from 11 points of recall, mean of classes.

    A detection whose best match is a difficult object (`iscrowd: 1`, see `ghm.data.voc`) counts neither way.
    """
    labels = {category["id"]: label for label, category in enumerate(judged.truth["categories"])}
    rows: dict[int, tuple[list[Any], list[Any]]] = {image["id"]: ([], []) for image in judged.truth["images"]}
    for number, (entries, key) in enumerate(((judged.truth["annotations"], "iscrowd"), (judged.detections, "score"))):
        for entry in entries:
            left, top, width, height = entry["bbox"]
            corners = left, top, left + width, top + height
            rows[entry["image_id"]][number].append((*corners, entry[key], labels[entry["category_id"]]))
    boxes, found = [], []
    for image in rows.values():
        box_G6, found_D6 = (np.array(part, np.float32).reshape(-1, 6) for part in image)
        found.append([found_D6[found_D6[:, 5] == label, :5] for label in labels.values()])
        usual_G6, difficult_G6 = box_G6[box_G6[:, 4] == 0], box_G6[box_G6[:, 4] != 0]
        boxes.append({"bboxes": usual_G6[:, :4], "labels": usual_G6[:, 5]})
        boxes[-1] |= {"bboxes_ignore": difficult_G6[:, :4], "labels_ignore": difficult_G6[:, 5]}
    result: Any = eval_map(found, boxes, eval_mode="11points", logger="silent")[0]
    return float(result)
