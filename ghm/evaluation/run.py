"""Every seed of a trained variant: detections in COCO's format, metrics with intervals, what comes out at one score."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ghm import config, data, files, fingerprint, truth
from ghm.errors import InputError
from ghm.evaluation import bootstrap, outcome
from ghm.evaluation.bootstrap import Resampled
from ghm.evaluation.judge import judge, voc_ap50
from ghm.evaluation.matches import weighted
from ghm.params import Params
from ghm.predict import by_size, load, predict
from ghm.registry import DATASETS
from ghm.runs import DETECTIONS, METRICS, MODEL, OUTCOME, RESAMPLED, Record
from ghm.training.processes import Processes
from ghm.training.samples import BadImages, collate

HEADLINE = ("AP", "AP50", "AP75", "AR100")  # of `metrics/<variant>.json`, which DVC compares


def evaluate(params: Params, variant: str, runs: Path, out: Path, processes: Processes | None = None) -> dict[str, Any]:
    """Detect and measure with every seed of `variant` on `params.evaluate.split`.

    The score of the operating point is chosen on the validation split, where it has boxes.

    Writes `out/metrics.json` and `out/seed_<n>/`: detections.json (COCO results), metrics.json, outcome.json,
    matches.npz, resampled.npz.

    Args:
        runs: the folder that `training.train` wrote.
        processes: those that share the images; all of them call this, the first one judges and writes.

    Returns:
        The content of `out/metrics.json`, see `summary`; nothing but on the first process.

    Raises:
        InputError: a model or the data set is not there, or the split has no box to measure with.
    """
    params.variant(variant)
    processes = processes or Processes()
    if processes.first:
        data.ensure(params)
    processes.wait()
    splits, of_seeds = _splits(params), []
    with files.whole_folder(out) if processes.first else nullcontext() as whole:
        for seed in params.seeds:
            run = runs / f"seed_{seed}"
            found = {split: detect(params, variant, seed, run / MODEL, split, processes) for split in splits}
            if whole:
                origin = {"chosen_on": splits[0], "fingerprint": Record.read(run).fingerprint}
                of_seeds.append(_measured(params, found, origin, whole / run.name))
        if not whole:
            return {}
        results, resampled = zip(*of_seeds, strict=True)
        content = summary(results, resampled)
        files.write_json(whole / METRICS, content)
    return content


def _splits(params: Params) -> list[str]:
    """The split that the score is chosen on, and the reported one, which may be the same."""
    reported, there = params.evaluate.split, data.read_manifest(params)["splits"]
    with_boxes = [name for name in ("val", reported) if name in there and _has_boxes(_annotations(params, name))]
    if reported not in with_boxes:
        raise InputError(
            f"{_annotations(params, reported)}, the split {reported}, has no box to measure AP with, crowds and boxes "
            "of no possible area do not count: label it, or set evaluate.split to another one"
        )
    # A score that is chosen on few images flatters what is measured on them.
    return list(dict.fromkeys(with_boxes))


def _annotations(params: Params, split: str) -> Path:
    return Path("data") / params.data.name / data.read_manifest(params)["splits"][split]["annotations"]


def _has_boxes(annotations: Path) -> bool:
    return any(map(truth.counts, truth.read(annotations)["annotations"]))


def _measured(
    params: Params, found: dict[str, tuple[list[dict[str, Any]], list[str]]], origin: dict[str, str], folder: Path
) -> tuple[dict[str, Any], Resampled]:
    """Judge what a seed has found on each of `_splits`, and write its folder.

    Returns:
        Its figures, not rounded, and `unreadable_images`; and the same under resamples of the images.
    """
    folder.mkdir()
    judged, split = {}, params.evaluate.split
    for name, (detections, _) in found.items():  # the reported one is last, and stays
        (folder / DETECTIONS).write_text(json.dumps(detections), encoding="utf-8")
        judged[name] = judge(_annotations(params, name), folder / DETECTIONS)
    score, reported = outcome.best_score(judged[origin["chosen_on"]]), judged[split]
    reported.matches.save(len(reported.detections), folder)
    files.write_json(folder / OUTCOME, outcome.measure(reported, score) | origin)
    weight_BI = bootstrap.weights(len(reported.matches.image_id_I))
    values = weighted(reported.matches, weight_BI, reported.classes)
    measured_on = fingerprint.measured_data(data.read_manifest(params)["splits"][split])
    resampled = Resampled(measured_on, weight_BI.shape[1], *values)
    resampled.save(folder / RESAMPLED)
    metrics = reported.metrics | ({"VOC_AP50": voc_ap50(reported)} if params.data.name == "voc" else {})
    result = {**metrics, "unreadable_images": found[split][1]}
    files.write_json(folder / METRICS, summary([result], [resampled]))
    return result, resampled


def detect(
    params: Params, variant: str, seed: int, checkpoint: Path, split: str, processes: Processes | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Run a trained model over a split of the data set, which needs no labels.

    Args:
        processes: those that share the images. Where all are of one padded size, batches do not depend on their number.

    Returns:
        The detections in COCO's result format, in the order of the data set; and the file names of the images that
        could not be read, `data.max_bad_images` at most, which have no detections. Nothing but on the first process.

    Raises:
        InputError: the model is missing or does not fit the parameters, or more images cannot be read.
    """
    processes = processes or Processes()
    if not checkpoint.is_file():
        raise InputError(f"{checkpoint} is missing: run `dvc repro train@{variant}`")
    cfg = config.for_run(params, variant, seed)
    model = load(cfg, checkpoint, f"params.yaml (to train anew: `dvc repro train@{variant}`)")
    described = data.read_manifest(params)["splits"][split]
    settings = cfg.test_dataloader
    settings.dataset.dataset.ann_file = described["annotations"]
    settings.dataset.dataset.data_prefix.img = f"{described['folder']}/"
    dataset: Any = DATASETS.build(settings.dataset)
    size, divisor = settings.batch_size, cfg.model.data_preprocessor.pad_size_divisor
    images = [dataset.get_data_info(n) for n in range(len(dataset))]
    # Images of one padded size have about the same aspect; `by_size` looks at what was read.
    order = sorted(range(len(images)), key=lambda n: images[n]["width"] / images[n]["height"])
    own = [n for place, n in enumerate(order) if place // size % processes.world_size == processes.rank]
    loader = DataLoader(Subset(dataset, own), size, num_workers=settings.num_workers, collate_fn=list)
    cv2.setNumThreads(0)  # workers are forked, and find OpenCV's threads gone
    bad_images = BadImages(params.data.max_bad_images)
    found: dict[int, list[dict[str, Any]]] = {}
    with logging_redirect_tqdm():
        title, is_hidden = f"{variant}, seed {seed}", None if processes.first else True
        samples = tqdm(chain.from_iterable(loader), title, len(own), unit="image", disable=is_hidden)
        batches = map(collate, by_size(samples, size, divisor))
        for sample, detections in predict(model, batches, bad_images, params.evaluate.precision):
            found[sample.img_id] = detections.coco(sample.img_id, dataset.dataset.cat_ids)
    for others, bad in processes.gather((found, bad_images.found)):
        found |= others
        bad_images.found |= bad
    bad_images.require()
    if not processes.first:
        return [], []
    folder = Path("data") / params.data.name / described["folder"]
    paths = [Path(image["img_path"]) for image in images if str(image["img_id"]) in bad_images.found]
    rows = [row for image in images for row in found.get(image["img_id"], [])]
    return rows, [str(path.relative_to(folder)) for path in paths]


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
