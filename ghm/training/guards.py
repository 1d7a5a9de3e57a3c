"""Guard rails: what stops a training that has gone wrong, or warns of it, with numbers and what to try."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmdet.structures.bbox import get_box_tensor
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from ghm import files
from ghm.errors import InputError
from ghm.gradient_norms import histogram, norms
from ghm.losses.statistics import HarmonisedLoss
from ghm.params import Train
from ghm.words import count

# Learning rates that trained well: (rate, images a step). `sgd`: the published settings, presets/coco_r50_1x.yaml.
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
FEWEST = 1.0  # positive anchors a step
FEW_QUIET = 500  # steps between two warnings of few positive anchors

# GHM's moving average starts at zero, and forgets that in 1 / (1 - momentum) steps in which a region is occupied. So
# many times that may be to blame: rare regions are occupied in few steps. 100 steps with the momentum of GHM-C.
EARLY = 25
SHOWN = 5  # ids or names in a list


def learning_rate_warning(train: Train) -> str | None:
    """Why this learning rate for this many images a step is outside of what was tested, or None."""
    tested = [rate / images for rate, images in TESTED[train.optimizer]]
    low, high = min(tested), max(tested)
    rate = train.learning_rate / train.batch_size
    if train.epochs == 0 or low / MARGIN <= rate <= high * MARGIN:
        return None
    if rate > high:
        distance, risk = f"{rate / high:.3g} times too large by that", "training may diverge"
    else:
        distance, risk = f"{low / rate:.3g} times too small by that", "training may learn too little"
    known = " and ".join(f"{rate:g} for {images}" for rate, images in TESTED[train.optimizer])
    base = "null" if train.base_batch_size is None else train.base_batch_size
    return (
        f"train.lr: {train.lr:g} with train.base_batch_size: {base} makes {train.learning_rate:g} for "
        f"train.batch_size: {count(train.batch_size, 'image')} per step, and with {train.optimizer} {known} images "
        f"were tested. It is {distance}, and {risk}: set train.base_batch_size to the images per step, of all "
        "processes, that train.lr is meant for"
    )


class Watch:
    """Warns, from the numbers of each step, of a training that goes wrong without stopping.

    Args:
        batch_size: images a step, of all processes; for the text of a warning.
    """

    def __init__(self, batch_size: int | None = None) -> None:
        self._batch_size = batch_size
        self._losses: deque[float] = deque(maxlen=WINDOW + RUN)
        self._positives: deque[float] = deque(maxlen=FEW_WINDOW)
        self._loss_warned: int | None = None
        self._few_warned: int | None = None

    def step(self, step: int, values: Mapping[str, float]) -> list[str]:
        """Take in the `loss` and the number of `positives` of a step; return warnings, mostly none.

        Args:
            step: counted over the whole training.
            values: of the whole batch.
        """
        self._losses.append(float(values["loss"]))
        self._positives.append(float(values["positives"]))
        return [text for text in (self._explosion(step), self._few_positives(step)) if text]

    def state(self) -> dict[str, Any]:
        """All that `restore` needs, in plain numbers and lists."""
        return {
            "losses": list(self._losses),
            "positives": list(self._positives),
            "loss_warned": self._loss_warned,
            "few_warned": self._few_warned,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._losses = deque(state["losses"], maxlen=WINDOW + RUN)
        self._positives = deque(state["positives"], maxlen=FEW_WINDOW)
        self._loss_warned = state["loss_warned"]
        self._few_warned = state["few_warned"]

    def _explosion(self, step: int) -> str | None:
        losses = list(self._losses)
        if len(losses) < WINDOW + RUN or _recent(self._loss_warned, step, LOSS_QUIET):
            return None
        mean = sum(losses[:WINDOW]) / WINDOW
        if min(losses[WINDOW:]) <= EXPLOSION * mean:
            return None
        self._loss_warned = step
        return (
            f"the loss explodes: {losses[-1]:.3g} at step {step}, and for {RUN} steps above {EXPLOSION:g} times "
            f"{mean:.3g}, the mean of the {WINDOW} steps before; lower train.lr, raise train.warmup_iters or set "
            "train.grad_clip"
        )

    def _few_positives(self, step: int) -> str | None:
        mean = sum(self._positives) / len(self._positives)
        full = len(self._positives) == FEW_WINDOW
        if not full or mean >= FEWEST or _recent(self._few_warned, step, FEW_QUIET):
            return None
        self._few_warned = step
        images = "" if self._batch_size is None else f" of {count(self._batch_size, 'image')}"
        return (
            f"anchors do not fit the data set, or most images have no boxes: {mean:.2g} positive anchors per "
            f"step{images}, the mean of the last {FEW_WINDOW} steps up to {step}; set model.anchors.base_scale, "
            "scales_per_octave and ratios to the sizes that boxes have after train.image_scale, or train.filter_empty: "
            "true"
        )


def _recent(warned: int | None, step: int, quiet: int) -> bool:
    return warned is not None and step - warned < quiet


def non_finite(
    model: nn.Module,
    batch: Mapping[str, Any],
    values: Mapping[str, float],
    *,
    step: int,
    epoch: int,
    folder: Path,
    rank: int,
    train: Train,
    sections: Mapping[str, str],
) -> InputError:
    """Write down a step whose loss or gradient is not finite; call it after backward, before the weights move.

    Writes `folder/non_finite_step_<step>_rank_<rank>.json`: the values, the images, the gradients of the detector's
    parts, weights that are not finite, the state of GHM after this step, and how the gradient norms of the batch's
    examples are distributed, in the precision of the weights. What cannot be measured says why. Nothing here waits
    for another process, and the detector stays as it was.

    Args:
        model: the detector, with the gradients of the step.
        batch: `inputs` and `data_samples`, as the data loader gave them.
        values: the loss terms and the gradient norm of this process.
        step: counted over the whole training, from 1.
        folder: for the file.
        train: for what to try.
        sections: `loss_cls` and `loss_bbox` -> the section of the parameters that the loss is from.

    Returns:
        The error to raise: what was not finite, where, and what to try.
    """
    detector: Any = model.module if is_model_wrapper(model) else model
    images = _images(batch)
    record = {
        "step": step,
        "epoch": epoch,
        "rank": rank,
        "values": dict(values),
        "images": images,
        "gradients": _attempt(lambda: {name: _gradients(part) for name, part in _parts(detector).items()}),
        "weights": _attempt(lambda: _weights(detector)),
        "ghm": _attempt(lambda: _ghm(detector)),
        "gradient_norms": _attempt(lambda: _gradient_norms(detector, batch)),
    }
    path = folder / f"non_finite_step_{step}_rank_{rank}.json"
    try:
        files.write_json(path, _plain(record))
        where = f"{path} has the details"
    except OSError as error:
        where = f"{path} could not be written ({error.strerror})"
    wrong = ", ".join(f"{name} is {value}" for name, value in values.items() if not math.isfinite(value))
    return InputError(
        f"{wrong or 'a number of another process is not finite'} at step {step} (epoch {epoch}), "
        f"images {_few([str(image['img_id']) for image in images])}: {where}. "
        f"Try: {'; '.join(_remedies(detector, images, step, train, sections))}"
    )


def _remedies(
    detector: Any, images: list[dict[str, Any]], step: int, train: Train, sections: Mapping[str, str]
) -> list[str]:
    """What to try, the likeliest first."""
    broken = [name for name, weight in detector.named_parameters() if not _is_finite(weight)]
    if broken:
        return [
            f"other weights to start from (model.load_from, model.pretrained, train.resume_from), for {_few(broken)} "
            "were not finite before this step"
        ]
    remedies = []
    spoilt = [str(image["img_id"]) for image in images if image.get("broken_boxes") or not image.get("finite", True)]
    if spoilt:
        remedies.append(f"mend images {_few(spoilt)}, which have pixels that are not finite or boxes without an area")
    early = [_moving_average_remedy(sections[name], loss) for name, loss in _losses(detector) if _is_early(loss, step)]
    if early:
        remedies.append(f"{', '.join(early)}: GHM's first weights are up to 1 / (1 - momentum) too large")
    remedies.append(f"a lower train.lr than {train.lr:g}, or more train.warmup_iters than {train.warmup_iters}")
    if train.grad_clip is None:
        remedies.append("train.grad_clip: 35.0 instead of null")
    if train.precision == "fp16":
        remedies.append("train.precision: fp32 or bf16 instead of fp16")
    return remedies if spoilt else [*remedies, "look for broken boxes on these images"]


def _is_early(loss: Any, step: int) -> bool:
    """Whether the start of GHM's moving average may be to blame."""
    momentum = getattr(loss, "momentum", 0)
    return momentum > 0 and not getattr(loss, "bias_correction", False) and step * (1 - momentum) <= EARLY


