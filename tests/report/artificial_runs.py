"""An artificial folder of finished runs: plausible numbers and images from a seeded generator."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from ghm import fingerprint
from ghm import params as ghm_params
from ghm.evaluation.bootstrap import METRICS as RESAMPLED
from ghm.evaluation.bootstrap import Resampled
from ghm.evaluation.errors import KINDS
from ghm.evaluation.matches import CURVE_IOUS, RECALLS_R
from ghm.params import Params, Variant

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
    pairs = [(cls, box) for box in ("smooth_l1", "ghmr") for cls in ("focal", "ghmc", "cross_entropy")]
    named = dict(params.variants)
    for number in range(8 - len(named)):
        named[f"extra_{number}"] = Variant(*pairs[number % len(pairs)])
    if isinstance(variants, int):
        named = dict(list(named.items())[:variants])
    else:
        named = dict(zip(variants, named.values(), strict=False))
    params = dataclasses.replace(params, variants=named, seeds=tuple(range(seeds)))
    rng = np.random.default_rng(0)
    if isinstance(classes, int):
        classes = [str(number) if classes <= 10 else f"class {number}" for number in range(classes)]
    names = list(classes)
    truth = _data(root, params, names, images, rng)
    for place, variant in enumerate(params.variants):
        found = []
        for seed in params.seeds:
            found.append(_metrics(names, 0.55 + 0.01 * place, rng))
            _run(root / "runs" / variant / f"seed_{seed}", params, variant, seed, rng)
            folder = root / "detections" / variant / f"seed_{seed}"
            _evaluation(folder, truth, found[-1], detect, rng)
            _resampled(checksum(root, params), len(truth["images"]), found[-1], detect, rng).save(
                folder / "resampled.npz"
            )
        mean: dict[str, Any] = {key: _mean([metrics[key] for metrics in found]) for key in METRICS}
        mean["classes"] = {name: _mean([metrics["classes"][name] for metrics in found]) for name in names}
        write_json(root / "detections" / variant / "metrics.json", mean | {"unreadable_images": []})
    return params


def _mean(values: list[float]) -> float:
    return round(float(np.mean(values)), 4)


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _data(root: Path, params: Params, names: list[str], images: int, rng: np.random.Generator) -> dict[str, Any]:
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
    here = {"images": images, "boxes": len(truth["annotations"]), "annotations": annotations, "folder": split}
    here["annotations_sha256"] = hashlib.sha256((folder / annotations).read_bytes()).hexdigest()
    here["files_sha256"] = "0" * 64
    found = {"warnings": {"crowd_boxes": 1200}}
    write_json(
        root / "data" / f"{params.data.name}.json",
        {"name": params.data.name, "classes": names, "splits": {"train": here | found, split: here | {"warnings": {}}}},
    )
    return truth


def checksum(root: Path, params: Params) -> str:
    """Of the reported split."""
    return fingerprint.measured_data(_manifest(root, params)["splits"][params.evaluate.split])


def _manifest(root: Path, params: Params) -> dict[str, Any]:
    return json.loads((root / "data" / f"{params.data.name}.json").read_text())


def _resampled(
    measured_on: str, images: int, metrics: dict[str, Any], detect: bool, rng: np.random.Generator
) -> Resampled:
    """Return resamples around the metrics, and curves around a falling one."""
    figures = {name: metrics[name] for name in RESAMPLED}
    figures |= {f"AP_{name}": ap for name, ap in metrics["classes"].items()}
    values = {name: np.array([ap, *(ap + rng.normal(0, 0.02, DRAWS))]) for name, ap in figures.items()}
    noise = rng.normal(0, 0.02, (1 + DRAWS, len(CURVE_IOUS), 1))
    curves = detect * np.clip(1 - RECALLS_R ** np.array([6, 3])[None, :, None] + noise, 0, 1)
    return Resampled(measured_on, images, values, curves)


def _metrics(names: list[str], level: float, rng: np.random.Generator) -> dict[str, Any]:
    """Return metrics around `level`."""
    values: dict[str, Any] = {key: round(float(level + rng.normal(0, 0.02)), 4) for key in METRICS}
    of_class = {name: round(float(level + rng.normal(0, 0.05)), 4) for name in names}
    return values | {"classes": of_class, "unreadable_images": []}


def _run(folder: Path, params: Params, variant: str, seed: int, rng: np.random.Generator) -> None:
    context = {
        "variant": variant, "seed": seed, "revision": "0123abc", "device": "2 x fixture CPU", "seconds": 211.5,
        "versions": {"python": "3.11.7", "torch": "2.11.0", "mmdet": "3.3.0"}, "dataset": params.data.name,
        "epochs": EPOCHS, "images": 8, "parameters": 1_034_567, "pretrained": params.model.pretrained,
        "load_from": None, "category_ids": [], "fingerprint": "89ab", "processes": 1, "unreadable_images": 0,
        "conditions": {
            "code": "0123", "config": "4567", "data": fingerprint.data_checksum(_manifest(folder.parents[2], params))
        },
    }  # fmt: skip
    write_json(folder / "context.json", context)
    step = np.arange(1, STEPS + 1)
    height = 20.0 if params.variants[variant].box == "ghmr" else 1.0
    cls = (0.2 + np.exp(-step / 60)) * rng.gamma(20, 0.05, STEPS)
    box = height * (0.3 + 0.5 * np.exp(-step / 90)) * rng.gamma(20, 0.05, STEPS)
    log = {"step": step, "epoch": 1 + step * EPOCHS // (STEPS + 1), "loss": cls + box, "loss_cls": cls,
           "loss_bbox": box, "lr": 0.002, "grad_norm": rng.gamma(4, 1, STEPS)}  # fmt: skip
    pd.DataFrame(log).to_csv(folder / "log.csv", index=False)
    epochs = np.arange(1, EPOCHS + 1)
    pd.DataFrame({"epoch": epochs, "AP": rng.uniform(0.4, 0.6, EPOCHS)}).to_csv(folder / "validation.csv", index=False)
    if params.variants[variant].cls == "ghmc":
        low = np.arange(30) / 30
        regions = pd.DataFrame({"kind": "cls", "low": low, "high": low + 1 / 30, "density": 9e3 * np.exp(-9 * low)})
        regions.loc[29, "density"] = 0.0
        steps = [regions.assign(step=number) for number in range(50, STEPS + 1, 50)]
        pd.concat(steps).to_csv(folder / "density.csv", index=False)
    edges = np.linspace(0, 1, 121)
    histograms = []
    for epoch in range(EPOCHS + 1):
        for kind, number in (("cls", 2_000_000), ("box", 8_000)):
            middle = (edges[:-1] + edges[1:]) / 2
            chance = np.exp(-(8 + 4 * epoch) * middle) + 2e-5 * np.exp(4 * middle) if kind == "cls" else 1 + middle
            count = rng.poisson(number * chance / chance.sum())
            histograms.append(
                pd.DataFrame({"epoch": epoch, "kind": kind, "low": edges[:-1], "high": edges[1:], "count": count})
            )
    pd.concat(histograms).to_csv(folder / "gradient_norms.csv", index=False)


def _evaluation(
    folder: Path, truth: dict[str, Any], metrics: dict[str, Any], detect: bool, rng: np.random.Generator
) -> None:
    """Write metrics, errors and detections: most boxes found, some moved away, some with the next class."""
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "errors.json", {kind: float(rng.uniform(0, 0.05)) for kind in KINDS})
    found = []
    for box in truth["annotations"]:
        luck = rng.uniform()
        shift = 25.0 if luck < 0.1 else 2.0
        category = 1 + box["category_id"] % len(truth["categories"]) if luck > 0.85 else box["category_id"]
        x, y, width, height = box["bbox"]
        found.append(
            {"image_id": box["image_id"], "category_id": category, "score": float(rng.uniform(0.2, 1)),
             "bbox": [x + shift * rng.normal(), y + shift * rng.normal(), width * 1.05, height * 0.97]}
        )  # fmt: skip
    write_json(folder / "detections.json", found if detect else [])
