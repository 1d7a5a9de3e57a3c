"""An artificial folder of finished runs, plausible numbers and images from a seeded generator; a reader of pages."""

import dataclasses
import hashlib
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from ghm import fingerprint, runs
from ghm import params as ghm_params
from ghm.evaluation import outcome
from ghm.evaluation.bootstrap import METRICS as RESAMPLED
from ghm.evaluation.bootstrap import Resampled
from ghm.evaluation.judge import judge
from ghm.evaluation.matches import CURVE_IOUS, RECALLS_R
from ghm.params import Params

REPOSITORY = Path(__file__).resolve().parents[2]
SIDE = 128  # pixels of an image
STEPS = 400
DRAWS = 50
EPOCHS = 2
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "AR100")  # no box is large, as in a data set of small images


def fill(
    root: Path,
    variants: int | Sequence[str] = 3,
    seeds: int = 1,
    classes: int | Sequence[str] = 10,
    images: int = 8,
    detect: bool = True,
) -> Params:
    """Write the runs of `variants` x `seeds` below `root`; variants and classes are so many, or have these names."""
    params = ghm_params.load(REPOSITORY / "params.yaml")
    names = list(params.variants)[:variants] if isinstance(variants, int) else variants
    named = dict(zip(names, params.variants.values(), strict=False))
    params = dataclasses.replace(params, variants=named, seeds=tuple(range(seeds)))
    rng = np.random.default_rng(0)
    if isinstance(classes, int):
        classes = [str(number) if classes <= 10 else f"class {number}" for number in range(classes)]
    manifest = _data(root, params, list(classes), images, rng)
    for number, variant in enumerate(params.variants):
        metrics = []
        for seed in params.seeds:
            of_class = {name: round(float(rng.normal(0.55, 0.05)), 4) for name in classes}
            values = {key: round(float(0.55 + 0.01 * number + rng.normal(0, 0.02)), 4) for key in METRICS}
            metrics.append({**values, "classes": of_class, "unreadable_images": []})
            _run(runs.run_folder(variant, seed, root), params, variant, seed, manifest, rng)
            _evaluation(runs.detections_folder(variant, seed, root), params, manifest, metrics[-1], detect, rng)
        mean: dict[str, Any] = {key: float(np.mean([seed[key] for seed in metrics])) for key in METRICS}
        mean["classes"] = {name: float(np.mean([seed["classes"][name] for seed in metrics])) for name in classes}
        write_json(root / "detections" / variant / runs.METRICS, mean | {"unreadable_images": []})
    (root / "reports" / "data").mkdir(parents=True)
    Image.new("RGB", (SIDE, SIDE)).save(root / "reports" / "data" / "batch.jpg")
    (root / "reports" / "data.md").write_text(
        "# The data\n\n## What the network sees\n\n![A batch of images](data/batch.jpg)\n"
    )
    return params


def cells(page: str) -> list[str]:
    """The texts in the cells of all tables of an HTML page."""
    texts = re.findall(r"<t[dh]\b[^>]*>(.*?)</t[dh]>", page, re.DOTALL)
    return [html.unescape(re.sub("<[^>]+>", "", text)).strip() for text in texts]


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def change(path: Path, **values: object) -> None:
    """Set keys of a JSON file."""
    write_json(path, {**json.loads(path.read_text()), **values})


def _data(root: Path, params: Params, names: list[str], images: int, rng: np.random.Generator) -> dict[str, Any]:
    """Write images, annotations and manifest; return the manifest."""
    split = params.evaluate.split
    folder = root / "data" / params.data.name
    truth: dict[str, Any] = {
        "images": [], "annotations": [], "categories": [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    }  # fmt: skip
    (folder / split).mkdir(parents=True)
    for number in range(images):
        name = f"{number:04}.png"
        y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
        pixels = np.stack([x * 180, y * 120 + 40, (np.sin(9 * x + number) + 1) * 90], axis=2)
        for _ in range(number % 5):  # the first image of five is empty
            size = int(rng.integers(24, 60))
            left, top = rng.integers(0, SIDE - size, 2).tolist()
            pixels[top : top + size, left : left + size] += rng.uniform(-60, 60, 3)
            truth["annotations"].append(
                {"id": len(truth["annotations"]) + 1, "image_id": number + 1, "iscrowd": 0, "area": size * size,
                 "category_id": int(rng.integers(1, len(names) + 1)), "bbox": [left, top, size, size]}
            )  # fmt: skip
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / split / name)
        truth["images"].append({"id": number + 1, "file_name": name, "width": SIDE, "height": SIDE})
    annotations = f"annotations/instances_{split}.json"
    write_json(folder / annotations, truth)
    described = {
        "images": images, "boxes": len(truth["annotations"]), "annotations": annotations, "folder": split,
        "annotations_sha256": hashlib.sha256((folder / annotations).read_bytes()).hexdigest(),
        "files_sha256": "0" * 64, "unreadable": [],
    }  # fmt: skip
    manifest = {"name": params.data.name, "classes": names, "splits": {"train": described, split: described}}
    write_json(root / "data" / f"{params.data.name}.json", manifest)
    return manifest


