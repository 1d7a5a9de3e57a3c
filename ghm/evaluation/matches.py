"""Which detections hit a box, as pycocotools matched them once; AP from that under any weights of the images.

Shapes: B weightings, I images, K classes, D detections (class after class, in each by falling score), G boxes that
count, T IoU thresholds, R recall thresholds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ghm.runs import MATCHES

Array = NDArray[Any]
RECALLS_R = np.linspace(0.0, 1.0, 101)
CURVE_IOUS = {0.5: 0, 0.75: 5}  # those whose curves are kept -> index in T
CELLS = 4_000_000  # numbers of an array at once: 32 MB


@dataclass(frozen=True)
class Matches:
    """One result on one split: objects of all sizes, 100 detections per image and class."""

    image_id_I: Array
    class_id_K: Array
    start_K: Array  # where the detections of each class begin, and the end: [K + 1]
    image_D: Array  # index in I
    detection_D: Array  # index in the file of detections
    box_D: Array  # id of the box that it hits at IoU 0.5, 0 where it hits none
    hit_TD: Array  # bool: it hits a box that no better one hit
    ignored_TD: Array  # bool: it counts neither way, for it hits a crowd
    box_image_G: Array
    box_class_G: Array

    def save(self, detections: int, folder: Path) -> None:
        """Write `matches.npz` beside a file of so many detections."""
        box_D = np.zeros(detections, np.int32)
        box_D[self.detection_D] = np.where(self.ignored_TD[0], -1, self.box_D * self.hit_TD[0])
        np.savez_compressed(folder / MATCHES, box_D=box_D)


def read(folder: Path) -> Array:
    """For each detection in `folder`, in the order of its file, the id of the box that it hits at IoU 0.5, int32 [D].

    0: it hits none; -1: it counts neither way. Ids are those of `ghm.truth.read`. Matching is greedy, so the matches of
    the best n detections are these, cut off.
    """
    with np.load(folder / MATCHES, allow_pickle=False) as content:
        return content["box_D"]


def of_classes(evaluation: Any) -> list[dict[str, Array]]:
    """The columns of each class of a `COCOeval` that has evaluated detections numbered from 1, as `loadRes` does."""
    settings = evaluation.params
    index_of = {image: index for index, image in enumerate(settings.imgIds)}
    columns = []
    for number in range(len(settings.catIds)):
        first = number * len(settings.areaRng) * len(index_of)  # the first area range is that of all sizes
        entries = [entry for entry in evaluation.evalImgs[first : first + len(index_of)] if entry]
        order_D = np.argsort(-np.concatenate([[], *(entry["dtScores"] for entry in entries)]), kind="mergesort")
        number_D = np.concatenate([[], *(entry["dtIds"] for entry in entries)])[order_D].astype(np.int32)
        match_TD, ignored_TD = (
            np.concatenate([np.empty((len(settings.iouThrs), 0)), *(entry[name] for entry in entries)], axis=1)
            for name in ("dtMatches", "dtIgnore")
        )
        match_TD, ignored_TD = match_TD[:, order_D], ignored_TD[:, order_D] != 0
        image_E = np.array([index_of[entry["image_id"]] for entry in entries], np.int32)
        columns.append(
            {
                "image_D": np.repeat(image_E, [len(entry["dtIds"]) for entry in entries])[order_D],
                "detection_D": number_D - 1,
                "box_D": match_TD[0].astype(np.int64),
                "hit_TD": (match_TD != 0) & ~ignored_TD,
                "ignored_TD": ignored_TD,
                "box_image_G": np.repeat(image_E, [np.count_nonzero(entry["gtIgnore"] == 0) for entry in entries]),
            }
        )
    return columns


def together(image_ids: Sequence[int], class_ids: Sequence[int], columns: Sequence[dict[str, Array]]) -> Matches:
    """One result from the columns of its classes."""
    joined = {name: np.concatenate([column[name] for column in columns], axis=-1) for name in columns[0]}
    boxes = [len(column["box_image_G"]) for column in columns]
    return Matches(
        image_id_I=np.array(image_ids, np.int64),
        class_id_K=np.array(class_ids, np.int64),
        start_K=np.cumsum([0, *(len(column["image_D"]) for column in columns)]),
        box_class_G=np.repeat(np.arange(len(columns), dtype=np.int32), boxes),
        **joined,
    )


def weighted(matches: Matches, weight_BI: Array, classes: Sequence[str] = ()) -> tuple[dict[str, Array], Array]:
    """AP with each image counted as often as its weight says, for every row of weights.

    A row of ones gives what pycocotools gives. Whole weights give what pycocotools gives on a data set that holds each
    image so many times, but for detections of one image that tie in score: copies of one go before the next.

    Args:
        weight_BI: 0 or more.
        classes: the names of those of `matches`.

    Returns:
        `AP`, `AP50`, `AP75` and, for each name of a class, `AP_<class>`, [B]; and precision at each recall, mean over
        classes, at each of CURVE_IOUS, [B, U, R]. -1 where no class has a box, as pycocotools.
    """
    ap_BKT = np.full((len(weight_BI), len(matches.class_id_K), len(matches.hit_TD)), np.nan)
    sum_BUR = np.zeros((len(weight_BI), len(CURVE_IOUS), len(RECALLS_R)))
    count_B = np.zeros(len(weight_BI))
    for number in range(len(matches.class_id_K)):
        part = slice(*matches.start_K[number : number + 2])
        image_D = matches.image_D[part]
        box_image_G = matches.box_image_G[matches.box_class_G == number]
        if not len(box_image_G):
            continue
        hits = [np.flatnonzero(hit_D) for hit_D in matches.hit_TD[:, part]]
        ignored = [np.flatnonzero(ignored_D) for ignored_D in matches.ignored_TD[:, part]]
        step = max(1, CELLS // max(1, len(image_D)))
        for rows in (slice(start, start + step) for start in range(0, len(weight_BI), step)):
            boxes_B = np.take(weight_BI[rows], box_image_G, axis=1).sum(axis=1, dtype=np.float64)
            weight_BD = np.take(weight_BI[rows], image_D, axis=1)
            total_BD = np.cumsum(weight_BD, axis=1, dtype=np.float64)
            for level, (hit_H, ignored_H) in enumerate(zip(hits, ignored, strict=True)):
                precision_BR = _precision(weight_BD, total_BD, hit_H, ignored_H, boxes_B)
                ap_BKT[rows, number, level] = np.where(boxes_B > 0, precision_BR.mean(axis=1), np.nan)
                for curve, wanted in enumerate(CURVE_IOUS.values()):
                    if level == wanted:
                        sum_BUR[rows, curve] += precision_BR
            count_B[rows] += boxes_B > 0
    figures = {"AP": ap_BKT, "AP50": ap_BKT[:, :, :1], "AP75": ap_BKT[:, :, 5:6]}
    figures |= {f"AP_{name}": ap_BKT[:, number] for number, name in enumerate(classes)}
    means = {
        name: np.ma.masked_invalid(ap.reshape(len(ap), -1)).mean(axis=1).filled(-1.0) for name, ap in figures.items()
    }
    count_B11 = count_B[:, None, None]
    return means, np.where(count_B11 > 0, sum_BUR / np.maximum(count_B11, 1), -1.0)


def _precision(weight_BD: Array, total_BD: Array, hit_H: Array, ignored_H: Array, boxes_B: Array) -> Array:
    """The best precision at each recall threshold or beyond, 0 where it is not reached, [B, R].

    Only where a detection hits does recall grow, and only there has precision its peaks.
    """
    rows = len(weight_BD)
    if not len(hit_H):
        return np.zeros((rows, len(RECALLS_R)))
    hit_BH = np.cumsum(np.take(weight_BD, hit_H, axis=1), axis=1, dtype=np.float64)
    counted_BH = np.take(total_BD, hit_H, axis=1)
    if len(ignored_H):
        passed_BH = np.cumsum(np.take(weight_BD, ignored_H, axis=1), axis=1, dtype=np.float64)
        passed_BH = np.concatenate([np.zeros((rows, 1)), passed_BH], axis=1)
        counted_BH -= np.take(passed_BH, np.searchsorted(ignored_H, hit_H), axis=1)
    precision_BH = hit_BH / (counted_BH + np.spacing(1))
    best_BH = np.maximum.accumulate(precision_BH[:, ::-1], axis=1)[:, ::-1]
    recall_BH = hit_BH / np.maximum(boxes_B, np.spacing(1))[:, None]
    wanted_BR = torch.from_numpy(np.broadcast_to(RECALLS_R, (rows, len(RECALLS_R))).copy())
    index_BR = torch.searchsorted(torch.from_numpy(recall_BH), wanted_BR).numpy()
    reached_BR = index_BR < len(hit_H)
    return np.where(reached_BR, np.take_along_axis(best_BH, np.minimum(index_BR, len(hit_H) - 1), axis=1), 0.0)