def _moving_average_remedy(section: str, loss: Any) -> str:
    correction = f"{section}.bias_correction: true or " if isinstance(loss, HarmonisedLoss) else ""
    return f"{correction}a lower {section}.momentum than {loss.momentum:g}"


def _losses(detector: Any) -> list[tuple[str, Any]]:
    return [(name, getattr(detector.bbox_head, name)) for name in ("loss_cls", "loss_bbox")]


def _images(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each image of the batch is, and whether its numbers can be learned from."""
    keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    images = []
    for pixels, sample in zip(batch["inputs"], batch["data_samples"], strict=True):
        image = {key: sample.metainfo.get(key) for key in keys}
        found = _attempt(lambda pixels=pixels, sample=sample: _content(pixels, sample))
        images.append({**image, **found})
    return images


def _content(pixels: Tensor, sample: Any) -> dict[str, Any]:
    box_N4 = get_box_tensor(sample.gt_instances.bboxes)
    sound_N = box_N4.isfinite().all(1) & (box_N4[:, 2:] > box_N4[:, :2]).all(1)
    return {"finite": _is_finite(pixels), "boxes": len(box_N4), "broken_boxes": int((~sound_N).sum())}


def _parts(detector: nn.Module) -> dict[str, nn.Module]:
    """Backbone, neck and the children of the head, those with weights."""
    parts: dict[str, nn.Module] = {}
    for name, child in detector.named_children():
        inner = dict(child.named_children()) if name == "bbox_head" else {}
        parts |= {f"{name}.{key}": part for key, part in inner.items()} or {name: child}
    return {name: part for name, part in parts.items() if next(part.parameters(), None) is not None}


def _gradients(part: nn.Module) -> dict[str, Any]:
    gradients = {name: weight.grad for name, weight in part.named_parameters() if weight.grad is not None}
    wrong = {name: int((~gradient.isfinite()).sum()) for name, gradient in gradients.items()}
    return {
        "norm": math.hypot(*(float(gradient.double().norm()) for gradient in gradients.values())),
        "elements": sum(gradient.numel() for gradient in gradients.values()),
        "not_finite": sum(wrong.values()),
        "first_not_finite": [name for name, count in wrong.items() if count][:SHOWN],
    }


def _weights(detector: nn.Module) -> dict[str, Any]:
    """Names of weights, and of buffers such as statistics of batch normalisation, that are not finite."""
    weights = [name for name, weight in detector.named_parameters() if not _is_finite(weight)]
    buffers = [name for name, buffer in detector.named_buffers() if not _is_finite(buffer)]
    return {"finite": not weights, "not_finite": weights, "buffers_not_finite": buffers}


def _ghm(detector: Any) -> dict[str, Any]:
    """The options and the moving averages of the losses that have some."""
    names = ("momentum", "bias_correction", "acc_sum", "acc_mass")
    state = {kind: {name: getattr(loss, name, None) for name in names} for kind, loss in _losses(detector)}
    return {kind: found for kind, found in state.items() if found["acc_sum"] is not None}


def _gradient_norms(detector: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    with _buffers_kept(detector):
        found = norms(detector, batch)
    return {
        kind: {"counts": histogram(norm, valid), "nan": int((norm.isnan() & valid).sum())}
        for kind, (norm, valid) in found.items()
    }


@contextmanager
def _buffers_kept(detector: nn.Module) -> Iterator[None]:
    """Undo what happens to buffers meanwhile: batch normalisation counts what it sees."""
    before = [(buffer, buffer.clone()) for buffer in detector.buffers()]
    try:
        yield
    finally:
        for buffer, kept in before:
            buffer.copy_(kept)


def _attempt(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `measure` gives, or why it fails: the first error must not be hidden by a second one."""
    try:
        return measure()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _few(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + ", ..." * (len(names) > SHOWN)


def _plain(value: Any) -> Any:
    """JSON's types; numbers that are not finite, which it lacks, become texts."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, str | int | float) else str(value)
