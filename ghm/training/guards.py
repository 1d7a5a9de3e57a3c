"""What stops a training run that has gone wrong, or warns of it, with numbers and what to try."""

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from mmdet.structures.bbox import get_box_tensor

from ghm.errors import InputError
from ghm.losses.statistics import HarmonisedLoss
from ghm.params import Params, Role, Train

# Learning rates that trained well: (rate, images per step). `sgd`: the published settings, presets/coco_r50_1x.yaml.
# `adamw`: params.yaml, presets/bccd_r18.yaml, and the trials in benchmarks/README.md, "How the default was chosen".
TESTED = {
    "sgd": ((0.01, 16),),
    "adamw": ((0.003, 16), (0.002, 8), (0.004, 8), (0.002, 4)),
}
# How far outside, per image, is warned of: more than the 2.7 between two trials that both trained (0.003 for 16 and
# 0.004 for 8), less than the 8 of the usual mistake, a rate for 8 GPUs used on one.
MARGIN = 4.0

WINDOW = 50  # steps whose mean a loss is held against
EXPLOSION = 10.0  # times that mean. Single steps of batches of 1 and 2 digits reached 2.7 times
# Steps in a row above it. Focal Loss divides by the positive anchors: one batch almost without boxes may be far above.
RUN = 3
FEW_WINDOW = 100  # steps whose mean number of positive anchors is looked at
FEWEST = 1.0  # positive anchors per step

# GHM's moving average starts at zero, and forgets that in 1 / (1 - momentum) steps in which a region is occupied. So
# many times that may be to blame: rare regions are occupied in few steps. 100 steps with the momentum of GHM-C.
EARLY = 25
SHOWN = 5  # ids or names in a list


def learning_rate_warning(train: Train) -> str | None:
    """Why this learning rate for this many images per step is outside of what was tested, or None."""
    tested = [rate / images for rate, images in TESTED[train.optimizer]]
    low, high = min(tested), max(tested)
    rate = train.learning_rate / train.batch_size
    if train.epochs == 0 or low / MARGIN <= rate <= high * MARGIN:
        return None
    distance = f"{rate / high:.3g} times too large" if rate > high else f"{low / rate:.3g} times too small"
    return (
        f"train.lr: {train.lr:g} makes {train.learning_rate:g} for train.batch_size: {train.batch_size}, which is "
        f"{distance} by the rates that were tested with {train.optimizer}: set train.base_batch_size to the images per "
        "step, of all processes, that train.lr is meant for"
    )


class Watch:
    """Warns, from the numbers of each step of this start, of a run that goes wrong without stopping; once of each."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=WINDOW + RUN)
        self._positives: deque[float] = deque(maxlen=FEW_WINDOW)
        self._told: set[str] = set()

    def step(self, step: int, values: Mapping[str, float]) -> list[str]:
        """Take in the `loss` and the number of `positives` of a step, counted over the whole run; return warnings."""
        self._losses.append(float(values["loss"]))
        self._positives.append(float(values["positives"]))
        losses = list(self._losses)
        mean = sum(losses[:WINDOW]) / WINDOW
        positives = sum(self._positives) / len(self._positives)
        warnings = {}
        if len(losses) == WINDOW + RUN and min(losses[WINDOW:]) > EXPLOSION * mean:
            warnings["loss"] = (
                f"the loss explodes: {losses[-1]:.3g} at step {step}, and for {RUN} steps above {EXPLOSION:g} times "
                f"{mean:.3g}, the mean of the {WINDOW} steps before; lower train.lr, raise train.warmup_iters or set "
                "train.grad_clip"
            )
        if len(self._positives) == FEW_WINDOW and positives < FEWEST:
            warnings["positives"] = (
                f"anchors do not fit the data set, or most images have no boxes: {positives:.2g} positive anchors per "
                f"step, the mean of the last {FEW_WINDOW} steps up to {step}; set model.anchors.base_scale, "
                "scales_per_octave and ratios to the sizes that boxes have after train.image_scale, or "
                "train.filter_empty: true"
            )
        new = [text for kind, text in warnings.items() if kind not in self._told]
        self._told |= warnings.keys()
        return new


def non_finite(
    detector: Any,
    batch: Mapping[str, Any],
    values: Mapping[str, float],
    *,
    step: int,
    epoch: int,
    parameters: Params,
    variant: str,
) -> InputError:
    """The error to raise for a step whose loss or gradient is not finite: what, where, and what to try.

    Call it after backward, before the weights move. Nothing here waits for another process.

    Args:
        detector: with the gradients of the step.
        batch: as the data loader gave it.
        values: the loss terms and the gradient norm of this process.
        step: counted over the whole run, from 1.
    """
    images, spoilt = [], []
    for pixels, sample in zip(batch["inputs"], batch["data_samples"], strict=True):
        images.append(str(sample.metainfo["img_path"]))
        box_N4 = get_box_tensor(sample.gt_instances.bboxes)
        if not (pixels.isfinite().all() and box_N4.isfinite().all() and (box_N4[:, 2:] > box_N4[:, :2]).all()):
            spoilt.append(images[-1])
    wrong = ", ".join(f"{name} is {value}" for name, value in values.items() if not math.isfinite(value))
    weights = dict(detector.named_parameters())
    broken = [name for name, weight in weights.items() if not weight.isfinite().all()]
    trained = [(name, weight.grad) for name, weight in weights.items() if weight.grad is not None]
    gradients = [name for name, gradient in trained if not gradient.isfinite().all()]
    remedies = _remedies(detector.bbox_head, spoilt, step, parameters, variant)
    if broken:
        others = "model.load_from, model.pretrained, train.resume_from"
        remedies = [f"other weights to start from ({others}), for {_few(broken)} were not finite before this step"]
    return InputError(
        f"{wrong or 'a number of another process is not finite'} at step {step} (epoch {epoch}), images "
        f"{_few(images)}, gradients of {_few(gradients) or 'none'}. Try: {'; '.join(remedies)}"
    )


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
