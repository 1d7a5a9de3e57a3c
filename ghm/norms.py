"""Norms that cost less: group norm with channels last in memory on a CPU, batch norm that keeps its statistics.

Shapes: B images, C channels, P positions, G groups of D channels.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ghm.registry import MODELS


@MODELS.register_module()
class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm`, arXiv 1803.08494, with its parameters, in the order of arguments that mmcv calls it with.

    PyTorch's kernel for channels_last on a CPU walks over the few channels of a group at each position. Here the sums
    are over positions first, all channels side by side. Elsewhere PyTorch's is used.
    """

    def __init__(self, num_channels: int, num_groups: int, eps: float = 1e-5) -> None:
        super().__init__(num_groups, num_channels, eps)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, C, H, W]."""
        is_last = input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last)
        is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
        if is_last and input.device.type == "cpu" and input.dtype == torch.float32 and not is_traced:
            return _ChannelsLast.apply(input, self.weight, self.bias, self.num_groups, self.eps)
        return super().forward(input)


class _ChannelsLast(torch.autograd.Function):
    """Group normalisation of [B, C, H, W] with channels last, float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_C: Tensor, bias_C: Tensor, groups: int, eps: float) -> Tensor:  # type: ignore[override]
        x_BPC = x.permute(0, 2, 3, 1).flatten(1, 2)
        centred_BPC = x_BPC - _group_mean(x_BPC.sum(1, keepdim=True), groups, x_BPC.shape[1])
        square_B1C = (centred_BPC * centred_BPC).sum(1, keepdim=True)
        scale_B1C = _group_mean(square_B1C, groups, x_BPC.shape[1]).add(eps).rsqrt_()  # not in place: a view
        ctx.save_for_backward(centred_BPC, scale_B1C, weight_C)
        ctx.groups = groups
        result = torch.empty_like(x)  # not a view, which could not be changed in place
        torch.addcmul(bias_C, centred_BPC, scale_B1C * weight_C, out=result.permute(0, 2, 3, 1).flatten(1, 2))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        centred_BPC, scale_B1C, weight_C = ctx.saved_tensors
        up_BPC = upstream.permute(0, 2, 3, 1).flatten(1, 2)
        positions = up_BPC.shape[1]
        up_B1C = up_BPC.sum(1, keepdim=True)
        product_B1C = (up_BPC * centred_BPC).sum(1, keepdim=True).mul_(scale_B1C)
        mean_B1C = _group_mean(up_B1C * weight_C, ctx.groups, positions)
        slope_B1C = _group_mean(product_B1C * weight_C, ctx.groups, positions)
        gradient_BPC = torch.addcmul(mean_B1C * -scale_B1C, up_BPC, scale_B1C * weight_C)
        gradient_BPC.addcmul_(centred_BPC, slope_B1C * -(scale_B1C * scale_B1C))
        gradient = gradient_BPC.unflatten(1, upstream.shape[2:]).permute(0, 3, 1, 2)
        return gradient, product_B1C.sum((0, 1)), up_B1C.sum((0, 1)), None, None


def _group_mean(sum_B1C: Tensor, groups: int, positions: int) -> Tensor:
    """From sums over positions, the mean of the group that each channel is in, [B, 1, C]."""
    sum_BGD = sum_B1C.unflatten(2, (groups, -1)).squeeze(1)
    mean_BG1 = sum_BGD.sum(2, keepdim=True).div_(positions * sum_BGD.shape[2])
    return mean_BG1.expand_as(sum_BGD).reshape(sum_B1C.shape)


def fold(module: nn.Module) -> None:
    """Have each convolution do what the batch norm right behind it does, while that keeps its statistics.

    The norm is then one factor and one offset a channel, and both can go into the convolution's weight and bias: what
    the norm would read, write and keep for backward is as large as the feature maps. The module has the same
    parameters and state dict, and learns the same gradients. What is right behind is what has been added next.
    """
    for parent in module.modules():
        for conv, norm in pairwise(parent.children()):
            if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d and conv.bias is None:
                norm.__class__, conv.__class__ = _FoldedNorm, _FoldedConv
                conv.behind = [norm]  # type: ignore[assignment]  # in a list, so that it is no child


class _FoldedConv(nn.Conv2d):
    behind: list[nn.BatchNorm2d]

    def forward(self, input: Tensor) -> Tensor:
        norm: Any = self.behind[0]
        if norm.training:
            return super().forward(input)
        scale_C = norm.weight * (norm.running_var + norm.eps).rsqrt()
        offset_C = norm.bias - norm.running_mean * scale_C
        return self._conv_forward(input, self.weight * scale_C[:, None, None, None], offset_C)


class _FoldedNorm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if self.training else input
