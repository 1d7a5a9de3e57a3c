"""The steps of a training run: forward, backward, watch, update; and a state after any of them to go on from.

Loss terms that are logged are means over all processes. The device decides whether the weights move; the host reads the
numbers of a step when the next one is on its way.
"""

import itertools
import logging
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghm import config
from ghm.errors import InputError
from ghm.params import Params
from ghm.runs import DENSITY, GRADIENT_NORMS
from ghm.training import gradient_norms, guards, randomness, state
from ghm.training.batches import Batch
from ghm.training.engine import Engine, Numbers
from ghm.training.processes import Processes
from ghm.training.progress import Progress
from ghm.training.samples import BadImages
from ghm.words import count

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_log = logging.getLogger(__name__)


class Loop:
    """The steps of a run, and what is measured and kept between them.

    Args:
        engine: with model and optimiser.
        loader: see `batches.loader`.
        variant: of the parameters.
        folder: where checkpoints are written.
        processes: those that share the run.
        progress: the tables, on the first process; None on the others.
        measure_ap: of the detector, AP on a part of the validation split; None to measure nothing.
    """

    def __init__(
        self,
        engine: Engine,
        loader: Any,
        parameters: Params,
        variant: str,
        folder: Path,
        processes: Processes,
        *,
        progress: Progress | None,
        measure_ap: Callable[[Any], float] | None,
    ) -> None:
        self.engine, self.loader, self.parameters, self.variant = engine, loader, parameters, variant
        self.folder, self.processes = folder, processes
        self.progress, self.measure_ap = progress, measure_ap
        self.bad_images = BadImages(parameters.data.max_bad_images)
        self.watch = guards.Watch()
        self.epoch = self.step = self.step_in_epoch = 0  # done
        self.left_out = 0  # images that no process could read
        self._taken: deque[_Taken] = deque()  # steps whose numbers have not been read
        self._saved_at = time.monotonic()

    def run(self, start: tuple[Path, dict[str, Any]] | None) -> None:
        """Train to the last epoch, from a checkpoint and its content or from the beginning.

        Raises:
            InputError: a loss is not finite, too many images cannot be read, the checkpoint is of another model or
                optimiser, or there is no room for one.
            SystemExit: the process was told to stop, and has saved where it was.
        """
        if start is not None:
            self._restore(*start)
        elif self.progress:
            self._measure_norms()
        self.processes.wait()
        with _noted_signals() as self.stop_signals:
            try:
                while self.epoch < self.parameters.train.epochs:
                    self._run_epoch()
            finally:
                # At its exit Python would send the loader's processes SIGTERM, which they ignore, and wait.
                iterator: Any = self.loader._iterator
                if iterator is not None:
                    iterator._shutdown_workers()

    def _run_epoch(self) -> None:
        """Take the steps that this epoch still has, measure, and save."""
        self.engine.model.train()
        accumulate = self.parameters.train.accumulate
        self.loader.batch_sampler.start(self.epoch, self.step_in_epoch * accumulate)
        with randomness.undisturbed():  # a loader draws a seed for its workers, which have no use for it
            batches = iter(self.loader)
        while parts := list(itertools.islice(batches, accumulate)):
            self._take_step(parts)
            self._settle(1)
        self._settle(0)
        self.epoch += 1
        self.step_in_epoch = 0
        if self.progress:
            self._measure_norms()
            if self.measure_ap:
                with randomness.undisturbed():
                    self.progress.measured(self.epoch, self.measure_ap(self.engine.result.eval()))
        self.processes.wait()
        self._save()
        self._stop_if_told(self.processes.add(self._signal_counts()))

    def _take_step(self, parts: list[Batch]) -> None:
        """Take a step, without waiting for its numbers."""
        for line in self.bad_images.add([image for part in parts for image in part.unreadable]):
            _log.warning(line)
        self.bad_images.require()
        parts = [part for part in parts if len(part)]
        if not parts and self.processes.world_size > 1:
            raise InputError(
                "no image of a process's batch can be read, and the other processes cannot take a step without it: "
                f"{'; '.join(list(self.bad_images.found.values())[-3:])}"
            )
        saved_long_ago = time.monotonic() - self._saved_at >= 60 * self.parameters.machine.checkpoint_minutes
        told = [float(saved_long_ago and self.processes.first), *self._signal_counts()]
        lr = config.learning_rate(self.engine.cfg.schedule, self.step)
        numbers = self.engine.step(parts, lr, told) if parts else None  # a step without images is left out
        self.step += 1
        self.step_in_epoch += 1
        self._taken.append(_Taken(self.step, parts, lr, told, numbers))

    def _settle(self, most: int) -> None:
        """Wait for the numbers of steps until `most` steps have theirs on the way; save and stop if a step is told to.

        So the device has the next step to work on while the host looks at one. What was not finite has moved no
        weight, and no later step has either.
        """
        told = [0.0] * (1 + len(_SIGNALS))
        while len(self._taken) > most:
            told = [one + other for one, other in zip(told, self._read(self._taken.popleft()), strict=True)]
            if any(told):
                most = 0
        if any(told):
            self._save()
        self._stop_if_told(told[1:])

    def _read(self, taken: "_Taken") -> list[float]:
        """Report a step. Returns the sums of what all processes told: whether to save, and the signals."""
        if taken.numbers is None:
            return taken.told
        numbers = taken.numbers
        values, told = numbers.read()
        # With float16 the gradient may overflow: that step was left out.
        checked = values.keys() - ({"grad_norm"} if self.parameters.train.precision == "fp16" else set())
        if not all(math.isfinite(values[name]) for name in checked):
            raise guards.non_finite(
                self.engine.detector,
                taken.parts,
                dict(zip(numbers.names, numbers.own.tolist(), strict=True)),
                [*itertools.compress(numbers.weights, (~numbers.norm_W.isfinite()).tolist())],
                step=taken.step,
                epoch=self.epoch + 1,
                parameters=self.parameters,
                variant=self.variant,
            )
        if self.progress is not None:
            whole = {**values, "positives": values.get("positives", 0.0) * self.processes.world_size}
            if warning := self.watch.step(taken.step, whole["loss"]):
                _log.warning(warning)
            if self.progress.step(self.epoch, taken.step, whole, taken.lr):
                self.progress.record(DENSITY, _densities(taken))
        return told

    def _measure_norms(self) -> None:
        assert self.progress
        rows = gradient_norms.measure(self.engine.detector, self.loader.dataset, self.epoch)
        self.progress.record(GRADIENT_NORMS, rows)

    def _save(self) -> None:
        """Write a checkpoint: every process adds what it alone knows."""
        own = {
            "buffers": dict(self.engine.detector.named_buffers()),
            "random": randomness.capture(),
            "bad_images": self.bad_images.found,
        }
        processes = self.processes.gather(state.plain(own))
        if self.progress is not None:
            self._count_left_out(processes)
            meta = {"epoch": self.epoch, "step_in_epoch": self.step_in_epoch, "step": self.step}
            records = self.progress.state()
            state.save(self.folder, {**self.engine.state(), "meta": meta, "processes": processes, "records": records})
        self._saved_at = time.monotonic()

    def _count_left_out(self, processes: list[dict[str, Any]]) -> None:
        """Add up the images that could not be read over all processes."""
        all_images = BadImages(self.bad_images.most)
        for process in processes:
            all_images.found |= process["bad_images"]
        all_images.require()
        self.left_out = len(all_images.found)

    def _restore(self, source: Path, content: dict[str, Any]) -> None:
        self.engine.restore(source, content)
        meta = content["meta"]
        self.epoch, self.step_in_epoch, self.step = meta["epoch"], meta["step_in_epoch"], meta["step"]
        self._restore_process(content["processes"])
        if self.progress is not None:
            self.progress.restore(content["records"])
            self._count_left_out(content["processes"])

    def _restore_process(self, processes: list[dict[str, Any]]) -> None:
        """Take what this process had: its random numbers, and the buffers that differ between processes."""
        if len(processes) != self.processes.world_size:
            _log.warning(
                "the checkpoint is of %s and there are %d now: the run goes on, but not to the same bits",
                count(len(processes), "process|processes"),
                self.processes.world_size,
            )
        own = processes[self.processes.rank % len(processes)]
        for name, buffer in self.engine.detector.named_buffers():
            buffer.copy_(own["buffers"][name])
        self.bad_images.found = dict(own["bad_images"])
        randomness.restore(own["random"])

    def _signal_counts(self) -> list[float]:
        return [float(self.stop_signals.count(number)) for number in _SIGNALS]

    def _stop_if_told(self, counts: list[float]) -> None:
        for number in itertools.compress(_SIGNALS, counts):
            _log.warning("stopped by %s after step %d: the same command goes on from there", number.name, self.step)
            raise SystemExit(128 + number)


@dataclass(frozen=True)
class _Taken:
    """A step whose numbers may still be on their way."""

    step: int  # from 1, counted over the whole run
    parts: list[Batch]
    lr: float
    told: list[float]  # by this process: whether to save, and signals
    numbers: Numbers | None


def _densities(taken: _Taken) -> list[dict[str, float | int | str]]:
    """What stood for the number of examples in each unit region of the losses that harmonise."""
    assert taken.numbers
    return [
        {"step": taken.step, "kind": kind, "low": k / len(values), "high": (k + 1) / len(values), "density": density}
        for kind, density_K in taken.numbers.density_K.items()
        for values in [density_K.tolist()]
        for k, density in enumerate(values)
    ]


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Note SIGTERM and SIGINT in a list instead of ending; the second of a kind ends the process as usual."""
    noted: list[int] = []

    def note(number: int, _frame: object) -> None:
        noted.append(number)
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
