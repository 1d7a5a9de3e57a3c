"""What stops a training run that has gone wrong, or warns of it, with numbers and what to try."""

import math
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch

from ghm.errors import InputError
from ghm.losses.statistics import HarmonisedLoss
from ghm.params import Params, Role
from ghm.training.batches import Batch

WINDOW = 50  # steps whose mean a loss is held against
EXPLOSION = 10.0  # times that mean. Single steps of batches of 1 and 2 digits reached 2.7 times
# Steps in a row above it. Focal Loss divides by the positive anchors: one batch almost without boxes may be far above.
RUN = 3

# GHM's moving average starts at zero, and forgets that in 1 / (1 - momentum) steps in which a region is occupied. So
# many times that may be to blame: rare regions are occupied in few steps. 100 steps with the momentum of GHM-C.
EARLY = 25
SHOWN = 5  # ids or names in a list
SAID = 200  # characters of another program's message
# In the messages of PyTorch, of its data loader about a process that the system has ended, and of the system.
SHORT_OF_MEMORY = re.compile(
    "out of memory|not enough memory|[Cc](an't|annot) allocate memory|ALLOC_FAILED|out of shared memory|"
    "DataLoader worker .*(killed by signal|exited unexpectedly)"
)


class Watch:
    """Warns once, from the loss of each step of this start, of a run that diverges without stopping."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=WINDOW + RUN)
        self._told = False

    def step(self, step: int, loss: float) -> str | None:
        """Take in the loss of a step, counted over the whole run; return the warning."""
        self._losses.append(loss)
        losses = list(self._losses)
        mean = sum(losses[:WINDOW]) / WINDOW
        if self._told or len(losses) < WINDOW + RUN or min(losses[WINDOW:]) <= EXPLOSION * mean:
            return None
        self._told = True
        return (
            f"the loss explodes: {loss:.3g} at step {step}, and for {RUN} steps above {EXPLOSION:g} times {mean:.3g}, "
            f"the mean of the {WINDOW} steps before; lower train.lr, raise train.warmup_iters or set train.grad_clip"
        )


def non_finite(
    detector: Any,
    parts: Sequence[Batch],
    values: Mapping[str, float],
    gradients: Sequence[str],
    *,
    step: int,
    epoch: int,
    parameters: Params,
    variant: str,
) -> InputError:
    """The error to raise for a step whose loss or gradient is not finite: what, where, and what to try.

    Nothing here waits for another process.

    Args:
        detector: as it was in the step, which moved no weight.
        parts: the batches of the step, as the data loader gave them.
        values: the loss terms and the gradient norm of this process.
        gradients: names of the weights whose gradient is not finite.
        step: counted over the whole run, from 1.
    """
    images, spoilt = [], []
    for part in parts:
        for path, pixels, box_G4, label_G in zip(
            part.paths, part.pixel_BHW3, part.truth.box_BG4, part.truth.label_BG, strict=True
        ):
            images.append(path)
            box_N4 = box_G4[label_G >= 0]
            if not (pixels.isfinite().all() and box_N4.isfinite().all() and (box_N4[:, 2:] > box_N4[:, :2]).all()):
                spoilt.append(path)
    wrong = ", ".join(f"{name} is {value}" for name, value in values.items() if not math.isfinite(value))
    weights = dict(detector.named_parameters())
    broken = [name for name, weight in weights.items() if not weight.isfinite().all()]
    remedies = _remedies(detector.bbox_head, spoilt, step, parameters, variant)
    if broken:
        others = "model.load_from, model.pretrained, train.resume_from"
        remedies = [f"other weights to start from ({others}), for {_few(broken)} were not finite before this step"]
    return InputError(
        f"{wrong or 'a number of another process is not finite'} at step {step} (epoch {epoch}), images "
        f"{_few(images)}, gradients of {_few([*gradients]) or 'none'}. Try: {'; '.join(remedies)}"
    )


@contextmanager
def enough_memory(parameters: Params, section: Literal["train", "evaluate"] = "train") -> Iterator[None]:
    """Turn what PyTorch, NumPy and the data loader say when memory runs out into an InputError: what to lower.

    Args:
        section: whose batch size and precision are in use.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        is_short = isinstance(error, MemoryError | torch.OutOfMemoryError) or SHORT_OF_MEMORY.search(str(error))
        if not is_short:
            raise
        used, train, machine = getattr(parameters, section), parameters.train, parameters.machine
        is_gpu = "CUDA" in str(error)
        lower = [f"{section}.batch_size (now {used.batch_size})", f"train.image_scale (now {list(train.image_scale)})"]
        lower += [f"machine.workers (now {machine.workers})"] * (machine.workers > 0 and not is_gpu)
        half = f", or set {section}.precision: bf16" if is_gpu and used.precision == "fp32" else ""
        raise InputError(
            f"{'the GPU' if is_gpu else 'this computer'} has not enough memory: lower {', '.join(lower)}{half}; "
            f"what was done up to the last checkpoint is kept ({' '.join(str(error).split())[:SAID]})"
        ) from None


def _remedies(head: Any, spoilt: list[str], step: int, parameters: Params, variant: str) -> list[str]:
    """What to try, the likeliest first."""
    train, remedies = parameters.train, []
    losses: dict[Role, Any] = {"cls": head.loss_cls, "box": head.loss_bbox}
    if spoilt:
        remedies.append(f"mend images {_few(spoilt)}, which have pixels that are not finite or boxes without an area")
    for role, loss in losses.items():
        averages = isinstance(loss, HarmonisedLoss) and loss.acc_sum is not None
        if averages and not loss.bias_correction and step * (1 - loss.momentum) <= EARLY:
            key = parameters.loss_key(variant, role, "bias_correction")
            remedies.append(f"{key}: true, for GHM's first weights are up to 1 / (1 - momentum) too large")
    remedies.append(f"a lower train.lr than {train.lr:g}, or more train.warmup_iters than {train.warmup_iters}")
    if train.grad_clip is None:
        remedies.append("train.grad_clip: 35.0 instead of null")
    if train.precision == "fp16":
        remedies.append("train.precision: fp32 or bf16 instead of fp16")
    return remedies


def _few(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + ", ..." * (len(names) > SHOWN)
