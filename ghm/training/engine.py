"""What a step is made of: the model on its device, the optimiser, a moving average of the weights."""

import copy
import functools
import logging
import math
import random
import resource
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from ghm import checkpoints, norms
from ghm.losses.statistics import HarmonisedLoss
from ghm.registry import MODELS
from ghm.training import batches, state
from ghm.training.batches import Batch
from ghm.training.processes import Processes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OPEN_FILES = 4096  # workers hand over each tensor of a batch by a file descriptor
# Of the loss with float16, which doubles after so many steps without an overflow, and halves with each.
FIRST_SCALE, GROWN_AFTER = 2.0**16, 2000
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Numbers:
    """What a step has computed, still on its way from the device."""

    names: list[str]  # of the loss terms and `grad_norm`, the norm of the gradients before they were cut
    mean: Tensor  # of these, over all processes, and sums of what `Engine.step` was told
    own: Tensor  # of this process
    weights: list[str]
    norm_W: Tensor  # of the gradient of each of them
    density_K: dict[str, Tensor]  # by kind of loss, `cls` or `box`: GHM's moving average after the step, if it has one
    copied: Any  # the event after the copy to the host; None on a CPU

    def read(self) -> tuple[dict[str, float], list[float]]:
        """Wait for the step: the named numbers, and the sums."""
        if self.copied is not None:
            self.copied.synchronize()
        numbers = self.mean.tolist()
        return dict(zip(self.names, numbers, strict=False)), numbers[len(self.names) :]


