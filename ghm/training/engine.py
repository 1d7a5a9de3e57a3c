"""mmengine's Runner with the model on its device: what the loop takes its steps with."""

import logging
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ghm import checkpoints
from ghm.params import Train
from ghm.training.optimizer import set_precision
from ghm.training.processes import Processes

_log = logging.getLogger(__name__)


def build(train: Train, cfg: Config, folder: Path, processes: Processes, *, loads: bool) -> Runner:
    """mmengine's Runner for a training run, as `train` wants it.

    Args:
        cfg: of the run; it is not changed.
        folder: for mmengine's own log, which nobody reads.
        loads: whether pretrained weights are loaded, which a checkpoint makes needless.
    """
    cfg = cfg.copy()
    cfg.work_dir = str(folder)
    cfg.experiment_name = folder.parent.name
    cfg.train_dataloader.batch_size = train.batch_size // processes.world_size
    if not loads:
        cfg.load_from = None
        cfg.model.backbone.init_cfg = None
    if processes.world_size > 1:
        cfg.launcher = "pytorch"
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else None
        cfg.model_wrapper_cfg = {
            "type": "MMDistributedDataParallel",
            "device_ids": devices,
            "broadcast_buffers": False,
        }
    set_precision(cfg)
    runner = _Runner.from_cfg(cfg)
    detector: Any = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if train.compile:
        for part in (detector.backbone, detector.neck, detector.bbox_head):
            part.compile()
    if cfg.load_from:
        runner.register_hook(_WholeDetector())
    return runner


class _Runner(Runner):
    """mmengine's, with the layout of the weights settled before processes agree on it."""

    def wrap_model(self, model_wrapper_cfg: Any, model: torch.nn.Module) -> torch.nn.Module:
        if self.cfg.speed.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return super().wrap_model(model_wrapper_cfg, model)


class _WholeDetector(Hook):
    """Match the checkpoint of `model.load_from` with the names of the detector before the Runner loads it.

    All that the detector needs must be there, but for what depends on the data set or the losses: the layer that names
    classes, where their number is another, and the counts of GHM's moving averages. These start anew.
    """

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        state = model.state_dict()
        fitting, report = checkpoints.select(checkpoint.get("state_dict", checkpoint), state)
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
        checkpoint["state_dict"] = {**state, **fitting}
