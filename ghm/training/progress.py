"""What a person sees of a training, and its log. Only the first process of a training has one."""

import csv
import importlib
import importlib.util
import io
import logging
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

import pandas as pd
from tqdm import tqdm

from ghm import files
from ghm.errors import InputError

COLUMNS = ["step", "epoch", "loss", "loss_cls", "loss_bbox", "lr", "grad_norm", "positives"]

_MEANS = ("loss", "loss_cls", "loss_bbox", "grad_norm", "positives")
_TYPES = {
    "log": {column: "int64" if column in ("step", "epoch") else "float64" for column in COLUMNS},
    "validation": {"epoch": "int64", "AP": "float64"},
}
_SHORTEST_BAR = 6  # characters, between two bars
_log = logging.getLogger(__name__)

Row = dict[str, float | int | str]


class Progress:
    """The log of one training, and a bar on a terminal or a line for each row of the log elsewhere.

    A row holds the mean of each value over the steps since the last row. What an epoch leaves over without a full
    interval is in no row. Each row is in `folder/log.csv` as soon as it is finished; measured APs are in
    `validation.csv`, and other tables in a file of their name.

    Args:
        folder: of the training; it exists.
        name: of the training, for people.
        steps: in an epoch.
        interval: steps between rows of the log, at most `steps`.
        batch_size: images in a step, of all processes together.
        trackers: where to show the rows as well: tensorboard, or nothing.
        stream: where the bar goes if it is a terminal; without one, standard error.

    Raises:
        InputError: a tracker is not installed.
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
        trackers: Sequence[str] = (),
        stream: TextIO | None = None,
    ) -> None:
        if not 1 <= interval <= steps:
            raise ValueError(f"interval {interval} is not within 1 and the {steps} steps of an epoch")
        _require(trackers)
        self._folder = folder
        self._name = name
        self._epochs = epochs
        self._steps = steps
        self._interval = interval
        self._batch_size = batch_size
        self._trackers = trackers
        self._board: _TensorBoard | None = None
        self._first_step = 1
        self._tables = _Tables(folder)
        self._sums = dict.fromkeys(_MEANS, 0.0)
        self._count = 0
        self._step = 0
        self._pace = _Pace(window=max(3 * interval, 50))
        self._seconds = 0.0
        self._since: float | None = perf_counter()
        stream = sys.stderr if stream is None else stream
        self._bar = None
        if stream is not None and stream.isatty():
            self._bar = _Bar(stream, name, epochs * steps, self._texts)

    def step(self, epoch: int, step: int, values: Mapping[str, float], lr: float) -> bool:
        """Take in what a step gave; True if it finished a row of the log.

        Args:
            epoch: that runs, from 0.
            step: from 1, counted over the whole training.
            values: loss, loss_cls, loss_bbox, grad_norm and positives of this step.
            lr: learning rate of this step.
        """
        within = (step - 1) % self._steps + 1
        self._pace.tick(first=within == 1)
        self._step = step
        if within == 1:
            self._clear()
        for name in _MEANS:
            self._sums[name] += float(values[name])
        self._count += 1
        finished = within % self._interval == 0
        if finished:
            self._finish(epoch, within, lr)
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
        return finished

    def measured(self, epoch: int, ap: float) -> None:
        """Keep the AP after `epoch` epochs on a part of the validation split; -1 if there was nothing to measure."""
        self._tables.add("validation", [{"epoch": epoch, "AP": float(ap)}])
        if ap >= 0:
            self._track(epoch * self._steps, {"AP": float(ap)})
            found = f"AP {100 * ap:.1f} after epoch {epoch} of {self._epochs}, on a part of the validation split"
        else:
            found = f"no AP after epoch {epoch} of {self._epochs}: nothing to find in a part of the validation split"
        self._say(logging.INFO, found)

    def record(self, kind: str, rows: list[Row]) -> None:
        """Append rows, all with the same columns, to another table of the training."""
        if kind in _TYPES:
            raise ValueError(f"{kind} is a table of its own")
        self._tables.add(kind, rows)

    def warn(self, text: str) -> None:
        """Show a line above the bar, or a warning in the log."""
        self._say(logging.WARNING, text)

    def state(self) -> dict[str, Any]:
        """All that `restore` needs, in plain numbers, strings, lists and dictionaries."""
        return {
            "step": self._step,
            "count": self._count,
            "sums": dict(self._sums),
            "tables": self._tables.copy(),
            "seconds": self.seconds,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, in a new Progress. Rows that were written after it vanish."""
        self._step = state["step"]
        self._count = state["count"]
        self._sums = dict(state["sums"])
        self._tables.replace(state["tables"])
        self._seconds = state["seconds"]
        self._since = perf_counter()
        self._first_step = self._step + 1
        if self._bar is not None:
            self._bar.start_at(self._step)

    def tables(self) -> dict[str, pd.DataFrame]:
        """The log, the measured APs, and what else was recorded, in the order of its first record."""
        return self._tables.frames()

    @property
    def seconds(self) -> float:
        """Seconds of training over all its starts, without the time between them."""
        return self._seconds + (perf_counter() - self._since if self._since is not None else 0.0)

    def close(self) -> None:
        """Stop the clock, and let go of the terminal and the trackers."""
        self._seconds, self._since = self.seconds, None
        if self._bar is not None:
            self._bar.close()
        if self._board is not None:
            self._board.close()
        self._board = None

    def _clear(self) -> None:
        self._sums = dict.fromkeys(_MEANS, 0.0)
        self._count = 0

    def _finish(self, epoch: int, within: int, lr: float) -> None:
        values = {"step": self._step, "epoch": epoch + 1, "lr": float(lr), **self._means()}
        row: Row = {column: values[column] for column in COLUMNS}
        self._clear()
        self._tables.add("log", [row])
        self._track(self._step, _scalars(row))
        if self._bar is None:
            parts = [
                f"epoch {epoch + 1}/{self._epochs}",
                f"step {within}/{self._steps}",
                *_loss(row, whole=True),
                f"lr {lr:.3g}",
                *self._ap(),
                *self._rate(),
                *(f"{_duration(seconds)} left" for seconds in self._left()),
            ]
            self._say(logging.INFO, ", ".join(parts))

    def _means(self) -> dict[str, float]:
        return {name: total / self._count for name, total in self._sums.items()}

    def _say(self, level: int, text: str) -> None:
        if self._bar is None:
            _log.log(level, "%s: %s", self._name, text)
        else:
            self._bar.say(f"{self._name}: {text}")

    def _texts(self) -> list[str]:
        """What the bar tells, from all of it to the least."""
        epoch = f"epoch {(max(self._step, 1) - 1) // self._steps + 1}/{self._epochs}"
        rows = self._tables.rows["log"]
        values = rows[-1] if rows else self._means() if self._count else {}
        whole, loss = _loss(values, whole=True), _loss(values, whole=False)
        ap, rate = self._ap(), self._rate()
        short_ap = [text.replace(" so far", "") for text in ap]
        left = [f"{tqdm.format_interval(seconds)} left" for seconds in self._left()]
        choices = [[*whole, *ap, *rate], [*whole, *short_ap], [*loss, *short_ap], loss]
        return [", ".join([epoch, *choice, *left]) for choice in choices]

    def _ap(self) -> list[str]:
        measured = [row["AP"] for row in self._tables.rows["validation"]]
        return [f"AP so far {100 * float(measured[-1]):.1f}"] if measured and float(measured[-1]) >= 0 else []

    def _rate(self) -> list[str]:
        seconds = self._pace.step
        return [f"{self._batch_size / seconds:.1f} images/s"] if seconds else []

    def _left(self) -> list[float]:
        epochs = self._epochs - (max(self._step, 1) - 1) // self._steps
        seconds = self._pace.left(self._epochs * self._steps - self._step, epochs)
        return [] if seconds is None else [seconds]

    def _track(self, step: int, values: dict[str, float]) -> None:
        if "tensorboard" not in self._trackers:
            return
        if self._board is None:
            # Not before: only now is it known where a restored training goes on.
            self._board = _TensorBoard(self._folder / "tensorboard", self._first_step)
        self._board.write(step, values)