def _run(
    folder: Path, params: Params, variant: str, seed: int, manifest: dict[str, Any], rng: np.random.Generator
) -> None:
    folder.mkdir(parents=True)
    runs.Record(
        revision="0123abc", device="2 x fixture CPU", versions={"python": "3.11.7", "torch": "2.11.0"},
        dataset=params.data.name, variant=variant, seed=seed, epochs=EPOCHS, images=8, category_ids=[],
        parameters=1_034_567, pretrained=params.model.pretrained, load_from=None, fingerprint="0", seconds=211.5,
        conditions={"code": "0123", "config": "4567", "data": fingerprint.data_checksum(manifest)},
        processes=1, unreadable_images=0,
    ).write(folder)  # fmt: skip
    step = np.arange(1, STEPS + 1)
    height = 20.0 if params.variants[variant].box == "ghmr" else 1.0
    cls = (0.2 + np.exp(-step / 60)) * rng.gamma(20, 0.05, STEPS)
    box = height * (0.3 + 0.5 * np.exp(-step / 90)) * rng.gamma(20, 0.05, STEPS)
    epoch = 1 + step * EPOCHS // (STEPS + 1)
    log = [step, epoch, cls + box, cls, box, np.full(STEPS, 0.002), rng.gamma(4, 1, STEPS), np.full(STEPS, 99)]
    _table(folder, runs.LOG, np.stack(log, axis=1))
    _table(folder, runs.VALIDATION, np.stack([np.arange(1, EPOCHS + 1), rng.uniform(0.4, 0.6, EPOCHS)], axis=1))
    if params.variants[variant].cls == "ghmc":
        density_K = 9e3 * np.exp(-9 * np.arange(30) / 30)
        density_K[29] = 0.0
        steps = range(50, STEPS + 1, 50)
        rows = [(step, "cls", k / 30, (k + 1) / 30, density_K[k]) for step in steps for k in range(30)]
        _table(folder, runs.DENSITY, rows)
    middle_B = (np.arange(120) + 0.5) / 120
    rows = []
    for epoch in range(EPOCHS + 1):
        for kind, number in (("cls", 2_000_000), ("box", 8_000)):
            hard_B = np.exp(-(8 + 4 * epoch) * middle_B) + 2e-5 * np.exp(4 * middle_B)
            chance_B = hard_B if kind == "cls" else 1 + middle_B
            count_B = rng.poisson(number * chance_B / chance_B.sum())
            rows += [(epoch, kind, b / 120, (b + 1) / 120, count_B[b]) for b in range(120)]
    _table(folder, runs.GRADIENT_NORMS, rows)


def _table(folder: Path, name: str, rows: Any) -> None:
    pd.DataFrame(rows, columns=pd.Index(runs.COLUMNS[name])).to_csv(folder / name, index=False)


def _evaluation(
    folder: Path, params: Params, manifest: dict[str, Any], metrics: dict[str, Any], detect: bool,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """Write metrics, resamples and detections: most boxes found, some moved away, some with the next class."""
    write_json(folder / runs.METRICS, metrics)
    split = manifest["splits"][params.evaluate.split]
    annotations = folder.parents[2] / "data" / params.data.name / split["annotations"]
    detections = []
    for box in json.loads(annotations.read_text())["annotations"]:
        luck = rng.uniform()
        shift = 25.0 if luck < 0.1 else 2.0
        category = 1 + box["category_id"] % len(manifest["classes"]) if luck > 0.85 else box["category_id"]
        x, y, width, height = box["bbox"]
        detections.append(
            {"image_id": box["image_id"], "category_id": category, "score": float(rng.uniform(0.2, 1)),
             "bbox": [x + shift * rng.normal(), y + shift * rng.normal(), width * 1.05, height * 0.97]}
        )  # fmt: skip
    write_detections(folder, annotations, detections if detect else [])
    names = {name: metrics[name] for name in RESAMPLED} | {f"AP_{name}": ap for name, ap in metrics["classes"].items()}
    values = {name: np.array([ap, *(ap + rng.normal(0, 0.02, DRAWS))]) for name, ap in names.items()}
    noise = rng.normal(0, 0.02, (1 + DRAWS, len(CURVE_IOUS), 1))
    curves = detect * np.clip(1 - RECALLS_R ** np.array([6, 3])[None, :, None] + noise, 0, 1)
    measured_on = fingerprint.measured_data(split)
    Resampled(measured_on, split["images"], values, curves).save(folder / runs.RESAMPLED)


def write_detections(folder: Path, annotations: Path, detections: list[dict[str, Any]]) -> None:
    """Write detections as the stage `evaluate` does, matched to the annotations, and what comes out."""
    write_json(folder / runs.DETECTIONS, detections)
    judged = judge(annotations, folder / runs.DETECTIONS)
    judged.matches.save(len(detections), folder)
    found = outcome.measure(judged, outcome.best_score(judged))
    write_json(folder / runs.OUTCOME, {"chosen_on": "val", "fingerprint": "0", **found})
