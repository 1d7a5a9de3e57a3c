"""What a person sees of a training run, and its tables. Only the first process of a run has one."""

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from tqdm import tqdm

from ghm.runs import COLUMNS, LOG, VALIDATION
from ghm.training import cost
from ghm.training.cost import Rest

LITTLE = 30  # seconds that nobody needs to be told
TOLD_AFTER = 20  # steps, of what all will cost
CHANGED = 0.25  # share of the time left by which it must differ from what was said to be said again
_SUMS = ("loss", "loss_cls", "loss_bbox", "grad_norm", "positives", "steps")
_log = logging.getLogger(__name__)

Row = Mapping[str, float | int | str]


class Progress:
    """The tables of one training run, and a bar on a terminal or a line for each row of the log elsewhere.

    A row of the log holds the mean of each value over the steps since the last row. What an epoch leaves over without a
    full interval is in no row. Each row of a table is in its file in `folder` as soon as it is known.

    Args:
        folder: of the run; it exists. Tables of an earlier start in it are deleted.
        name: of the run, for people.
        steps: in an epoch.
        interval: steps between rows of the log, at most `steps`.
        batch_size: images per step, of all processes together.
        rest: what the pipeline has to do afterwards; None to say nothing of it.
        watched: images that are measured after each epoch.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        epochs: int,
        steps: int,
        interval: int,
        batch_size: int,
        rest: Rest | None = None,
        watched: int = 0,
    ) -> None:
        self._folder, self._name = folder, name
        self._epochs, self._steps, self._interval, self._batch_size = epochs, steps, interval, batch_size
        self._rest, self._watched = rest, watched
        self._paused = False  # whether there was a break between epochs since the first step of this start
        self._told: float | None = None  # when all will be done
        self._tables: dict[str, list[Row]] = {table: [] for table in COLUMNS}
        for table in COLUMNS:
            (folder / table).unlink(missing_ok=True)
        self._sums = dict.fromkeys(_SUMS, 0.0)  # since the last row
        self._step = 0
        self._seconds = 0.0  # of earlier starts
        self._started = perf_counter()
        self._timed_from: tuple[int, float] | None = None  # the first step of this start, which warms up, and its end
        self._bar = _Bar(total=epochs * steps, desc=name, dynamic_ncols=True, disable=None)

    def step(self, epoch: int, step: int, values: Mapping[str, float], lr: float) -> bool:
        """Take in what a step gave; True if it finished a row of the log.

        Args:
            epoch: that runs, from 0.
            step: from 1, counted over the whole run.
            values: loss, loss_cls, loss_bbox, grad_norm and positives of this step.
            lr: learning rate of this step.
        """
        step_in_epoch = (step - 1) % self._steps + 1
        if step_in_epoch == 1:
            self._sums = dict.fromkeys(_SUMS, 0.0)
        self._step = step
        self._timed_from = self._timed_from or (step, perf_counter())
        for name in _SUMS:
            self._sums[name] += 1 if name == "steps" else float(values[name])
        finished = step_in_epoch % self._interval == 0
        if finished:
            means = {name: total / self._sums["steps"] for name, total in self._sums.items()}
            self._sums = dict.fromkeys(_SUMS, 0.0)
            known = {**means, "step": step, "epoch": epoch + 1, "lr": float(lr)}
            row = {column: known[column] for column in COLUMNS[LOG]}
            self.record(LOG, [row])
            self._show(row, step_in_epoch)
        if finished or step == min(self._timed_from[0] + TOLD_AFTER, self._epochs * self._steps // 2):
            self._tell()
        self._bar.update(step - self._bar.n)
        return finished

    def measured(self, epoch: int, ap: float) -> None:
        """Keep the AP after `epoch` epochs on a part of the validation split; -1 if there was nothing to measure."""
        self.record(VALIDATION, [{"epoch": epoch, "AP": float(ap)}])
        self._paused = True
        if ap < 0:
            _log.info("%s: no AP after epoch %d: a part of the validation split has no boxes", self._name, epoch)
            return
        _log.info("%s: AP so far %.1f after epoch %d of %d", self._name, 100 * ap, epoch, self._epochs)

    def record(self, table: str, rows: Sequence[Row]) -> None:
        """Append rows to a table, one of `runs.COLUMNS`."""
        if rows:
            self._tables[table] += rows
            _append(self._folder / table, table, rows)

    def state(self) -> dict[str, Any]:
        """All that `restore` needs, in numbers, strings, lists and dictionaries."""
        return {
            "step": self._step,
            "sums": dict(self._sums),
            "tables": {table: [dict(row) for row in rows] for table, rows in self._tables.items()},
            "seconds": self.seconds,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, in a new Progress."""
        self._step = state["step"]
        self._sums = dict(state["sums"])
        self._seconds, self._started = state["seconds"], perf_counter()
        for table, rows in state["tables"].items():
            self.record(table, rows)
        self._bar.initial = self._bar.n = self._bar.last_print_n = self._step
        self._bar.refresh()

    def write(self, folder: Path) -> None:
        """Write all tables; of those that only some losses have, the ones with rows."""
        for table, rows in self._tables.items():
            if rows or table in (LOG, VALIDATION):
                _append(folder / table, table, rows)

    @property
    def seconds(self) -> float:
        """Seconds of training over all its starts, without the time between them."""
        return self._seconds + perf_counter() - self._started

    def close(self) -> None:
        """Let go of the terminal."""
        self._bar.close()

    def _show(self, row: Row, step_in_epoch: int) -> None:
        """A row of the log beside the bar, or as a line."""
        epoch = f"epoch {row['epoch']}/{self._epochs}"
        loss = "loss {loss:.3f} (cls {loss_cls:.3f}, box {loss_bbox:.3f})".format(**row)
        if not self._bar.disable:
            self._bar.set_postfix_str(f"{epoch}, {loss}", refresh=False)
            return
        parts = [epoch, f"step {step_in_epoch}/{self._steps}", loss, f"lr {row['lr']:.3g}"]
        if times := self._times():
            per_image, _, left, in_all = times
            parts += [f"{1 / per_image:.1f} images/s", f"{tqdm.format_interval(left)} left"]
            parts += [f"{tqdm.format_interval(in_all)} in all"] * bool(self._rest)
        _log.info("%s: %s", self._name, ", ".join(parts))

    def _tell(self) -> None:
        """Say what all will take, after a few steps and when that has changed much."""
        if not self._rest or not (times := self._times()):
            return
        _, whole, _, left = times
        end = perf_counter() + left
        if self._told is None or abs(end - self._told) > max(CHANGED * left, LITTLE):
            self._told = end
            _log.info(
                "%s: this training takes about %s; %s are left until all is done, with %s; peak memory so far %s",
                *(self._name, tqdm.format_interval(whole), tqdm.format_interval(left), self._rest, cost.memory()),
            )

    def _times(self) -> tuple[float, float, float, float] | None:
        """Seconds for an image, for this run, of that left, and left until all is done; None after a single step."""
        first, since = self._timed_from or (self._step, 0.0)
        if self._step <= first:
            return None
        pace = (perf_counter() - since) / (self._step - first)
        per_image = pace / self._batch_size
        pause = (
            0.0 if self._paused else self._watched * per_image * cost.TESTED
        )  # once there was one, it is in the pace
        steps, pauses = self._epochs * self._steps, self._epochs - (self._step - 1) // self._steps
        whole, left = steps * pace + (1 + self._epochs) * pause, (steps - self._step) * pace + pauses * pause
        return per_image, whole, left, left + (self._rest.seconds(whole, per_image) if self._rest else 0.0)


class _Bar(tqdm):
    monitor_interval = 0  # no thread beside the training, whose loader forks


def _append(path: Path, table: str, rows: Sequence[Row]) -> None:
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS[table], lineterminator="\n")
        if not file.tell():
            writer.writeheader()
        writer.writerows(rows)
