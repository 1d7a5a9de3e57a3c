"""A config and a checkpoint -> a detector that is ready to predict."""

import copy
import logging
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope

from ghm import checkpoints, devices
from ghm.errors import InputError

_log = logging.getLogger(__name__)


def load(cfg: Config, checkpoint: Path, described_in: str, device: Any = None) -> Any:
    """Build the detector of a config and give it the weights of a checkpoint.

    Args:
        cfg: mmdet's. `speed`, which our runs have, says whether CUDA rounds to TF32 and how weights lie in memory.
        checkpoint: only tensors are read. A detector needs no state of its losses.
        described_in: where the config is from, for messages.
        device: CUDA where there is one, or else the CPU.

    Returns:
        mmdet's detector in evaluation mode, for `ghm.predict.predict`.

    Raises:
        InputError: mmdet cannot build the model, or the checkpoint is no checkpoint or does not fit.
    """
    init_default_scope(cfg.get("default_scope") or "mmdet")
    try:
        model: Any = revert_sync_batchnorm(MODELS.build(copy.deepcopy(cfg.model)))  # mmdet writes into it
    except (KeyError, TypeError, ValueError, AssertionError, AttributeError, ImportError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or ["?"])[-1]
        raise InputError(f"{described_in} describes no model that mmdet can build: {reason}") from error
    state, report = checkpoints.select(checkpoints.read_state(checkpoint), model.state_dict())
    report.require(f"{checkpoint} does not fit {described_in}", spare=lambda name: ".loss_" in name)
    if any(".loss_" not in name for name in report.unexpected):
        _log.warning("%s: %s", checkpoint, report)
    model.load_state_dict(state, strict=False)
    model.to(device or devices.choose()).eval()
    if "speed" in cfg:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = cfg.speed.tf32
    if cfg.get("speed", {}).get("channels_last"):
        model.to(memory_format=torch.channels_last)
    return model
