"""What the trainings of a study say: chosen on one split, reported on another, compared on the same images and seeds.

Shapes: S seeds, B weightings of the images.
"""

import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML
from tqdm import tqdm

from ghm import fingerprint
from ghm.errors import InputError
from ghm.evaluation import bootstrap
from ghm.evaluation.bootstrap import Interval, Resampled
from ghm.evaluation.run import DETECTIONS, METRICS, RESAMPLED, measure
from ghm.study import definition, trials
from ghm.study.definition import FOLDER, PARAMS, Cell, Study
from ghm.study.trials import Trial


@dataclass(frozen=True)
class Row:
    """What came of a cell. Metrics are fractions."""

    cell: Cell
    lacking: dict[int, str]  # seed -> why it is not there
    chosen_on: dict[int, float]  # seed -> AP on the split to choose on
    reported_on: dict[int, Resampled]  # seed -> metrics on the split to report on
    reference: dict[int, Resampled]  # the same of what it is compared with; empty for the reference itself
    chosen: bool = False

    @property
    def paired(self) -> list[int]:
        """The seeds that the reference has, too."""
        return [seed for seed in self.reported_on if seed in self.reference]

    def interval(self, metric: str = "AP") -> Interval | None:
        """The mean over seeds."""
        found = [each.value_B[metric] for each in self.reported_on.values()]
        images = [each.images for each in self.reported_on.values()]
        return bootstrap.interval(np.stack(found), images[0]) if found else None

    def difference(self, metric: str = "AP") -> Interval | None:
        """This minus the reference, on the same images and seeds."""
        pairs = [(self.reported_on[seed], self.reference[seed]) for seed in self.paired]
        for own, other in pairs:
            if own.measured_on != other.measured_on:
                raise InputError(f"{self.cell.curve} and what it is compared with were judged on different images")
        if not pairs:
            return None
        own_SB, other_SB = (np.stack([pair[side].value_B[metric] for pair in pairs]) for side in (0, 1))
        return bootstrap.difference(own_SB, other_SB, pairs[0][0].images)


@dataclass(frozen=True)
class Comparison:
    """A study with all that is said of it."""

    name: str
    study: Study
    splits: tuple[str, ...]  # to choose on the first, to report on the last
    rows: tuple[Row, ...]
    images: dict[str, int]  # of each split
    params: dict[str, Any]  # content of params.yaml
    contexts: tuple[dict[str, Any], ...]  # of each training: device, versions, revision, ...
    older: int  # trainings with other code than this

    def of(self, condition: str, curve: str) -> list[Row]:
        """The rows of a curve, in the order of the values."""
        return [row for row in self.rows if (row.cell.condition, row.cell.curve) == (condition, curve)]


def gather(name: str, study: Study, jobs: int, root: Path = Path()) -> Comparison:
    """Read the trainings that are there, and compare them.

    Raises:
        InputError: there are none.
    """
    splits = definition.splits(study, root)
    found: list[tuple[Cell, dict[int, Trial], dict[int, str]]] = []
    for cell in definition.cells(study):
        wanted = {seed: trials.trial(cell.variant, seed, cell.changes, root) for seed in study.seeds}
        lacking = {seed: why for seed, each in wanted.items() if (why := trials.lack(each, splits, root))}
        found.append((cell, {seed: each for seed, each in wanted.items() if seed not in lacking}, lacking))
    present = list({each.folder: each for _, own, _ in found for each in own.values()}.values())
    if not present:
        raise InputError(f"{FOLDER / name}.yaml: none of its trainings is there: `python -m ghm.study {name}`")
    for each in present:
        trials.share(each, root)
    _resample(present, splits[-1], jobs)
    rows = [_row(cell, own, lacking, splits) for cell, own, lacking in found]
    manifest = _manifest(present[0])
    return Comparison(
        name=name,
        study=study,
        splits=splits,
        rows=tuple(_chosen(study, [_compared(study, row, rows) for row in rows])),
        images={split: manifest["splits"][split]["images"] for split in splits},
        params=YAML(typ="safe").load(root / PARAMS),
        contexts=tuple(_json(each.folder / "runs" / f"seed_{each.seed}" / "context.json") for each in present),
        older=sum(map(trials.is_older, present)),
    )


def _row(cell: Cell, own: dict[int, Trial], lacking: dict[int, str], splits: Sequence[str]) -> Row:
    return Row(
        cell,
        lacking,
        chosen_on={seed: float(_json(each.run(splits[0]) / METRICS)["AP"]) for seed, each in own.items()},
        reported_on={seed: Resampled.load(each.run(splits[-1]) / RESAMPLED) for seed, each in own.items()},
        reference={},
    )


def _compared(study: Study, row: Row, rows: list[Row]) -> Row:
    """The row with its reference, that of the same value where the reference is swept too."""
    if row.cell.curve == study.reference:
        return row
    place = (row.cell.condition, study.reference)
    others = [other for other in rows if (other.cell.condition, other.cell.curve) == place]
    same = [other for other in others if other.cell.value == row.cell.value]
    return replace(row, reference=(same or others)[0].reported_on)


def _chosen(study: Study, rows: list[Row]) -> list[Row]:
    """The rows, marked where a swept curve has its best mean AP on the split to choose on.

    A value that lacks seeds which others have is not chosen: those that diverged would be left out of its mean.
    """
    chosen = []
    for row in rows:
        own = [
            other for other in rows if (row.cell.condition, row.cell.curve) == (other.cell.condition, other.cell.curve)
        ]
        most = max(len(other.chosen_on) for other in own)
        whole = [other for other in own if other.chosen_on and len(other.chosen_on) == most]
        best = max(whole, key=lambda other: float(np.mean([*other.chosen_on.values()])), default=None)
        chosen.append(study.chooses and row.cell.value is not None and row is best)
    return [replace(row, chosen=each) for row, each in zip(rows, chosen, strict=True)]


def _resample(present: Sequence[Trial], split: str, jobs: int) -> None:
    """Make resampled.npz where it is missing or older than the detections."""
    todo = []
    for each in present:
        made, source = each.run(split) / RESAMPLED, each.run(split) / DETECTIONS
        if not made.is_file() or made.stat().st_mtime < source.stat().st_mtime:
            manifest = _manifest(each)
            described = manifest["splits"][split]
            annotations = each.folder / "data" / manifest["name"] / described["annotations"]
            todo.append((annotations, each.run(split), fingerprint.measured_data(described)))
    workers = min(jobs, len(todo))
    # A process that has run threads must not be forked.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) if workers > 1 else nullcontext()
    with pool as running:
        done = running.map(_measure, todo) if running else map(_measure, todo)
        list(tqdm(done, total=len(todo), desc="resampling", unit="result", disable=None if todo else True))


def _measure(job: tuple[Path, Path, str]) -> None:
    measure(*job)


def _manifest(each: Trial) -> dict[str, Any]:
    """The manifest of the trial's data set."""
    name = YAML(typ="safe").load(each.folder / PARAMS)["data"]["name"]
    path = each.folder / "data" / f"{name}.json"
    if not path.is_file():
        raise InputError(f"{path} is missing: run `dvc repro data backbone`")
    return _json(path)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
