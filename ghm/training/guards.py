"""What stops a training run that has gone wrong, or warns of it, with numbers and what to try."""

import json
import math
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdet.structures.bbox import get_box_tensor
from torch import nn

from ghm import files
from ghm.errors import InputError
from ghm.losses.statistics import HarmonisedLoss
from ghm.params import Params, Role, Train
from ghm.words import count

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
LOSS_QUIET = 200  # steps between two warnings of the loss

FEW_WINDOW = 100  # steps whose mean number of positive anchors is looked at
FEWEST = 1.0  # positive anchors per step
FEW_QUIET = 500  # steps between two warnings of few positive anchors

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
    known = " and ".join(f"{rate:g} for {images}" for rate, images in TESTED[train.optimizer])
    base = "null" if train.base_batch_size is None else train.base_batch_size
    return (
        f"train.lr: {train.lr:g} with train.base_batch_size: {base} makes {train.learning_rate:g} for "
        f"train.batch_size: {count(train.batch_size, 'image')} per step, and with {train.optimizer} {known} images "
        f"were tested. It is {distance} by that: set train.base_batch_size to the images per step, of all processes, "
        "that train.lr is meant for"
    )


class Watch:
    """Warns, from the numbers of each step of this start, of a run that goes wrong without stopping."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=WINDOW + RUN)
        self._positives: deque[float] = deque(maxlen=FEW_WINDOW)
        self._loud_again = {"loss": 0, "positives": 0}  # the step from which there may be a warning

    def step(self, step: int, values: Mapping[str, float]) -> list[str]:
        """Take in the `loss` and the number of `positives` of a step; return warnings, mostly none.

        Args:
            step: counted over the whole run.
            values: of the whole batch.
        """
        self._losses.append(float(values["loss"]))
        self._positives.append(float(values["positives"]))
        warnings = []
        losses = list(self._losses)
        mean = sum(losses[:WINDOW]) / WINDOW
        exploding = len(losses) == WINDOW + RUN and min(losses[WINDOW:]) > EXPLOSION * mean
        if exploding and step >= self._loud_again["loss"]:
            self._loud_again["loss"] = step + LOSS_QUIET
            warnings.append(
                f"the loss explodes: {losses[-1]:.3g} at step {step}, and for {RUN} steps above {EXPLOSION:g} times "
                f"{mean:.3g}, the mean of the {WINDOW} steps before; lower train.lr, raise train.warmup_iters or set "
                "train.grad_clip"
            )
        positives = sum(self._positives) / len(self._positives)
        few = len(self._positives) == FEW_WINDOW and positives < FEWEST
        if few and step >= self._loud_again["positives"]:
            self._loud_again["positives"] = step + FEW_QUIET
            warnings.append(
                f"anchors do not fit the data set, or most images have no boxes: {positives:.2g} positive anchors per "
                f"step, the mean of the last {FEW_WINDOW} steps up to {step}; set model.anchors.base_scale, "
                "scales_per_octave and ratios to the sizes that boxes have after train.image_scale, or "
                "train.filter_empty: true"
            )
        return warnings


def non_finite(
    detector: Any,
    batch: Mapping[str, Any],
    values: Mapping[str, float],
    *,
    step: int,
    epoch: int,
    path: Path,
    parameters: Params,
    variant: str,
) -> InputError:
    """Write down a step whose loss or gradient is not finite; call it after backward, before the weights move.

    Writes the values, the images, the gradients of the detector's parts, the names of weights that are not finite and
    the moving averages of GHM. Nothing here waits for another process, and the detector stays as it was.

    Args:
        detector: with the gradients of the step.
        batch: `inputs` and `data_samples`, as the data loader gave them.
        values: the loss terms and the gradient norm of this process.
        step: counted over the whole run, from 1.
        path: the JSON file to write.
        parameters: and the variant, for what to try.

    Returns:
        The error to raise: what was not finite, where, and what to try.
    """
    images = _images(batch)
    losses: dict[Role, Any] = {"cls": detector.bbox_head.loss_cls, "box": detector.bbox_head.loss_bbox}
    broken = [name for name, weight in detector.named_parameters() if not weight.isfinite().all()]
    averages = {name: getattr(loss, "acc_sum", None) for name, loss in losses.items()}
    record = {
        "step": step,
        "epoch": epoch,
        "values": dict(values),
        "images": images,
        "gradients": {name: _gradient(part) for name, part in detector.named_children()},
        "weights_not_finite": broken,
        "ghm": {name: average.tolist() for name, average in averages.items() if average is not None},
    }
    try:
        # JSON has no numbers that are not finite: they become texts.
        files.write_json(path, json.loads(json.dumps(record, default=str), parse_constant=str))
        where = f"{path} has the details"
    except OSError as error:
        where = f"{path} could not be written ({error.strerror})"
    wrong = ", ".join(f"{name} is {value}" for name, value in values.items() if not math.isfinite(value))
    spoilt = [str(image["img_id"]) for image in images if image["broken_boxes"] or not image["finite"]]
    if broken:
        remedies = [
            f"other weights to start from (model.load_from, model.pretrained, train.resume_from), for {_few(broken)} "
            "were not finite before this step"
        ]
    else:
        remedies = _remedies(losses, spoilt, step, parameters, variant)
    return InputError(
        f"{wrong or 'a number of another process is not finite'} at step {step} (epoch {epoch}), "
        f"images {_few([str(image['img_id']) for image in images])}: {where}. Try: {'; '.join(remedies)}"
    )


def _remedies(losses: Mapping[Role, Any], spoilt: list[str], step: int, parameters: Params, variant: str) -> list[str]:
    """What to try, the likeliest first."""
    train, remedies, averages = parameters.train, [], []
    if spoilt:
        remedies.append(f"mend images {_few(spoilt)}, which have pixels that are not finite or boxes without an area")
    for role, loss in losses.items():
        momentum = getattr(loss, "momentum", 0)
        if momentum > 0 and not getattr(loss, "bias_correction", False) and step * (1 - momentum) <= EARLY:
            bias = f"{parameters.loss_key(variant, role, 'bias_correction')}: true or "
            key = parameters.loss_key(variant, role, "momentum")
            averages.append(f"{bias * isinstance(loss, HarmonisedLoss)}a lower {key} than {momentum:g}")
    if averages:
        remedies.append(f"{', '.join(averages)}: GHM's first weights are up to 1 / (1 - momentum) too large")
    remedies.append(f"a lower train.lr than {train.lr:g}, or more train.warmup_iters than {train.warmup_iters}")
    if train.grad_clip is None:
        remedies.append("train.grad_clip: 35.0 instead of null")
    if train.precision == "fp16":
        remedies.append("train.precision: fp32 or bf16 instead of fp16")
    return remedies if spoilt else [*remedies, "look for broken boxes on these images"]


def _images(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each image of the batch is, and whether its numbers can be learned from."""
    images = []
    for pixels, sample in zip(batch["inputs"], batch["data_samples"], strict=True):
        box_N4 = get_box_tensor(sample.gt_instances.bboxes)
        sound_N = box_N4.isfinite().all(1) & (box_N4[:, 2:] > box_N4[:, :2]).all(1)
        images.append(
            {
                **{key: sample.metainfo.get(key) for key in ("img_id", "img_path", "ori_shape", "img_shape")},
                "finite": bool(pixels.isfinite().all()),
                "boxes": len(box_N4),
                "broken_boxes": int((~sound_N).sum()),
            }
        )
    return images


def _gradient(part: nn.Module) -> dict[str, Any]:
    gradients = {name: weight.grad for name, weight in part.named_parameters() if weight.grad is not None}
    wrong = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    return {
        "norm": math.hypot(*(float(gradient.double().norm()) for gradient in gradients.values())),
        "not_finite": wrong[:SHOWN],
    }


def _few(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + ", ..." * (len(names) > SHOWN)
