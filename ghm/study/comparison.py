"""What the runs of a study say: chosen on one split, reported on another, compared on the same images and seeds."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ghm import params, runs, sections
from ghm.errors import InputError
from ghm.evaluation.bootstrap import METRICS, Difference, Interval, Resampled, together
from ghm.params import Params
from ghm.report.comparison import difference, interval
from ghm.runs import Record
from ghm.study import definition, trials
from ghm.study.definition import FOLDER, PARAMS, Cell, Study, applied
from ghm.study.pooled import pool
from ghm.study.trials import Trial


@dataclass(frozen=True)
class Row:
    """What came of a cell. Metrics are fractions."""

    cell: Cell
    missing: dict[int, str]  # seed -> why it is not there
    chosen_on: dict[int, float]  # seed -> AP on the split to choose on
    reported_on: dict[int, float]  # seed -> AP on the split to report on
    # AP, AP50, AP75 on that split: mean over seeds, and its difference to the reference on the same images and seeds.
    intervals: dict[str, Interval | None]
    differences: dict[str, Difference | None]
    paired: int  # seeds that the reference has, too
    chosen: bool = False

    @property
    def answers(self) -> bool:
        """Whether this is what the study answers with where it chooses a value."""
        return self.chosen or self.cell.value is None

    @property
    def rank(self) -> tuple[int, float]:
        """Number of seeds and mean AP on the split to choose on, where there are any."""
        return len(self.chosen_on), float(np.mean([*self.chosen_on.values()]))


@dataclass(frozen=True)
class DataSet:
    """The data set of a condition, and what was trained on it."""

    images: dict[str, int]  # of each split
    parameters: Params
    records: tuple[Record, ...]  # of each training run


@dataclass(frozen=True)
class Comparison:
    """A study with all that is said of it."""

    name: str
    study: Study
    splits: tuple[str, ...]  # to choose on the first, to report on the last
    rows: tuple[Row, ...]
    images: dict[str, int]  # of each split
    parameters: Params
    records: tuple[Record, ...]  # of each training run
    # Where conditions are data sets, those with a training run; and for each curve but the reference each metric's mean
    # difference over all conditions, None where one has none.
    data_sets: dict[str, DataSet]
    pooled: dict[str, dict[str, Difference | None]]

    def of(self, condition: str, curve: str) -> list[Row]:
        """The rows of a curve, in the order of the values."""
        return [row for row in self.rows if row.cell.key[:2] == (condition, curve)]

    def answer(self, condition: str, curve: str) -> Row | None:
        """What the study answers with, where that is one row; None where it chose among values and none was trained."""
        return next((row for row in self.of(condition, curve) if row.answers), None)


def gather(name: str, study: Study) -> Comparison:
    """Read the training runs that are there, and compare them.

    Raises:
        InputError: there are none, or two that are compared were judged on different images.
    """
    splits, content, cells = definition.splits(study), sections.read(PARAMS), [*study.cells()]
    wanted = {cell.key: trials.trials(cell, study.seeds, content) for cell in cells}
    why = {trial: trial.why_missing(splits) for trial in itertools.chain(*wanted.values())}
    finished = [trial for trial, reason in why.items() if not reason]
    if not finished:
        reasons = "; ".join(dict.fromkeys(why.values()))
        raise InputError(f"{FOLDER / name}.yaml: none of its training runs is there ({reasons})")
    done = {key: [trial for trial in of_cell if not why[trial]] for key, of_cell in wanted.items()}
    resampled = {
        key: {trial.seed: Resampled.load(trial.detections(splits[-1]) / runs.RESAMPLED) for trial in of_cell}
        for key, of_cell in done.items()
    }
    rows = []
    for cell in cells:
        metrics = {trial.seed: trial.detections(splits[0]) / runs.METRICS for trial in done[cell.key]}
        reference = {}
        if cell.curve != study.reference:  # at the same value where the reference is swept, too
            at_value = replace(cell, curve=study.reference).key
            reference = resampled.get(at_value) or resampled.get((cell.condition, study.reference, ""), {})
        pairs = [(one, reference[seed]) for seed, one in resampled[cell.key].items() if seed in reference]
        if any(one.measured_on != other.measured_on for one, other in pairs):
            raise InputError(f"{cell.curve} and what it is compared with were judged on different images")
        seeds, (paired, others) = [*resampled[cell.key].values()], [*zip(*pairs, strict=True)] or ((), ())
        rows.append(
            Row(
                cell,
                missing={trial.seed: why[trial] for trial in wanted[cell.key] if why[trial]},
                chosen_on={seed: float(json.loads(path.read_text())["AP"]) for seed, path in metrics.items()},
                reported_on={seed: float(one.value_B["AP"][0]) for seed, one in resampled[cell.key].items()},
                intervals={metric: interval(seeds, metric) for metric in METRICS},
                differences={metric: difference(paired, others, metric) for metric in METRICS},
                paired=len(pairs),
            )
        )
    rows = tuple(_judged(_chosen(rows) if study.chooses else rows, study.chooses and splits[0] != splits[-1]))
    has_data_sets = definition.has_data_sets(study, content)
    result = Comparison(
        name,
        study,
        splits,
        rows,
        images=_images(finished[0], splits),
        parameters=params.parse(content),
        records=tuple(map(_record, finished)),
        data_sets=dict(_data_sets(study, splits, content, done)) if has_data_sets else {},
        pooled={},
    )
    return replace(result, pooled=_pooled(result)) if has_data_sets else result


def _images(trial: Trial, splits: tuple[str, ...]) -> dict[str, int]:
    return {split: Resampled.load(trial.detections(split) / runs.RESAMPLED).images for split in splits}


def _record(trial: Trial) -> Record:
    return Record.read(runs.run_folder(trial.variant, trial.seed, trial.folder))


def _data_sets(
    study: Study, splits: tuple[str, ...], content: dict[str, Any], done: dict[tuple[str, str, str], list[Trial]]
) -> Iterator[tuple[str, DataSet]]:
    for condition, changes in study.conditions.items():
        finished = [trial for key, of_cell in done.items() if key[0] == condition for trial in of_cell]
        if finished:
            parameters = params.parse(applied(content, changes))
            yield condition, DataSet(_images(finished[0], splits), parameters, tuple(map(_record, finished)))


def _pooled(result: Comparison) -> dict[str, dict[str, Difference | None]]:
    """Of each curve and metric, over all conditions; the verdicts hold together in each metric."""
    pooled: dict[str, dict[str, Difference | None]] = {}
    for metric in METRICS:
        family = {}
        for curve in [*result.study.curves][1:]:
            answers = [result.answer(condition, curve) for condition in result.study.conditions]
            differences = [row.differences[metric] for row in answers if row]
            known = [minus for minus in differences if minus]
            pooled.setdefault(curve, {})[metric] = None
            if len(known) == len(answers):
                family[curve] = pool(known)
        for curve, minus in together(family).items():
            pooled[curve][metric] = minus
    return pooled


def _chosen(rows: list[Row]) -> list[Row]:
    """The rows, marked where a swept curve has its best mean AP on the split to choose on.

    A value that lacks seeds which others have is not chosen: those that diverged would be left out of its mean.
    """
    swept = (row for row in rows if row.cell.value is not None and row.chosen_on)
    curves = itertools.groupby(swept, lambda row: row.cell.key[:2])
    best = [max(of_curve, key=lambda row: row.rank) for _, of_curve in curves]
    return [replace(row, chosen=any(row is other for other in best)) for row in rows]


def _judged(rows: list[Row], apart: bool) -> list[Row]:
    """The rows, with verdicts that hold together under all conditions, in each metric.

    Args:
        apart: values were chosen on other images, so that those not chosen are no part of the answer: they are judged
            among themselves.
    """
    judged: list[dict[str, Difference | None]] = [{} for _ in rows]
    for metric, answers in itertools.product(METRICS, (True, False)):
        family = {n: row.differences[metric] for n, row in enumerate(rows) if (row.answers or not apart) == answers}
        verdicts = together({n: minus for n, minus in family.items() if minus})
        for n in family:
            judged[n][metric] = verdicts.get(n)
    return [replace(row, differences=differences) for row, differences in zip(rows, judged, strict=True)]
