"""What the training runs of a study say: chosen on one split, reported on another, compared on the same images and
seeds.

Shapes: S seeds, B weightings of the images.
"""

import json
from dataclasses import dataclass, field, replace

import numpy as np

from ghm import params, runs, sections
from ghm.errors import InputError
from ghm.evaluation import bootstrap
from ghm.evaluation.bootstrap import Interval, Resampled
from ghm.params import Params
from ghm.runs import Record
from ghm.study import definition, trials
from ghm.study.definition import FOLDER, PARAMS, Cell, Study
from ghm.study.trials import Trial
from ghm.words import label


@dataclass(frozen=True)
class Row:
    """What came of a cell. Metrics are fractions."""

    cell: Cell
    missing: dict[int, str]  # seed -> why it is not there
    chosen_on: dict[int, float]  # seed -> AP on the split to choose on
    reported_on: dict[int, float] = field(default_factory=dict)  # seed -> AP on the split to report on
    # AP, AP50, AP75 on that split: mean over seeds, and its difference to the reference on the same images and seeds.
    intervals: dict[str, Interval | None] = field(default_factory=lambda: dict.fromkeys(bootstrap.METRICS))
    differences: dict[str, Interval | None] = field(default_factory=lambda: dict.fromkeys(bootstrap.METRICS))
    paired: int = 0  # seeds that the reference has, too
    chosen: bool = False

    @property
    def rank(self) -> tuple[int, float]:
        """Number of seeds and mean AP on the split to choose on, where there are any."""
        return len(self.chosen_on), float(np.mean([*self.chosen_on.values()]))


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
    records: dict[Trial, Record] = {}
    resampled: dict[tuple[str, str, str], dict[int, Resampled]] = {}
    rows = []
    for cell in cells:
        wanted = trials.trials(cell, study.seeds, content)
        missing = {trial.seed: why for trial in wanted if (why := trial.why_missing(splits))}
        finished = [trial for trial in wanted if trial.seed not in missing]
        records |= {trial: Record.read(runs.run_folder(trial.variant, trial.seed, trial.folder)) for trial in finished}
        metrics = {trial.seed: (trial.detections(splits[0]) / runs.METRICS).read_text() for trial in finished}
        chosen_on = {seed: float(json.loads(text)["AP"]) for seed, text in metrics.items()}
        resampled[cell.condition, cell.curve, label(cell.value)] = {
            trial.seed: Resampled.load(trial.detections(splits[-1]) / runs.RESAMPLED) for trial in finished
        }
        rows.append(Row(cell, missing, chosen_on))
    if not records:
        raise InputError(f"{FOLDER / name}.yaml: none of its training runs is there: `make study NAME={name}`")
    for place, row in enumerate(rows):
        condition, value = row.cell.condition, label(row.cell.value)
        # Of the same value where the reference is swept too.
        at_value = resampled.get((condition, study.reference, value)) if row.cell.curve != study.reference else {}
        reference = resampled.get((condition, study.reference, ""), {}) if at_value is None else at_value
        rows[place] = _measured(row, resampled[condition, row.cell.curve, value], reference)
    first = next(iter(records))
    return Comparison(
        name,
        study,
        splits,
        rows=tuple(_chosen(rows) if study.chooses else rows),
        images={split: Resampled.load(first.detections(split) / runs.RESAMPLED).images for split in splits},
        parameters=params.parse(content),
        records=tuple(records.values()),
    )


def _measured(row: Row, resampled: dict[int, Resampled], reference: dict[int, Resampled]) -> Row:
    """The row with what its runs measured on the split to report on."""
    pairs = [(resampled[seed], reference[seed]) for seed in resampled if seed in reference]
    if any(mine.measured_on != other.measured_on for mine, other in pairs):
        raise InputError(f"{row.cell.curve} and what it is compared with were judged on different images")
    intervals, differences = dict(row.intervals), dict(row.differences)
    for metric in bootstrap.METRICS:
        if resampled:
            value_SB = np.stack([one.value_B[metric] for one in resampled.values()])
            intervals[metric] = bootstrap.interval(value_SB, next(iter(resampled.values())).images)
        if pairs:
            mine_SB, other_SB = (np.stack([pair[side].value_B[metric] for pair in pairs]) for side in (0, 1))
            differences[metric] = bootstrap.difference(mine_SB, other_SB, pairs[0][0].images)
    reported_on = {seed: float(one.value_B["AP"][0]) for seed, one in resampled.items()}
    return replace(row, reported_on=reported_on, intervals=intervals, differences=differences, paired=len(pairs))


def _chosen(rows: list[Row]) -> list[Row]:
    """The rows, marked where a swept curve has its best mean AP on the split to choose on.

    A value that lacks seeds which others have is not chosen: those that diverged would be left out of its mean.
    """
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = row.cell.condition, row.cell.curve
        if row.cell.value is not None and row.chosen_on and (key not in best or row.rank > best[key].rank):
            best[key] = row
    return [replace(row, chosen=any(row is other for other in best.values())) for row in rows]
