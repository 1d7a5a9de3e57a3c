"""Trained variant -> detections in COCO format -> COCO metrics, judged by pycocotools."""

import contextlib
import io
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mmdet.evaluation.functional import eval_map
from mmengine.runner import Runner, TestLoop
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ghm import data, files
from ghm.errors import InputError
from ghm.params import Params
from ghm.training import build_config
from ghm.training.samples import BadImages

# Name -> place in COCOeval.stats.
SUMMARY = {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5, "AR100": 8}
CURVE_IOUS = (0.5, 0.75)
_log = logging.getLogger(__name__)


def evaluate(params: Params, variant: str, runs: Path, out: Path) -> dict[str, float]:
    """Detect and measure with every seed of `variant` on `params.evaluate.split`.

    Writes `out/seed_<n>/`: detections.json (COCO results), metrics.json, precision_recall.csv.

    Args:
        runs: the folder that `training.train` wrote.

    Returns:
        The metrics of `coco_metrics`, on VOC with `VOC_AP50`, and `unreadable_images`: how many of the training and of
        this split were left out. An image left out here counts as one without detections. Mean over seeds, rounded to
        4 digits.

    Raises:
        InputError: a model or the data set is not there.
    """
    params.variant(variant)
    data.ensure(params)
    split = data.read_manifest(params)["splits"][params.evaluate.split]
    annotations = Path("data") / params.data.name / split["annotations"]
    results = []
    with files.whole_folder(out) as folder:
        for seed in params.seeds:
            place = folder / f"seed_{seed}"
            place.mkdir()
            run = runs / f"seed_{seed}"
            left_out = detect(params, variant, seed, run / "model.pth", place / "detections.json")
            metrics, curve = coco_metrics(annotations, place / "detections.json")
            if params.data.name == "voc":
                metrics["VOC_AP50"] = voc_ap50(annotations, place / "detections.json")
            trained = json.loads((run / "context.json").read_text(encoding="utf-8"))
            metrics["unreadable_images"] = float(left_out + trained["unreadable_images"])
            files.write_json(place / "metrics.json", rounded(metrics))
            curve.to_csv(place / "precision_recall.csv", index=False, float_format="%.4f")
            results.append(metrics)
    return rounded({name: float(np.mean([result[name] for result in results])) for name in results[0]})


def rounded(metrics: dict[str, float]) -> dict[str, float]:
    """Four digits: what COCO metrics are worth, and the same on every run."""
    return {name: round(value, 4) for name, value in metrics.items()}


def detect(params: Params, variant: str, seed: int, model: Path, out: Path) -> int:
    """Run a trained model over the reported split and write its detections in COCO's result format.

    Returns:
        How many images could not be read, `data.max_bad_images` at most. They have no detections.

    Raises:
        InputError: the model file is missing, or more images cannot be read.
    """
    if not model.is_file():
        raise InputError(f"{model} is missing: run `dvc repro train@{variant}`")
    cfg = build_config(params, variant, seed)
    work = out.parent / ".work"
    cfg.work_dir, cfg.experiment_name = str(work), f"evaluate-{variant}-seed_{seed}-{out.parent.parent.name}"
    cfg.model.backbone.init_cfg = None
    cfg.test_evaluator.outfile_prefix = str(work / "result")
    runner = Runner.from_cfg(cfg)
    detector: Any = runner.model
    detector.load_state_dict(torch.load(model, map_location="cpu", weights_only=True)["state_dict"])
    if params.train.channels_last:
        detector.to(memory_format=torch.channels_last)
    loop = _TestLoop(runner, runner.cfg.test_dataloader, runner.cfg.test_evaluator)
    loop.bad_images = BadImages(params.data.max_bad_images)
    runner._test_loop = loop  # a config cannot hold what it counts with
    runner.test()
    (work / "result.bbox.json").rename(out)
    shutil.rmtree(work)
    return len(loop.bad_images.found)


class _TestLoop(TestLoop):
    """mmengine's, that leaves out images which cannot be read."""

    bad_images: BadImages

    def run_iter(self, idx: int, data_batch: Any) -> None:
        for line in self.bad_images.add(data_batch.pop("unreadable")):
            _log.warning(line)
        self.bad_images.require()
        if data_batch["inputs"]:
            super().run_iter(idx, data_batch)


def coco_metrics(annotations: Path, detections: Path) -> tuple[dict[str, float], pd.DataFrame]:
    """Judge stored detections with pycocotools.

    Returns:
        `AP, AP50, AP75, APs, APm, APl, AR100` and `AP_<class>` for every class, fractions, not rounded: 0 without any
        detection, -1 where the split has no box of that size or class (as pycocotools). And the precision-recall
        curves: `iou`, `recall`, `precision` (mean over the classes that have boxes).
    """
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        truth = COCO(str(annotations))
        found = json.loads(detections.read_text(encoding="utf-8"))
        evaluation = COCOeval(truth, _results(truth, found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    _log.info("%d detections judged\n%s", len(found), printed.getvalue().partition(" Average")[2])
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, class], all sizes, 100 detections
    metrics = {name: float(evaluation.stats[place]) for name, place in SUMMARY.items()}
    for column, category in enumerate(evaluation.params.catIds):
        metrics[f"AP_{truth.cats[category]['name']}"] = _mean(precision[:, :, column])
    return metrics, _curves(precision, evaluation.params)


def voc_ap50(annotations: Path, detections: Path) -> float:
    """Judge stored detections as VOC 2007 does, by mmdet: AP at IoU 0.5 from 11 points of recall, mean of classes.

    A detection whose best match is a difficult object (`iscrowd: 1`, see `ghm.data.voc`) counts neither way.
    """
    content = json.loads(annotations.read_text(encoding="utf-8"))
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


def _by_image(
    images: list[dict[str, Any]], boxes: list[dict[str, Any]], labels: dict[int, int], key: str
) -> list[np.ndarray]:
    """For each image the rows left, top, right, bottom, `key`, label: float32 [boxes, 6]."""
    rows: dict[int, list[tuple[float, ...]]] = {image["id"]: [] for image in images}
    for box in boxes:
        left, top, width, height = box["bbox"]
        rows[box["image_id"]].append((left, top, left + width, top + height, box[key], labels[box["category_id"]]))
    return [np.array(each, dtype=np.float32).reshape(-1, 6) for each in rows.values()]


def _results(truth: Any, found: list[dict[str, Any]]) -> COCO:
    """`loadRes` fails on an empty list; no detections are a result too."""
    if found:
        return truth.loadRes(found)
    empty: Any = COCO()
    empty.dataset = {**truth.dataset, "annotations": []}
    empty.createIndex()
    return empty


def _curves(precision: np.ndarray, settings: Any) -> pd.DataFrame:
    rows = []
    for iou in CURVE_IOUS:
        (index,) = np.flatnonzero(np.isclose(settings.iouThrs, iou))
        for place, recall in enumerate(settings.recThrs):
            rows.append({"iou": iou, "recall": recall, "precision": _mean(precision[index, place])})
    return pd.DataFrame(rows)


def _mean(precision: np.ndarray) -> float:
    """Mean of what is defined; pycocotools marks classes without boxes by -1."""
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else -1.0
