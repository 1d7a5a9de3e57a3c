"""Every seed of a trained variant: detections in COCO's format, metrics with intervals, errors by kind."""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.runner import Runner, TestLoop
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ghm import data, files
from ghm.errors import InputError
from ghm.evaluation import bootstrap, errors
from ghm.evaluation.bootstrap import Resampled
from ghm.evaluation.judge import coco_metrics, judge, voc_ap50
from ghm.params import Params
from ghm.training import build_config
from ghm.training.optimizer import set_precision
from ghm.training.samples import BadImages

DETECTIONS = "detections.json"
METRICS = "metrics.json"
ERRORS = "errors.json"
RESAMPLED = "resampled.npz"
_log = logging.getLogger(__name__)


def evaluate(params: Params, variant: str, runs: Path, out: Path) -> dict[str, float]:
    """Detect and measure with every seed of `variant` on `params.evaluate.split`.

    Writes `out/seed_<n>/`: detections.json (COCO results), metrics.json, errors.json, resampled.npz.

    Args:
        runs: the folder that `training.train` wrote.

    Returns:
        The metrics of `coco_metrics`, on VOC with `VOC_AP50`, and `unreadable_images`: how many of the training and of
        this split were left out. An image left out here counts as one without detections. Mean over seeds, rounded to
        4 digits. `<metric>_lower_95` and `<metric>_upper_95` of AP, AP50 and AP75 hold the truth in 95 of 100 cases.

    Raises:
        InputError: a model or the data set is not there.
    """
    params.variant(variant)
    data.ensure(params)
    split = data.read_manifest(params)["splits"][params.evaluate.split]
    annotations = Path("data") / params.data.name / split["annotations"]
    results, resampled = [], []
    with files.whole_folder(out) as folder:
        for seed in params.seeds:
            place = folder / f"seed_{seed}"
            place.mkdir()
            run = runs / f"seed_{seed}"
            left_out = detect(params, variant, seed, run / "model.pth", place / DETECTIONS)
            measured = measure(annotations, place)
            metrics = measured.metrics
            if params.data.name == "voc":
                metrics["VOC_AP50"] = voc_ap50(annotations, place / DETECTIONS)
            trained = json.loads((run / "context.json").read_text(encoding="utf-8"))
            metrics["unreadable_images"] = float(left_out + trained["unreadable_images"])
            files.write_json(place / METRICS, rounded(metrics))
            results.append(metrics)
            resampled.append(measured.resampled)
    mean = {name: float(np.mean([result[name] for result in results])) for name in results[0]}
    for name in bootstrap.METRICS:
        found = bootstrap.interval(np.stack([each.value_B[name] for each in resampled]), resampled[0].images)
        mean |= {f"{name}_lower_95": found.low, f"{name}_upper_95": found.high}
    return rounded(mean)


@dataclass(frozen=True)
class Measured:
    """What can be said of stored detections."""

    metrics: dict[str, float]
    resampled: Resampled


def measure(annotations: Path, place: Path) -> Measured:
    """Judge `place/detections.json`; write `errors.json` and `resampled.npz` beside it.

    Raises:
        InputError: detections of images or classes that the annotations lack.
    """
    judged = judge(annotations, place / DETECTIONS)
    truth = json.loads(annotations.read_text(encoding="utf-8"))
    found = json.loads((place / DETECTIONS).read_text(encoding="utf-8"))
    files.write_json(place / ERRORS, rounded(errors.analyse(truth, found, judged.matches)))
    resampled = bootstrap.resample(judged.matches, judged.classes, files.digest(annotations))
    resampled.save(place / RESAMPLED)
    return Measured(coco_metrics(judged), resampled)


def rounded(metrics: dict[str, float]) -> dict[str, float]:
    """Four digits: what COCO metrics are worth, and the same on every run."""
    return {name: round(value, 4) for name, value in metrics.items()}


def detect(params: Params, variant: str, seed: int, model: Path, out: Path, split: str | None = None) -> int:
    """Run a trained model over the reported split and write its detections in COCO's result format.

    Args:
        split: another one of the data set; it needs no labels.

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
    if split:
        described = data.read_manifest(params)["splits"][split]
        dataset = cfg.test_dataloader.dataset.dataset
        dataset.ann_file, dataset.data_prefix.img = described["annotations"], f"{described['folder']}/"
        cfg.test_evaluator.ann_file = f"{dataset.data_root}{dataset.ann_file}"
    set_precision(cfg)
    runner = Runner.from_cfg(cfg)
    detector: Any = runner.model
    detector.load_state_dict(torch.load(model, map_location="cpu", weights_only=True)["state_dict"])
    if params.train.channels_last:
        detector.to(memory_format=torch.channels_last)
    loop = _TestLoop(runner, runner.cfg.test_dataloader, runner.cfg.test_evaluator)
    loop.bad_images = BadImages(params.data.max_bad_images)
    runner._test_loop = loop  # a config cannot hold what it counts with
    loop.bar = tqdm(total=len(loop.dataloader), desc=f"{variant}, seed {seed}", unit="batch", disable=None)
    with loop.bar, logging_redirect_tqdm():
        runner.test()
    (work / "result.bbox.json").rename(out)
    shutil.rmtree(work)
    return len(loop.bad_images.found)


class _TestLoop(TestLoop):
    """mmengine's, that leaves out images which cannot be read."""

    bad_images: BadImages
    bar: tqdm

    def run_iter(self, idx: int, data_batch: Any) -> None:
        for line in self.bad_images.add(data_batch.pop("unreadable")):
            _log.warning(line)
        self.bad_images.require()
        if data_batch["inputs"]:
            super().run_iter(idx, data_batch)
        self.bar.update()
