"""What the training runs of a study say: chosen on one split, reported on another, compared on the same images and
seeds.

Shapes: S seeds, B weightings of the images.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ghm import params, sections
from ghm.errors import InputError
from ghm.evaluation import bootstrap
from ghm.evaluation.bootstrap import Interval, Resampled
from ghm.params import Params
from ghm.runs import METRICS, RESAMPLED, Record
from ghm.study import definition, trials
from ghm.study.definition import FOLDER, PARAMS, Cell, Study


@dataclass(frozen=True)
class Row:
    """What came of a cell. Metrics are fractions."""

    cell: Cell
    missing: dict[int, str]  # seed -> why it is not there
    chosen_on: dict[int, float]  # seed -> AP on the split to choose on
    reported_on: dict[int, float]  # seed -> AP on the split to report on
    intervals: dict[str, Interval | None]  # of the mean over seeds: AP, AP50, AP75 on the split to report on
    differences: dict[str, Interval | None]  # to the reference, on the same images and seeds; None for itself
    paired: int  # seeds that the reference has, too
    chosen: bool = False

    @property
    def mean_chosen_on(self) -> float:
        return float(np.mean([*self.chosen_on.values()])) if self.chosen_on else -1.0


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

    def of(self, condition: str, curve: str) -> list[Row]:
        """The rows of a curve, in the order of the values."""
        return [row for row in self.rows if (row.cell.condition, row.cell.curve) == (condition, curve)]


def gather(name: str, study: Study) -> Comparison:
    """Read the training runs that are there, and compare them.

    Raises:
        InputError: there are none, or two that are compared were judged on different images.
    """
    splits, content, cells = definition.splits(study), sections.read(PARAMS), [*definition.cells(study)]
    missing, ap, resampled, records, images = [], [], [], {}, {}
    for cell in cells:
        wanted = trials.trials(cell, study.seeds, content)
        missing.append({trial.seed: why for trial in wanted if (why := trial.why_missing(splits))})
        finished = {trial.seed: trial for trial in wanted if trial.seed not in missing[-1]}
        judged = {seed: (trial.detections(splits[0]) / METRICS).read_text() for seed, trial in finished.items()}
        ap.append({seed: float(json.loads(text)["AP"]) for seed, text in judged.items()})
        resampled.append(
            {seed: Resampled.load(trial.detections(splits[-1]) / RESAMPLED) for seed, trial in finished.items()}
        )
        records |= {trial: Record.read(trial.run()) for trial in finished.values()}
    if not records:
        raise InputError(f"{FOLDER / name}.yaml: none of its training runs is there: `make study NAME={name}`")
    for split in splits:
        images[split] = Resampled.load(next(iter(records)).detections(split) / RESAMPLED).images
    rows = []
    for place, cell in enumerate(cells):
        reference = {} if cell.curve == study.reference else resampled[_reference(study, cells, cell)]
        rows.append(_row(cell, missing[place], ap[place], resampled[place], reference))
    rows = [replace(row, chosen=study.chooses and row is _best(rows, row)) for row in rows]
    return Comparison(name, study, splits, tuple(rows), images, params.parse(content), tuple(records.values()))


def _reference(study: Study, cells: list[Cell], cell: Cell) -> int:
    """The cell that another is compared with: of the same value where the reference is swept too."""
    others = [
        place
        for place, other in enumerate(cells)
        if (other.condition, other.curve) == (cell.condition, study.reference)
    ]
    return next((place for place in others if cells[place].value == cell.value), others[0])


def _row(
    cell: Cell,
    missing: dict[int, str],
    chosen_on: dict[int, float],
    resampled: Mapping[int, Resampled],
    reference: Mapping[int, Resampled],
) -> Row:
    pairs = [(resampled[seed], reference[seed]) for seed in resampled if seed in reference]
    if any(mine.measured_on != other.measured_on for mine, other in pairs):
        raise InputError(f"{cell.curve} and what it is compared with were judged on different images")
    intervals: dict[str, Interval | None] = dict.fromkeys(bootstrap.METRICS)
    differences = dict(intervals)
    for metric in bootstrap.METRICS:
        if resampled:
            value_SB = np.stack([one.value_B[metric] for one in resampled.values()])
            intervals[metric] = bootstrap.interval(value_SB, next(iter(resampled.values())).images)
        if pairs:
            mine_SB, other_SB = (np.stack([pair[side].value_B[metric] for pair in pairs]) for side in (0, 1))
            differences[metric] = bootstrap.difference(mine_SB, other_SB, pairs[0][0].images)
    reported_on = {seed: float(one.value_B["AP"][0]) for seed, one in resampled.items()}
    return Row(cell, missing, chosen_on, reported_on, intervals, differences, len(pairs))


def _best(rows: list[Row], row: Row) -> Row | None:
    """Of a swept curve, the row with the best mean AP on the split to choose on.

    A value that lacks seeds which others have is not chosen: those that diverged would be left out of its mean.
    """
    curve = (row.cell.condition, row.cell.curve)
    others = [
        other
        for other in rows
        if (other.cell.condition, other.cell.curve) == curve and other.cell.value is not None and other.chosen_on
    ]
    return max(others, key=lambda other: (len(other.chosen_on), other.mean_chosen_on), default=None)