class _Tables:
    """Rows by the name of their table, in memory and as CSV in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.rows: dict[str, list[Row]] = {name: [] for name in _TYPES}
        self._folder = folder
        self._begun: set[str] = set()

    def add(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if not rows:
            return
        plain = [_plain(row) for row in rows]
        known = self.rows.get(name, [])
        columns = [*known, *plain][0].keys()
        if any(row.keys() != columns for row in plain):
            raise ValueError(f"a row for {name} has other columns than {', '.join(columns)}")
        self.rows[name] = known
        known.extend(plain)
        if name in self._begun:
            with self._path(name).open("a", encoding="utf-8") as file:
                file.write(_csv(plain, list(columns), header=False))
        else:
            self._write(name)

    def copy(self) -> dict[str, list[Row]]:
        return {name: [dict(row) for row in rows] for name, rows in self.rows.items()}

    def replace(self, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        self.rows = {name: [_plain(row) for row in rows] for name, rows in tables.items()}
        self._begun = set()
        for name, rows in self.rows.items():
            if rows:
                self._write(name)
            else:
                self._path(name).unlink(missing_ok=True)

    def frames(self) -> dict[str, pd.DataFrame]:
        frames = {name: pd.DataFrame(rows) for name, rows in self.rows.items()}
        for name, types in _TYPES.items():
            frames[name] = frames[name].reindex(columns=pd.Index(types)).astype(types)
        return frames

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.csv"

    def _write(self, name: str) -> None:
        """Whole: an earlier start may have left rows that are no longer of the training."""
        rows = self.rows[name]
        files.write_text(self._path(name), _csv(rows, list(rows[0]), header=True))
        self._begun.add(name)


def _plain(row: Mapping[str, Any]) -> Row:
    """Without NumPy's and torch's scalars, which a checkpoint of plain values cannot hold."""
    return {str(name): value.item() if hasattr(value, "item") else value for name, value in row.items()}


def _csv(rows: Sequence[Row], columns: list[str], *, header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class _Pace:
    """How long the last steps of this start took, and the breaks between epochs: validation, checkpoints, loaders."""

    def __init__(self, window: int) -> None:
        self._steps: deque[float] = deque(maxlen=window)
        self._breaks: list[float] = []
        self._last: float | None = None

    def tick(self, *, first: bool) -> None:
        """A step has ended, the first of its epoch or another. The first of a start counts for nothing: it warms up."""
        now = perf_counter()
        if self._last is not None:
            (self._breaks if first else self._steps).append(now - self._last)
        self._last = now

    @property
    def step(self) -> float | None:
        """Mean seconds of a step; None as long as nothing is known."""
        return sum(self._steps) / len(self._steps) if self._steps else None

    def left(self, steps: int, breaks: int) -> float | None:
        """Seconds that so many steps and breaks will take; None as long as nothing is known."""
        if self.step is None:
            return None
        pause = sum(self._breaks) / len(self._breaks) if self._breaks else 0.0
        return steps * self.step + breaks * pause


class _Bar(tqdm):
    """A bar with the longest of some texts that fits into the terminal."""

    monitor_interval = 0  # no thread beside the training

    def __init__(self, stream: TextIO, name: str, total: int, texts: Callable[[], list[str]]) -> None:
        self._texts = texts
        super().__init__(total=total, desc=name, file=stream, dynamic_ncols=True, mininterval=0.25, miniters=1)

    @property
    def format_dict(self) -> dict[str, Any]:
        values = super().format_dict
        texts = self._texts()
        room = (values["ncols"] or sys.maxsize) - len(f"{self.desc} 100%|| ") - _SHORTEST_BAR
        text = next((text for text in texts if len(text) <= room), texts[-1])
        return {**values, "bar_format": "{desc} {percentage:3.0f}%|{bar}| {text}", "text": text}

    def start_at(self, step: int) -> None:
        self.initial = self.n = self.last_print_n = step
        self.refresh()

    def say(self, text: str) -> None:
        self.write(text, file=self.fp)


class _TensorBoard:
    """Event files; TensorBoard hides what an earlier start wrote at `first_step` and later."""

    def __init__(self, folder: Path, first_step: int) -> None:
        module = importlib.import_module("torch.utils.tensorboard")
        self._writer = module.SummaryWriter(str(folder), purge_step=first_step)

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _require(trackers: Sequence[str]) -> None:
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"machine.trackers: {name} is not installed: `pip install {name}`, or take it out of machine.trackers"
            )
        importlib.import_module("torch.utils.tensorboard")


def _scalars(row: Row) -> dict[str, float]:
    return {column: float(row[column]) for column in COLUMNS if column != "step"}


def _loss(values: Mapping[str, Any], *, whole: bool) -> list[str]:
    if not values:
        return []
    parts = " (cls {loss_cls:.3f}, box {loss_bbox:.3f})".format(**values) if whole else ""
    return [f"loss {values['loss']:.3f}{parts}"]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
