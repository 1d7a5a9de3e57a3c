"""The steps of a training run: forward, backward, watch, update; and a state after any of them to go on from.

Loss terms that are logged are means over all processes. The host waits for the device once per step, for the numbers
that say whether the step is sound; the weights move after that.
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

import torch
from mmengine.hooks import EMAHook
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop
from torch import Tensor

from ghm.errors import InputError
from ghm.losses.statistics import HarmonisedLoss
from ghm.params import Params
from ghm.runs import DENSITY, GRADIENT_NORMS
from ghm.training import gradient_norms, guards, randomness, state
from ghm.training.processes import Processes
from ghm.training.progress import Progress
from ghm.training.samples import BadImages
from ghm.words import count

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_log = logging.getLogger(__name__)


class TrainLoop(EpochBasedTrainLoop):
    """mmengine's loop over epochs, with steps of its own.

    Args:
        runner: mmengine's, with model and optimiser.
        variant: of the parameters.
        folder: where checkpoints and what went wrong are written.
        processes: those that share the run.
        progress: the tables, on the first process; None on the others.
        measure_ap: of the detector, AP on a part of the validation split; None to measure nothing.
        start: a checkpoint to go on from and its content; None to begin.
    """

    def __init__(
        self,
        runner: Any,
        parameters: Params,
        variant: str,
        folder: Path,
        processes: Processes,
        *,
        progress: Progress | None,
        measure_ap: Callable[[Any], float] | None,
        start: tuple[Path, dict[str, Any]] | None,
    ) -> None:
        super().__init__(runner, runner.cfg.train_dataloader, parameters.train.epochs)
        self.parameters, self.variant, self.train = parameters, variant, parameters.train
        self.bad_images = BadImages(parameters.data.max_bad_images)
        self.folder = folder
        self.processes = processes
        self.progress = progress
        self.measure_ap = measure_ap
        self.start = start
        self.watch = guards.Watch()
        self.step_in_epoch = 0  # steps done
        self.left_out = 0  # images that no process could read
        self.detector: Any = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.device = next(self.detector.parameters()).device.type
        self.ema = next((hook for hook in runner.hooks if isinstance(hook, EMAHook)), None)
        self._saved_at = time.monotonic()

    def run(self) -> Any:
        """Train to the last epoch.

        Raises:
            InputError: a loss is not finite, too many images cannot be read, or there is no room for a checkpoint.
            SystemExit: the process was told to stop, and has saved where it was.
        """
        self.runner.call_hook("before_train")
        if self.start is not None:
            self._restore(*self.start)
            self.start = None
        elif self.progress:
            self._measure_norms(0)
        self.processes.wait()
        with _noted_signals() as self.stop_signals:
            try:
                while self._epoch < self._max_epochs:
                    self.run_epoch()
            finally:
                # At its exit Python would send the loader's processes SIGTERM, which they ignore, and wait.
                batches: Any = self.dataloader._iterator
                if batches is not None:
                    batches._shutdown_workers()
        self.runner.call_hook("after_train")
        return self.runner.model

    def run_epoch(self) -> None:
        """Take the steps that this epoch still has, measure, and save."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        sampler: Any = self.dataloader.batch_sampler
        sampler.start(self._epoch, self.step_in_epoch)
        with randomness.undisturbed():  # a loader draws a seed for its workers, which have no use for it
            batches = iter(self.dataloader)
        for batch in batches:
            self._step(batch)
        self.runner.call_hook("after_train_epoch")
        if self.progress:
            self._measure_norms(self._epoch + 1)
            if self.measure_ap:
                self.runner.call_hook("before_val_epoch")  # the moving average of the weights takes their place
                self.detector.eval()
                with randomness.undisturbed():
                    ap = self.measure_ap(self.detector)
                self.detector.train()
                self.runner.call_hook("after_val_epoch", metrics={})
                self.progress.measured(self._epoch + 1, ap)
        self.processes.wait()
        self._epoch += 1
        self.step_in_epoch = 0
        self._save()
        self._stop_if_told(self.processes.add(self._signal_counts()))

    def _step(self, batch: dict[str, Any]) -> None:
        for line in self.bad_images.add(batch.pop("unreadable")):
            _log.warning(line)
        self.bad_images.require()
        optimizer = self.runner.optim_wrapper
        names, own = self._gradients(batch) if self._has_images(batch) else ([], [])
        saved_long_ago = time.monotonic() - self._saved_at >= 60 * self.parameters.machine.checkpoint_minutes
        flags = [float(saved_long_ago and self.processes.first), *self._signal_counts()]
        sums = self.processes.add([*own, *flags])
        if names:
            values = {name: total / self.processes.world_size for name, total in zip(names, sums, strict=False)}
            self._require_finite(batch, values, dict(zip(names, own, strict=True)))
            lr = optimizer.param_groups[0]["lr"]
            optimizer.step()
            self.runner.call_hook("after_train_iter", batch_idx=self.step_in_epoch, data_batch=batch, outputs=None)
            self._report(values, lr)
        self._iter += 1
        self.step_in_epoch += 1
        save, *stop_signals = sums[-len(flags) :]
        if save or any(stop_signals):
            self._save()
        self._stop_if_told(stop_signals)

    def _has_images(self, batch: dict[str, Any]) -> bool:
        """Whether any image of the batch could be read. A step without one is left out, if no other process waits."""
        if not batch["inputs"] and self.processes.world_size > 1:
            raise InputError(
                "no image of a process's batch can be read, and the other processes cannot take a step without it: "
                f"{'; '.join(list(self.bad_images.found.values())[-3:])}"
            )
        return bool(batch["inputs"])

    def _gradients(self, batch: dict[str, Any]) -> tuple[list[str], list[float]]:
        """Forward and backward: the names of what is logged, and this process's numbers."""
        dtype = DTYPES[self.train.precision]
        with torch.autocast(self.device, dtype, enabled=dtype != torch.float32):
            losses = self.runner.model(**self.detector.data_preprocessor(batch, True), mode="loss")
        loss, terms = self.detector.parse_losses(losses)
        norm = self.runner.optim_wrapper.gradients(loss, self.train.grad_clip or math.inf)
        named: dict[str, Tensor] = {**terms, "grad_norm": norm}
        return list(named), torch.stack([value.detach().double() for value in named.values()]).tolist()

    def _require_finite(self, batch: dict[str, Any], values: dict[str, float], own: dict[str, float]) -> None:
        """Stop before the weights are spoilt. With fp16 the gradient may overflow: the scaler leaves out that step."""
        scaled = self.runner.optim_wrapper.scaler.is_enabled()
        checked = values.keys() - ({"grad_norm"} if scaled else set())
        if all(math.isfinite(values[name]) for name in checked):
            return
        step = self._iter + 1
        raise guards.non_finite(
            self.detector,
            batch,
            own,
            step=step,
            epoch=self._epoch + 1,
            path=self.folder / f"non_finite_step_{step}_rank_{self.processes.rank}.json",
            parameters=self.parameters,
            variant=self.variant,
        )

    def _report(self, values: dict[str, float], lr: float) -> None:
        if self.progress is None:
            return
        whole = {**values, "positives": values.get("positives", 0.0) * self.processes.world_size}
        step = self._iter + 1
        for text in self.watch.step(step, whole):
            self.progress.warn(text)
        if self.progress.step(self._epoch, step, whole, lr):
            self.progress.record(DENSITY, self._densities(step))

    def _densities(self, step: int) -> list[dict[str, float | int | str]]:
        """What stands for the number of examples in each unit region of the losses that harmonise."""
        head = self.detector.bbox_head
        return [
            {"step": step, "kind": kind, "low": k / loss.bins, "high": (k + 1) / loss.bins, "density": density}
            for kind, loss in (("cls", head.loss_cls), ("box", head.loss_bbox))
            if isinstance(loss, HarmonisedLoss) and loss.acc_sum is not None
            for k, density in enumerate(loss.acc_sum.tolist())
        ]

    def _measure_norms(self, epoch: int) -> None:
        assert self.progress
        rows = gradient_norms.measure(self.detector, self.dataloader.dataset, self.train.batch_size, epoch)
        self.progress.record(GRADIENT_NORMS, rows)

    def _save(self) -> None:
        """Write a checkpoint: every process adds what it alone knows."""
        own = {
            "buffers": dict(self.detector.named_buffers()),
            "random": randomness.capture(),
            "bad_images": self.bad_images.found,
        }
        processes = self.processes.gather(state.plain(own))
        if self.progress is not None:
            content = {
                "state_dict": self.detector.state_dict(),
                "optimizer": self.runner.optim_wrapper.optimizer.state_dict(),
                "schedules": [schedule.state_dict() for schedule in self.runner.param_schedulers],
                "scaler": self.runner.optim_wrapper.scaler.state_dict(),
                "ema": self.ema.ema_model.state_dict() if self.ema else None,
                "meta": {"epoch": self._epoch, "step_in_epoch": self.step_in_epoch, "step": self._iter},
                "processes": processes,
                "records": self.progress.state(),
            }
            self._count_left_out(processes)
            state.save(self.folder, content)
        self._saved_at = time.monotonic()

    def _count_left_out(self, processes: list[dict[str, Any]]) -> None:
        """Add up the images that could not be read over all processes."""
        all_images = BadImages(self.bad_images.most)
        for process in processes:
            all_images.found |= process["bad_images"]
        all_images.require()
        self.left_out = len(all_images.found)

    def _restore(self, source: Path, content: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            InputError: it is of another model or optimiser.
        """
        optimizer, schedules = self.runner.optim_wrapper, self.runner.param_schedulers
        state.fit(source, "model", lambda: self.detector.load_state_dict(content["state_dict"]))
        state.fit(source, "optimizer", lambda: optimizer.optimizer.load_state_dict(content["optimizer"]))
        if len(content["schedules"]) != len(schedules):
            raise InputError(
                f"{source} has {len(content['schedules'])} schedules of the learning rate, and this run "
                f"{len(schedules)}: train.schedule and train.warmup_iters must be as they were"
            )
        for schedule, saved in zip(schedules, content["schedules"], strict=True):
            schedule.load_state_dict(saved)
        if content["scaler"] and optimizer.scaler.is_enabled():
            optimizer.scaler.load_state_dict(content["scaler"])
        if self.ema and content["ema"]:
            average = self.ema.ema_model
            state.fit(source, "moving average", lambda: average.load_state_dict(content["ema"]))
        meta = content["meta"]
        self._epoch, self.step_in_epoch, self._iter = meta["epoch"], meta["step_in_epoch"], meta["step"]
        self._restore_process(content["processes"])
        if self.progress is not None:
            self.progress.restore(content["records"])
            self._count_left_out(content["processes"])

    def _restore_process(self, processes: list[dict[str, Any]]) -> None:
        """Take what this process had: its random numbers, and the buffers that differ between processes."""
        world = self.processes.world_size
        own = processes[self.processes.rank % len(processes)]
        buffers = own["buffers"]
        if len(processes) != world:
            _log.warning(
                "the checkpoint is of %s and there are %d now: the run goes on, but not to the same bits. Counts of "
                "GHM are shared out anew",
                count(len(processes), "process|processes"),
                world,
            )
            for name in buffers:
                if name.endswith(".acc_sum"):
                    buffers[name] = torch.stack([process["buffers"][name] for process in processes]).sum(0) / world
        for name, buffer in self.detector.named_buffers():
            buffer.copy_(buffers[name])
        self.bad_images.found = dict(own["bad_images"])
        randomness.restore(own["random"])

    def _signal_counts(self) -> list[float]:
        return [float(self.stop_signals.count(number)) for number in _SIGNALS]

    def _stop_if_told(self, counts: list[float]) -> None:
        for number in itertools.compress(_SIGNALS, counts):
            _log.warning("stopped by %s after step %d: the same command goes on from there", number.name, self._iter)
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
