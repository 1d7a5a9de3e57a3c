"""What a step is made of: the model on its device, the loader of its images, optimiser, schedules, moving average."""

import logging
import math
import resource
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import OPTIMIZERS, PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import Runner, set_random_seed
from mmengine.utils.dl_utils import set_multi_processing
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ghm import checkpoints
from ghm.errors import InputError
from ghm.registry import MODELS
from ghm.training import state
from ghm.training.processes import Processes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OPEN_FILES = 4096  # workers hand over each tensor of a batch by a file descriptor
_log = logging.getLogger(__name__)


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
        cfg.train_dataloader.batch_size //= processes.world_size
        if not begins:
            cfg.model.backbone.init_cfg = None
        init_default_scope("mmdet")
        MMLogger.get_current_instance().setLevel(cfg.log_level)  # it would list how each weight began
        set_multi_processing()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, OPEN_FILES), hard), hard))
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = cfg.speed.tf32
        set_random_seed(cfg.randomness.seed)
        self.detector: Any = MODELS.build(cfg.model)
        if cfg.speed.channels_last:
            self.detector.to(memory_format=torch.channels_last)
        self.detector.to("cuda" if torch.cuda.is_available() else "cpu")
        self.device = next(self.detector.parameters()).device.type
        self.loader: Any = Runner.build_dataloader(cfg.train_dataloader, seed=cfg.randomness.seed)
        self.detector.init_weights()
        if begins and cfg.load_from:
            _load_detector(self.detector, Path(cfg.load_from))
        self.average: Any = None
        if cfg.ema_momentum:
            self.average = ExponentialMovingAverage(self.detector, cfg.ema_momentum)
        self.model: Any = self.detector
        if processes.world_size > 1:
            devices = [torch.cuda.current_device()] if self.device == "cuda" else None
            self.model = DistributedDataParallel(self.detector, devices, broadcast_buffers=False)
        if cfg.speed.compile:
            for part in (self.detector.backbone, self.detector.neck, self.detector.bbox_head):
                part.compile()
        optimizer = dict(cfg.optim_wrapper.optimizer, params=self.detector.parameters())
        self.optimizer: Any = OPTIMIZERS.build(optimizer)
        self.scaler = GradScaler(self.device, enabled=cfg.speed.precision == "fp16")
        self.schedules: list[Any] = [
            PARAM_SCHEDULERS.build(dict(schedule, optimizer=self.optimizer)) for schedule in cfg.param_scheduler
        ]

    @property
    def result(self) -> Any:
        """The detector that the run is for: with a moving average of the weights, that."""
        return self.average.module if self.average else self.detector

    @property
    def lr(self) -> float:
        """Of the next step."""
        return self.optimizer.param_groups[0]["lr"]

    def gradients(self, batch: dict[str, Any]) -> dict[str, float]:
        """Forward and backward: this process's loss terms, and the norm that its gradients had before they were cut.

        The host waits for the device here, and nowhere else in a step.
        """
        dtype = DTYPES[self.cfg.speed.precision]
        with torch.autocast(self.device, dtype, enabled=dtype != torch.float32):
            losses = self.model(**self.detector.data_preprocessor(batch, True), mode="loss")
        loss, terms = self.detector.parse_losses(losses)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        weights = [weight for weight in self.detector.parameters() if weight.grad is not None]
        norm = get_total_norm([weight.grad for weight in weights])
        # A norm that is not finite would make all gradients so, and hide where it began.
        clip_grads_with_norm_(weights, self.cfg.grad_clip or math.inf, torch.where(norm.isfinite(), norm, 0.0))
        named: dict[str, Tensor] = {**terms, "grad_norm": norm}
        numbers = torch.stack([value.detach().double() for value in named.values()]).tolist()
        return dict(zip(named, numbers, strict=True))

    def update(self) -> None:
        """Move the weights, and what follows them. A step that overflows in float16 is left out."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.average:
            self.average.update_parameters(self.detector)
        self.step_schedules(by_epoch=False)

    def step_schedules(self, *, by_epoch: bool) -> None:
        """Set the learning rate after a step, or after an epoch."""
        for schedule in self.schedules:
            if schedule.by_epoch == by_epoch:
                schedule.step()

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        return {
            "state_dict": self.detector.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedules": [schedule.state_dict() for schedule in self.schedules],
            "scaler": self.scaler.state_dict(),
            "ema": self.average.state_dict() if self.average else None,
        }

    def restore(self, source: Path, content: dict[str, Any]) -> None:
        """Go on from the content of a checkpoint. Raises InputError if it is of another model or optimiser."""
        state.fit(source, "model", lambda: self.detector.load_state_dict(content["state_dict"]))
        state.fit(source, "optimizer", lambda: self.optimizer.load_state_dict(content["optimizer"]))
        if len(content["schedules"]) != len(self.schedules):
            raise InputError(
                f"{source} has {len(content['schedules'])} schedules of the learning rate, and this run "
                f"{len(self.schedules)}: train.schedule and train.warmup_iters must be as they were"
            )
        for schedule, saved in zip(self.schedules, content["schedules"], strict=True):
            schedule.load_state_dict(saved)
        if content["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(content["scaler"])
        if self.average and content["ema"]:
            state.fit(source, "moving average", lambda: self.average.load_state_dict(content["ema"]))


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
