"""What the other stages left on disk, read into tables with one row per measurement."""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from ghm import fingerprint, runs, truth
from ghm.errors import InputError
from ghm.evaluation import matches
from ghm.evaluation.bootstrap import Resampled
from ghm.params import Params

OPTIONAL = (runs.VALIDATION, runs.DENSITY)  # tables that not every run has
Content = TypeVar("Content")


@dataclass(frozen=True)
class Results:
    """The finished runs of every variant and seed, in the order of `params.yaml`."""

    metrics: dict[str, dict[str, Any]]  # of each variant: what `evaluation.run.summary` has, mean over seeds
    seed_metrics: dict[str, list[dict[str, Any]]]  # of each variant: the same, seed by seed
    records: dict[str, list[runs.Record]]  # of each variant, seed by seed
    resampled: dict[str, list[Resampled]]  # of each variant, seed by seed
    outcomes: dict[str, list[dict[str, Any]]]  # of each variant, seed by seed: what `evaluation.outcome.measure` has
    loss: pd.DataFrame  # variant, seed and the columns of `runs.LOG`
    validation: pd.DataFrame  # variant, seed, epoch, AP: on a part of the validation split
    density: pd.DataFrame  # variant, seed and the columns of `runs.DENSITY`: of losses with a moving average
    gradient_norms: pd.DataFrame  # variant, epoch, kind, low, high, count, share; all seeds together
    # Of each variant: the first seed's best detections, as many as there are true boxes, best first. COCO results with
    # `hit`: the id of the true box that the detection is matched to at IoU 0.5, or 0 where it is a false positive.
    detections: dict[str, list[dict[str, Any]]]
    manifest: dict[str, Any]  # data/<name>.json
    truth: dict[str, list[dict[str, Any]]]  # COCO images, annotations, categories of the reported split
    images: Path  # folder of the reported split


def read(params: Params, root: Path) -> Results:
    """Read the runs that `params` describes from the repository at `root`.

    Raises:
        FileNotFoundError: a file is missing.
        InputError: the runs may not be compared.
    """

    def per_seed(folder: Callable[..., Path], name: str, load: Callable[[Path], Content]) -> dict[str, list[Content]]:
        return {
            variant: [load(folder(variant, seed, root) / name) for seed in params.seeds] for variant in params.variants
        }

    home = root / "data" / params.data.name
    manifest = _json(home.with_name(f"{home.name}.json"))
    split = manifest["splits"][params.evaluate.split]
    annotations = truth.read(home / split["annotations"])
    records = per_seed(runs.run_folder, runs.RECORD, _record)
    resampled = per_seed(runs.detections_folder, runs.RESAMPLED, Resampled.load)
    _require_comparable(params, records, resampled, manifest)
    first = {variant: runs.detections_folder(variant, params.seeds[0], root) for variant in params.variants}
    return Results(
        metrics={name: _json(folder.parent / runs.METRICS) for name, folder in first.items()},
        seed_metrics=per_seed(runs.detections_folder, runs.METRICS, _json),
        records=records,
        resampled=resampled,
        outcomes=per_seed(runs.detections_folder, runs.OUTCOME, _json),
        loss=_table(params, root, runs.LOG),
        validation=_table(params, root, runs.VALIDATION).query("AP >= 0"),  # -1: no box to measure on
        density=_table(params, root, runs.DENSITY),
        gradient_norms=_shares(_table(params, root, runs.GRADIENT_NORMS)),
        detections={name: _best(folder, len(annotations["annotations"])) for name, folder in first.items()},
        manifest=manifest,
        truth=annotations,
        images=home / split["folder"],
    )


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _record(path: Path) -> runs.Record:
    try:
        return runs.Record.read(path.parent)
    except TypeError as error:
        raise InputError(f"{path} was written by another version ({error}): run `dvc repro`") from None


def _best(folder: Path, number: int) -> list[dict[str, Any]]:
    """The detections with the highest scores, with `hit`.

    A fixed score would not compare like with like: above 0.3, say, GHM-C has several times Focal Loss's boxes. What
    hits a box is decided by falling score, so the worse detections that are left out change nothing.
    """
    detections = _json(folder / runs.DETECTIONS)
    hits = matches.read(folder).tolist()
    pairs = sorted(zip(detections, hits, strict=True), key=lambda pair: -pair[0]["score"])[:number]
    # Below 0: it counts neither way, for it hits a crowd.
    return [{**detection, "hit": hit} for detection, hit in pairs if hit >= 0]


def _table(params: Params, root: Path, name: str) -> pd.DataFrame:
    """Stack one CSV file of every run, with the columns `variant` and `seed` in front."""
    tables = [pd.DataFrame({column: [] for column in ("variant", "seed", *runs.COLUMNS[name])})]
    for variant, seed in itertools.product(params.variants, params.seeds):
        path = runs.run_folder(variant, seed, root) / name
        if name in OPTIONAL and not path.is_file():
            continue
        table = pd.read_csv(path)
        table.insert(0, "variant", variant)
        table.insert(1, "seed", seed)
        tables.append(table)
    # A run of 0 epochs has an empty log, whose columns have no type.
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


def _shares(counts: pd.DataFrame) -> pd.DataFrame:
    """Add up the histograms of all seeds and give each bin its share of the examples."""
    summed: Any = counts.groupby(["variant", "epoch", "kind", "low", "high"], sort=False, as_index=False)["count"].sum()
    total = summed.groupby(["variant", "epoch", "kind"])["count"].transform("sum")
    # A batch without positive anchors has no box gradients: its shares are 0, not 0 / 0.
    return summed.assign(share=summed["count"] / total.clip(lower=1))


def _require_comparable(
    params: Params, records: dict[str, list[runs.Record]], resampled: dict[str, list[Resampled]], manifest: Any
) -> None:
    """Refuse runs of other data or code, or that differ in more than losses and seeds, with a list of them."""
    base = next(iter(records.values()))[0]
    described = f"data/{params.data.name}.json describes"
    split = params.evaluate.split
    measured_on = fingerprint.measured_data(manifest["splits"][split])
    problems = []
    for record, measured in zip(itertools.chain(*records.values()), itertools.chain(*resampled.values()), strict=True):
        name = f"{record.variant}, seed {record.seed}"
        if measured.measured_on != measured_on:
            problems.append(f"{name} was measured on other annotations or images of {split} than {described}")
        if record.conditions["data"] != fingerprint.data_checksum(manifest):
            problems.append(f"{name} was trained on other data than {described}")
        differ = [key for key, value in sorted(base.conditions.items()) if record.conditions.get(key) != value]
        if keys := [key for key in differ if key != "data"]:
            problems.append(
                f"{name} (revision {record.revision}) differs from {base.variant}, seed {base.seed} (revision "
                f"{base.revision}) in {', '.join(keys)}"
            )
    if problems:
        raise InputError(f"these runs cannot be compared: {'; '.join(problems)}: run `dvc repro`")