class Engine:
    """One step of a run at a time, and all of its state that moves with the steps.

    Args:
        cfg: of the run; it is not changed.
        begins: whether pretrained weights are loaded, which a checkpoint makes needless.

    Raises:
        InputError: the checkpoint of `model.load_from` does not fit.
    """

    def __init__(self, cfg: Config, processes: Processes, *, begins: bool) -> None:
        cfg, self.cfg = cfg.copy(), cfg
        self.processes = processes
        if not begins:
            cfg.model.backbone.init_cfg = None
        init_default_scope("mmdet")
        MMLogger.get_current_instance().setLevel(cfg.log_level)  # it would list how each weight began
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, OPEN_FILES), hard), hard))
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = cfg.speed.tf32
        _seed(cfg.randomness.seed)
        self.detector: Any = MODELS.build(cfg.model)
        if cfg.model.backbone.norm_eval:
            norms.fold(self.detector.backbone)
        if cfg.speed.channels_last:
            self.detector.to(memory_format=torch.channels_last)
        self.detector.to("cuda" if torch.cuda.is_available() else "cpu")
        self.device = next(self.detector.parameters()).device.type
        self.detector.init_weights()
        if begins and cfg.load_from:
            _load_detector(self.detector, Path(cfg.load_from))
        self.average: Any = None
        if cfg.ema_momentum:
            self.average = copy.deepcopy(self.detector).requires_grad_(False)
        self.model: Any = self.detector
        if processes.world_size > 1:
            devices = [torch.cuda.current_device()] if self.device == "cuda" else None
            self.model = DistributedDataParallel(self.detector, devices, broadcast_buffers=False)
        if cfg.speed.compile:
            for part in (self.detector.backbone, self.detector.neck, self.detector.bbox_head):
                part.compile()
        self.weights = {name: weight for name, weight in self.detector.named_parameters() if weight.requires_grad}
        self.optimizer = _optimizer(cfg.optimizer, [*self.weights.values()])
        # The loss is multiplied by a scale with float16, or else by 1.
        self.scale = torch.full((), FIRST_SCALE if self._is_half else 1.0, device=self.device)
        self.steps_at_scale = torch.zeros((), device=self.device)
        self.spoilt = torch.zeros((), dtype=torch.bool, device=self.device)  # a step was not finite: nothing moves

    @property
    def _is_half(self) -> bool:
        return self.cfg.speed.precision == "fp16"

    @property
    def result(self) -> Any:
        """The detector that the run is for: with a moving average of the weights, that."""
        return self.average or self.detector

    def step(self, parts: list[Batch], lr: float, told: list[float]) -> Numbers:
        """Forward, backward and update. Nothing here waits for the device.

        Weights move if all numbers of all processes are finite, and all of the steps before were. With float16 the
        gradient may overflow: then this step alone is left out.

        Args:
            parts: images of this process; the gradient is the mean of theirs.
            lr: learning rate.
            told: numbers to be added up over all processes.
        """
        terms: dict[str, Tensor] = {}
        for number, part in enumerate(parts, 1):
            is_alone = self.model is self.detector or number == len(parts)
            with nullcontext() if is_alone else self.model.no_sync():
                for name, term in self._backward(part, 1 / len(parts)).items():
                    terms[name] = terms[name] + term if name in terms else term
        gradients = {name: weight.grad for name, weight in self.weights.items() if weight.grad is not None}
        norm_W = torch.stack(torch._foreach_norm([*gradients.values()])) / self.scale
        norm = norm_W.norm()
        own = torch.stack([*terms.values(), norm]).double()
        mean = torch.cat([own, torch.tensor(told, dtype=torch.float64).to(self.device, non_blocking=True)])
        if self.processes.world_size > 1:
            distributed.all_reduce(mean)
            mean[: len(own)] /= self.processes.world_size
        self.spoilt |= ~mean[: len(own) - self._is_half].isfinite().all()  # float16's norm may be infinite
        self._update(norm, lr)
        head = self.detector.bbox_head
        losses = {"cls": head.loss_cls, "box": head.loss_bbox}
        averages = {kind: loss.acc_sum for kind, loss in losses.items() if isinstance(loss, HarmonisedLoss)}
        density_K = {kind: average.clone() for kind, average in averages.items() if average is not None}
        copied = None
        if self.device == "cuda":
            mean, own, norm_W = (tensor.to("cpu", non_blocking=True) for tensor in (mean, own, norm_W))
            density_K = {kind: average.to("cpu", non_blocking=True) for kind, average in density_K.items()}
            copied = torch.cuda.Event()
            copied.record()
        return Numbers([*terms, "grad_norm"], mean, own, [*gradients], norm_W, density_K, copied)

    def _backward(self, part: Batch, share: float) -> dict[str, Tensor]:
        """Add to the gradients, and return this part's share of the loss terms."""
        image_B3HW, truth = batches.prepare(self.detector, part)
        if not self.cfg.speed.channels_last:
            image_B3HW = image_B3HW.contiguous()
        dtype = DTYPES[self.cfg.speed.precision]
        with torch.autocast(self.device, dtype, enabled=dtype != torch.float32):
            losses = self.model(image_B3HW, truth, mode="loss")
        terms = {name: functools.reduce(torch.add, values) for name, values in losses.items()}
        loss = functools.reduce(torch.add, [term for name, term in terms.items() if "loss" in name])
        loss.backward(self.scale * share)
        # The number of positives adds up, the others are means.
        shared = {name: term.detach() * (1.0 if name == "positives" else share) for name, term in terms.items()}
        return {"loss": loss.detach() * share, **shared}

    @torch.no_grad()
    def _update(self, norm: Tensor, lr: float) -> None:
        """Move the weights by gradients that are cut to `grad_clip`, unless something was not finite."""
        overflow = self.spoilt | ~norm.isfinite()
        optimizer: Any = self.optimizer  # one that is fused looks at these on the device
        optimizer.found_inf = overflow.float()
        optimizer.grad_scale = self.scale * (norm / (self.cfg.grad_clip or math.inf)).clamp(min=1)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
        if self.average:
            torch._foreach_lerp_([*self.average.parameters()], [*self.detector.parameters()], self.cfg.ema_momentum)
            torch._foreach_copy_([*self.average.buffers()], [*self.detector.buffers()])
        if self._is_half:
            self.steps_at_scale = torch.where(overflow, 0.0, self.steps_at_scale + 1)
            grown = self.steps_at_scale >= GROWN_AFTER
            self.scale = torch.where(overflow, self.scale / 2, torch.where(grown, self.scale * 2, self.scale))
            self.steps_at_scale = torch.where(grown, 0.0, self.steps_at_scale)

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        return {
            "state_dict": self.detector.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scale": [self.scale, self.steps_at_scale],
            "ema": self.average.state_dict() if self.average else None,
        }

    def restore(self, source: Path, content: dict[str, Any]) -> None:
        """Go on from the content of a checkpoint. Raises InputError if it is of another model or optimiser."""
        state.fit(source, "model", lambda: self.detector.load_state_dict(content["state_dict"]))
        state.fit(source, "optimizer", lambda: self.optimizer.load_state_dict(content["optimizer"]))
        if self._is_half:
            self.scale, self.steps_at_scale = (value.to(self.device) for value in content["scale"])
        if self.average and content["ema"]:
            state.fit(source, "moving average", lambda: self.average.load_state_dict(content["ema"]))


def _seed(seed: int) -> None:
    """Of Python, NumPy and PyTorch on all devices."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _optimizer(settings: dict[str, Any], weights: list[Tensor]) -> torch.optim.Optimizer:
    arguments = dict(settings)
    cls: Any = getattr(torch.optim, arguments.pop("type"))
    optimizer = cls(weights, **arguments)
    if arguments.get("momentum"):
        # PyTorch would leave the sums as they happen to lie in memory where the first step overflows.
        for weight in weights:
            optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer


def _load_detector(detector: Any, path: Path) -> None:
    """Load the checkpoint of `model.load_from`.

    All that the detector needs must be there, but for what depends on the data set or the losses: the layer that names
    classes, where their number is another, and the counts of GHM's moving averages. These start anew.
    """
    fitting, report = checkpoints.select(checkpoints.read_state(path), detector.state_dict())
    classes = [name for name in report.other_shape if name.startswith("bbox_head.retina_cls.")]
    losses = ("bbox_head.loss_cls.", "bbox_head.loss_bbox.")
    report.require(
        "model.load_from does not fit the detector that `model` describes",
        spare=lambda name: name in classes or name.startswith(losses),
    )
    _log.info("model.load_from: %s", report)
    if classes:
        names = " and ".join(classes)
        _log.warning("model.load_from has another number of classes: %s begin at random values", names)
    detector.load_state_dict(fitting, strict=False)
