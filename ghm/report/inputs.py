"""What the other stages left on disk, read into tables with one row a measurement."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ghm import truth as annotated
from ghm.errors import InputError
from ghm.evaluation.bootstrap import Resampled
from ghm.fingerprint import data_checksum, measured_data
from ghm.params import Params
from ghm.report import fairness
from ghm.truth import Record


@dataclass(frozen=True)
class Results:
    """The finished runs of every variant and seed, in the order of `params.yaml`."""

    metrics: dict[str, dict[str, Any]]  # of each variant: what `evaluation.run.summary` has, mean over seeds
    seed_metrics: dict[str, list[dict[str, Any]]]  # of each variant: the same, seed by seed
    contexts: dict[str, list[dict[str, Any]]]  # of each variant, seed by seed: revision, device, seconds, ...
    resampled: dict[str, list[Resampled]]  # of each variant, seed by seed
    errors: dict[str, list[dict[str, float]]]  # of each variant, seed by seed: AP50 that each kind of error costs
    loss: pd.DataFrame  # variant, seed, step, loss, loss_cls, loss_bbox, ...
    validation: pd.DataFrame  # variant, seed, epoch, AP: on a part of the validation split
    density: pd.DataFrame  # variant, seed, step, kind, low, high, density: of losses with a moving average
    gradient_norms: pd.DataFrame  # variant, epoch, kind, low, high, count, share; all seeds together
    detections: dict[str, list[Record]]  # of each variant: the first seed's best, as many as there are true boxes
    manifest: dict[str, Any]  # data/<name>.json
    truth: dict[str, list[Record]]  # COCO images, annotations, categories of the reported split
    images: Path  # folder of the reported split


def read(params: Params, root: Path) -> Results:
    """Read the runs that `params` describes from the repository at `root`.

    Raises:
        InputError: a file is missing, or the runs may not be compared.
    """
    manifest = _json(root, f"data/{params.data.name}.json")
    split = manifest["splits"][params.evaluate.split]
    truth = annotated.read(existing(root / f"data/{params.data.name}/{split['annotations']}", root))
    first = params.seeds[0]
    contexts = _records(root, "runs", "context.json", params)
    resampled = {
        variant: [
            Resampled.load(existing(root / f"detections/{variant}/seed_{seed}/resampled.npz", root))
            for seed in params.seeds
        ]
        for variant in params.variants
    }
    fairness.require(params, contexts, resampled, measured_data(split), data_checksum(manifest))
    validation = _tables(root, "runs", "validation.csv", params, columns=("epoch", "AP"))
    return Results(
        metrics={name: _json(root, f"detections/{name}/metrics.json") for name in params.variants},
        seed_metrics=_records(root, "detections", "metrics.json", params),
        contexts=contexts,
        resampled=resampled,
        errors=_records(root, "detections", "errors.json", params),
        loss=_tables(root, "runs", "log.csv", params),
        validation=validation.query("AP >= 0"),  # below: no box in the part of the split that was looked at
        density=_tables(root, "runs", "density.csv", params, columns=("step", "kind", "low", "high", "density")),
        gradient_norms=_shares(_tables(root, "runs", "gradient_norms.csv", params)),
        detections={
            name: _best(_json(root, f"detections/{name}/seed_{first}/detections.json"), len(truth["annotations"]))
            for name in params.variants
        },
        manifest=manifest,
        truth=truth,
        images=root / "data" / params.data.name / split["folder"],
    )


def existing(path: Path, root: Path) -> Path:
    """Return `path`.

    Raises:
        InputError: it is no file. The message names it relative to `root`.
    """
    if not path.is_file():
        raise InputError(f"{path.relative_to(root)} is missing: run `dvc repro` to make it")
    return path


def _json(root: Path, name: str) -> Any:
    return json.loads(existing(root / name, root).read_text(encoding="utf-8"))


def _best(detections: list[Record], number: int) -> list[Record]:
    """Return the detections with the highest scores.

    A fixed score would not compare like with like: above 0.3, say, GHM-C has several times Focal Loss's boxes.
    """
    return sorted(detections, key=lambda found: -found["score"])[:number]


def _records(root: Path, folder: str, name: str, params: Params) -> dict[str, list[dict[str, Any]]]:
    """Read one JSON file of every run: variant -> content, seed by seed."""
    return {
        variant: [_json(root, f"{folder}/{variant}/seed_{seed}/{name}") for seed in params.seeds]
        for variant in params.variants
    }


def _tables(root: Path, folder: str, name: str, params: Params, columns: tuple[str, ...] = ()) -> pd.DataFrame:
    """Stack one CSV file of every run, with the columns `variant` and `seed` in front.

    A file whose `columns` are named may be missing: not every training has that to record.
    """
    tables = [pd.DataFrame({name: [] for name in ("variant", "seed", *columns)})] if columns else []
    for variant, seed in itertools.product(params.variants, params.seeds):
        path = root / folder / variant / f"seed_{seed}" / name
        if columns and not path.is_file():
            continue
        table = pd.read_csv(existing(path, root))
        table.insert(0, "variant", variant)
        table.insert(1, "seed", seed)
        tables.append(table)
    # A training of 0 epochs has an empty log, whose columns have no type.
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


def _shares(counts: pd.DataFrame) -> pd.DataFrame:
    """Add up the histograms of all seeds and give each bin its share of the examples."""
    summed = counts.groupby(["variant", "epoch", "kind", "low", "high"], sort=False, as_index=False)["count"].sum()
    total = summed.groupby(["variant", "epoch", "kind"])["count"].transform("sum")
    # A batch without positive anchors has no box gradients: its shares are 0, not 0 / 0.
    return summed.assign(share=summed["count"] / total.clip(lower=1))
