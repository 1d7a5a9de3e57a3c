"""The steps of a training run: forward, backward, watch, update; and a state after any of them to go on from.

Loss terms that are logged are means over all processes. The weights move when the numbers of a step are known to be
sound.
"""

import itertools
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ghm.errors import InputError
from ghm.losses.statistics import HarmonisedLoss
from ghm.params import Params
from ghm.runs import DENSITY, GRADIENT_NORMS
from ghm.training import gradient_norms, guards, randomness, state
from ghm.training.engine import Engine
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
        variant: of the parameters.
        folder: where checkpoints are written.
        processes: those that share the run.
        progress: the tables, on the first process; None on the others.
        measure_ap: of the detector, AP on a part of the validation split; None to measure nothing.
    """

    def __init__(
        self,
        engine: Engine,
        parameters: Params,
        variant: str,
        folder: Path,
        processes: Processes,
        *,
        progress: Progress | None,
        measure_ap: Callable[[Any], float] | None,
    ) -> None:
        self.engine, self.parameters, self.variant = engine, parameters, variant
        self.folder, self.processes = folder, processes
        self.progress, self.measure_ap = progress, measure_ap
        self.bad_images = BadImages(parameters.data.max_bad_images)
        self.watch = guards.Watch()
        self.epoch = self.step = self.step_in_epoch = 0  # done
        self.left_out = 0  # images that no process could read
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
                batches: Any = self.engine.loader._iterator
                if batches is not None:
                    batches._shutdown_workers()

    def _run_epoch(self) -> None:
        """Take the steps that this epoch still has, measure, and save."""
        self.engine.model.train()
        self.engine.loader.batch_sampler.start(self.epoch, self.step_in_epoch)
        with randomness.undisturbed():  # a loader draws a seed for its workers, which have no use for it
            batches = iter(self.engine.loader)
        for batch in batches:
            self._take_step(batch)
        self.engine.step_schedules(by_epoch=True)
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

    def _take_step(self, batch: dict[str, Any]) -> None:
        for line in self.bad_images.add(batch.pop("unreadable")):
            _log.warning(line)
        self.bad_images.require()
        if not batch["inputs"] and self.processes.world_size > 1:
            raise InputError(
                "no image of a process's batch can be read, and the other processes cannot take a step without it: "
                f"{'; '.join(list(self.bad_images.found.values())[-3:])}"
            )
        own = self.engine.gradients(batch) if batch["inputs"] else {}  # a step without images is left out
        saved_long_ago = time.monotonic() - self._saved_at >= 60 * self.parameters.machine.checkpoint_minutes
        flags = [float(saved_long_ago and self.processes.first), *self._signal_counts()]
        sums = self.processes.add([*own.values(), *flags])
        self.step += 1
        if own:
            values = {name: total / self.processes.world_size for name, total in zip(own, sums, strict=False)}
            self._require_finite(batch, values, own)
            lr = self.engine.lr
            self.engine.update()
            self._report(values, lr)
        self.step_in_epoch += 1
        save, *stop_signals = sums[-len(flags) :]
        if save or any(stop_signals):
            self._save()
        self._stop_if_told(stop_signals)

    def _require_finite(self, batch: dict[str, Any], values: dict[str, float], own: dict[str, float]) -> None:
        """Stop before the weights are spoilt. With fp16 the gradient may overflow: the scaler leaves out that step."""
        checked = values.keys() - ({"grad_norm"} if self.engine.scaler.is_enabled() else set())
        if all(math.isfinite(values[name]) for name in checked):
            return
        raise guards.non_finite(
            self.engine.detector,
            batch,
            own,
            step=self.step,
            epoch=self.epoch + 1,
            parameters=self.parameters,
            variant=self.variant,
        )

    def _report(self, values: dict[str, float], lr: float) -> None:
        if self.progress is None:
            return
        whole = {**values, "positives": values.get("positives", 0.0) * self.processes.world_size}
        if warning := self.watch.step(self.step, whole["loss"]):
            _log.warning(warning)
        if self.progress.step(self.epoch, self.step, whole, lr):
            self.progress.record(DENSITY, self._densities())

    def _densities(self) -> list[dict[str, float | int | str]]:
        """What stands for the number of examples in each unit region of the losses that harmonise."""
        head = self.engine.detector.bbox_head
        return [
            {"step": self.step, "kind": kind, "low": k / loss.bins, "high": (k + 1) / loss.bins, "density": density}
            for kind, loss in (("cls", head.loss_cls), ("box", head.loss_bbox))
            if isinstance(loss, HarmonisedLoss) and loss.acc_sum is not None
            for k, density in enumerate(loss.acc_sum.tolist())
        ]

    def _measure_norms(self) -> None:
        assert self.progress
        images, size = self.engine.loader.dataset, self.parameters.train.batch_size
        self.progress.record(GRADIENT_NORMS, gradient_norms.measure(self.engine.detector, images, size, self.epoch))

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
