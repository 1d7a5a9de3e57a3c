"""Every seed of a trained variant: detections in COCO's format, metrics with intervals, what comes out at one score."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch.utils.data import DataLoader
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ghm import config, data, files, fingerprint, truth
from ghm.errors import InputError
from ghm.evaluation import bootstrap, outcome
from ghm.evaluation.bootstrap import Resampled
from ghm.evaluation.judge import Judged, judge, voc_ap50
from ghm.evaluation.matches import weighted
from ghm.params import Params
from ghm.predict import load, predict
from ghm.registry import DATASETS
from ghm.runs import DETECTIONS, METRICS, MODEL, OUTCOME, RESAMPLED, Record
from ghm.training.samples import BadImages, collate

HEADLINE = ("AP", "AP50", "AP75", "AR100")  # of `metrics/<variant>.json`, which DVC compares


def evaluate(params: Params, variant: str, runs: Path, out: Path) -> dict[str, Any]:
    """Detect and measure with every seed of `variant` on `params.evaluate.split`.

    The score of the operating point is chosen on the validation split, where it has boxes.

    Writes `out/metrics.json` and `out/seed_<n>/`: detections.json (COCO results), metrics.json, outcome.json,
    matches.npz, resampled.npz.

    Args:
        runs: the folder that `training.train` wrote.

    Returns:
        The content of `out/metrics.json`, see `summary`.

    Raises:
        InputError: a model or the data set is not there, or the split has no box to measure with.
    """
    params.variant(variant)
    data.ensure(params)
    split = params.evaluate.split
    splits = data.read_manifest(params)["splits"]
    with_boxes = {name for name in ("val", split) if name in splits and _has_boxes(_annotations(params, name))}
    if split not in with_boxes:
        raise InputError(
            f"{_annotations(params, split)}, the split {split}, has no box to measure AP with, crowds and boxes of no "
            "possible area do not count: label it, or set evaluate.split to another one"
        )
    # A score that is chosen on few images flatters what is measured on them.
    chosen_on = "val" if "val" in with_boxes else split
    results, resampled = [], []
    with files.whole_folder(out) as whole:
        for seed in params.seeds:
            folder = whole / f"seed_{seed}"
            folder.mkdir()
            of_run = params, variant, seed, runs / f"seed_{seed}" / MODEL
            judged, left_out = _judged(*of_run, chosen_on, folder / DETECTIONS)
            score = outcome.best_score(judged)
            if chosen_on != split:
                judged, left_out = _judged(*of_run, split, folder / DETECTIONS)
            judged.matches.save(len(judged.detections), folder)
            origin = {"chosen_on": chosen_on, "fingerprint": Record.read(runs / f"seed_{seed}").fingerprint}
            files.write_json(folder / OUTCOME, outcome.measure(judged, score) | origin)
            weight_BI = bootstrap.weights(len(judged.matches.image_id_I))
            values = weighted(judged.matches, weight_BI, judged.classes)
            resampled.append(Resampled(fingerprint.measured_data(splits[split]), weight_BI.shape[1], *values))
            resampled[-1].save(folder / RESAMPLED)
            metrics = judged.metrics | ({"VOC_AP50": voc_ap50(judged)} if params.data.name == "voc" else {})
            results.append({**metrics, "unreadable_images": left_out})
            files.write_json(folder / METRICS, summary(results[-1:], resampled[-1:]))
        content = summary(results, resampled)
        files.write_json(whole / METRICS, content)
    return content


def _annotations(params: Params, split: str) -> Path:
    return Path("data") / params.data.name / data.read_manifest(params)["splits"][split]["annotations"]


def _has_boxes(annotations: Path) -> bool:
    return any(map(truth.counts, truth.read(annotations)["annotations"]))


def _judged(params: Params, variant: str, seed: int, model: Path, split: str, path: Path) -> tuple[Judged, list[str]]:
    """Detect on a split, write `path`, and judge it; and what `detect` has left out."""
    detections, left_out = detect(params, variant, seed, model, split)
    path.write_text(json.dumps(detections), encoding="utf-8")
    return judge(_annotations(params, split), path), left_out


def detect(
    params: Params, variant: str, seed: int, checkpoint: Path, split: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Run a trained model over a split of the data set, which needs no labels.

    Returns:
        The detections in COCO's result format; and the file names of the images that could not be read,
        `data.max_bad_images` at most, which have no detections.

    Raises:
        InputError: the model is missing or does not fit the parameters, or more images cannot be read.
    """
    if not checkpoint.is_file():
        raise InputError(f"{checkpoint} is missing: run `dvc repro train@{variant}`")
    cfg = config.for_run(params, variant, seed)
    model = load(cfg, checkpoint, f"params.yaml (to train anew: `dvc repro train@{variant}`)")
    described = data.read_manifest(params)["splits"][split]
    settings = cfg.test_dataloader
    settings.dataset.dataset.ann_file = described["annotations"]
    settings.dataset.dataset.data_prefix.img = f"{described['folder']}/"
    dataset: Any = DATASETS.build(settings.dataset)
    loader = DataLoader(dataset, settings.batch_size, num_workers=settings.num_workers, collate_fn=collate)
    cv2.setNumThreads(0)  # workers are forked, and find OpenCV's threads gone
    bad_images = BadImages(params.data.max_bad_images)
    detections: list[dict[str, Any]] = []
    with logging_redirect_tqdm():
        batches = tqdm(loader, desc=f"{variant}, seed {seed}", unit="batch", disable=None)
        for sample, found in predict(model, batches, bad_images):
            detections += found.coco(sample.img_id, dataset.dataset.cat_ids)
    folder = Path("data") / params.data.name / described["folder"]
    images = map(dataset.get_data_info, range(len(dataset)))
    paths = [Path(image["img_path"]) for image in images if str(image["img_id"]) in bad_images.found]
    return detections, [str(path.relative_to(folder)) for path in paths]


def summary(results: Sequence[dict[str, Any]], resampled: Sequence[Resampled]) -> dict[str, Any]:
    """What is stored of a variant, or of one of its seeds: fractions, means over seeds, rounded to 4 digits.

    Args:
        results: of each seed: figures, and `unreadable_images`.

    Returns:
        The same keys; `classes`, AP of each that has a box; and `intervals`: for AP, AP50 and AP75 low and high end, at
        `bootstrap.LEVEL`.
    """

    def mean(values: Any) -> float:  # to what COCO metrics are worth, and the same on every run
        return round(float(np.mean(values)), 4)

    values = {name: np.stack([result.value_B[name] for result in resampled]) for name in resampled[0].value_B}
    intervals = {name: bootstrap.interval(values[name], resampled[0].images) for name in bootstrap.METRICS}
    ap = {name.removeprefix("AP_"): value_SB[:, 0] for name, value_SB in values.items() if name.startswith("AP_")}
    figures = [name for name in results[0] if name != "unreadable_images"]
    return {name: mean([result[name] for result in results]) for name in figures} | {
        "classes": {name: mean(ap_S) for name, ap_S in ap.items() if ap_S[0] > -1},
        "intervals": {name: [round(found.low, 4), round(found.high, 4)] for name, found in intervals.items() if found},
        "unreadable_images": sorted({image for result in results for image in result["unreadable_images"]}),
    }
