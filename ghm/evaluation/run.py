"""Every seed of a trained variant: detections in COCO's format, metrics with intervals, errors by kind."""

import logging
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.runner import Runner, TestLoop
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ghm import data, files, fingerprint, truth
from ghm.errors import InputError
from ghm.evaluation import bootstrap, errors, matches
from ghm.evaluation.bootstrap import Resampled
from ghm.evaluation.judge import class_ap, coco_metrics, judge, voc_ap50
from ghm.params import Params
from ghm.training import build_config
from ghm.training.optimizer import set_precision
from ghm.training.samples import BadImages

DETECTIONS = "detections.json"
METRICS = "metrics.json"
ERRORS = "errors.json"
RESAMPLED = "resampled.npz"
HEADLINE = ("AP", "AP50", "AP75", "AR100")  # of `metrics/<variant>.json`, which DVC compares
_log = logging.getLogger(__name__)


def evaluate(params: Params, variant: str, runs: Path, out: Path) -> dict[str, Any]:
    """Detect and measure with every seed of `variant` on `params.evaluate.split`.

    Writes `out/metrics.json` and `out/seed_<n>/`: detections.json (COCO results), metrics.json, errors.json,
    matches.npz, resampled.npz.

    Args:
        runs: the folder that `training.train` wrote.

    Returns:
        The content of `out/metrics.json`: the means over seeds of what `summary` has of each, but with intervals of
        the means, and the images that any seed left out.

    Raises:
        InputError: a model or the data set is not there, or the split has no box to measure with.
    """
    params.variant(variant)
    data.ensure(params)
    name = params.evaluate.split
    described = data.read_manifest(params)["splits"][name]
    annotations = Path("data") / params.data.name / described["annotations"]
    _require_boxes(annotations, name)
    results, resampled = [], []
    with files.whole_folder(out) as folder:
        for seed in params.seeds:
            place = folder / f"seed_{seed}"
            place.mkdir()
            left_out = detect(params, variant, seed, runs / f"seed_{seed}" / "model.pth", place / DETECTIONS)
            measured = measure(annotations, place, fingerprint.measured_data(described))
            figures = dict(measured.metrics)
            if params.data.name == "voc":
                figures["VOC_AP50"] = voc_ap50(annotations, place / DETECTIONS)
            results.append(figures | {"classes": measured.classes, "unreadable_images": left_out})
            resampled.append(measured.resampled)
            files.write_json(place / METRICS, summary(results[-1:], resampled[-1:]))
        found = summary(results, resampled)
        files.write_json(folder / METRICS, found)
    return found


def _require_boxes(annotations: Path, split: str) -> None:
    boxes = truth.read(annotations)["annotations"]
    if not any(map(truth.counts, boxes)):
        why = f"all its {len(boxes)} are crowds or have no possible area" if boxes else "there is none at all"
        raise InputError(
            f"{annotations}, the split {split}, has no box to measure AP with ({why}): label it, or set evaluate.split "
            "to another one"
        )


def summary(results: Sequence[dict[str, Any]], resampled: Sequence[Resampled]) -> dict[str, Any]:
    """What is stored of a variant, or of one of its seeds: fractions, means over seeds, rounded to 4 digits.

    What the split has no box for is absent.

    Args:
        results: of each seed: `AP` and the others of `coco_metrics`, `VOC_AP50` on VOC; `classes`: AP of each, by
            name; `unreadable_images`: those that were left out, which count as images without detections.
        resampled: of each seed.

    Returns:
        The same keys, and `intervals`: for AP, AP50 and AP75 low and high end, at `bootstrap.LEVEL`.
    """
    first = results[0]
    intervals = {}
    for name in bootstrap.METRICS:
        found = bootstrap.interval(np.stack([each.value_B[name] for each in resampled]), resampled[0].images)
        if found:
            intervals[name] = [round(found.low, 4), round(found.high, 4)]
    means = {name: _mean(result[name] for result in results) for name in first if isinstance(first[name], float)}
    return means | {
        "classes": {name: _mean(result["classes"][name] for result in results) for name in first["classes"]},
        "intervals": intervals,
        "unreadable_images": sorted({image for result in results for image in result["unreadable_images"]}),
    }


def _mean(values: Iterable[float]) -> float:
    """To four digits: what COCO metrics are worth, and the same on every run."""
    return round(float(np.mean([*values])), 4)


@dataclass(frozen=True)
class Measured:
    """What can be said of stored detections; fractions."""

    metrics: dict[str, float]  # of `coco_metrics`
    classes: dict[str, float]  # of `class_ap`
    resampled: Resampled


def measure(annotations: Path, place: Path, measured_on: str) -> Measured:
    """Judge `place/detections.json`; write `errors.json`, `matches.npz` and `resampled.npz` beside it.

    Args:
        measured_on: of `fingerprint.measured_data`, kept with the result.

    Raises:
        InputError: detections of images or classes that the annotations lack.
    """
    judged = judge(annotations, place / DETECTIONS)
    costs = errors.analyse(judged.truth, judged.found, judged.matches)
    files.write_json(place / ERRORS, {name: round(value, 4) for name, value in costs.items()})
    resampled = bootstrap.resample(judged.matches, judged.classes, measured_on)
    resampled.save(place / RESAMPLED)
    matches.save(judged.matches.box_of(len(judged.found)), place)
    return Measured(coco_metrics(judged), class_ap(judged), resampled)


def detect(params: Params, variant: str, seed: int, model: Path, out: Path, split: str | None = None) -> list[str]:
    """Run a trained model over the reported split and write its detections in COCO's result format.

    Args:
        split: another one of the data set; it needs no labels.

    Returns:
        The file names of the images that could not be read, `data.max_bad_images` at most. They have no detections.

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
    described = data.read_manifest(params)["splits"][split or params.evaluate.split]
    if split:
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
    folder = Path("data") / params.data.name / described["folder"]
    return [str(path.relative_to(folder)) for path in loop.left_out]


class _TestLoop(TestLoop):
    """mmengine's, that leaves out images which cannot be read."""

    bad_images: BadImages
    bar: tqdm

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.left_out: list[Path] = []

    def run_iter(self, idx: int, data_batch: Any) -> None:
        unreadable = data_batch.pop("unreadable")
        for line in self.bad_images.add(unreadable):
            _log.warning(line)
        self.left_out += [Path(each.path) for each in unreadable]
        self.bad_images.require()
        if data_batch["inputs"]:
            super().run_iter(idx, data_batch)
        self.bar.update()
