"""Precision: what the device may round, and mmengine's optimiser wrapper with a loss scaler on any device.

mmengine's own scaler wants CUDA.
"""

from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ghm.registry import OPTIM_WRAPPERS


def set_precision(cfg: Config) -> None:
    """Have CUDA multiply float32 in TF32 or not, as a run was trained.

    Args:
        cfg: of a run; the config of another detector says nothing, and changes nothing.
    """
    if "speed" in cfg:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = cfg.speed.tf32


@OPTIM_WRAPPERS.register_module()
class ScaledOptimWrapper(OptimWrapper):
    """Backward, and later the step: between the two, gradients can be looked at.

    Args:
        optimizer: of PyTorch.
        scaled: scale the loss, so that small gradients survive float16; a step whose gradient overflows is left out.
    """

    def __init__(self, optimizer: Any, scaled: bool = False) -> None:
        super().__init__(optimizer)
        device = self.optimizer.param_groups[0]["params"][0].device.type
        self.scaler = GradScaler(device, enabled=scaled)

    def gradients(self, loss: Tensor, most: float) -> Tensor:
        """Fill the gradients, cut to the norm `most`; return the norm that they had, on the device."""
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        weights = [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        norm = get_total_norm([weight.grad for weight in weights])
        # A norm that is not finite would make all gradients so, and hide where it began.
        clip_grads_with_norm_(weights, most, torch.where(norm.isfinite(), norm, 0.0))
        return norm

    def step(self, **kwargs: Any) -> None:
        """Move the weights."""
        self.scaler.step(self.optimizer, **kwargs)
        self.scaler.update()
        self.zero_grad()
