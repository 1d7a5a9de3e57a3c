"""The unit regions of examples as small whole numbers: found, counted and looked up in plain PyTorch.

The slot of an example is its region; K too is the last region (a norm of 1), and the last slot is that of what is in no
region: ignored, or NaN.

Shapes: L populations of `sizes` rows, K unit regions, W slots. Tensors without a suffix hold a value an example.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from ghm.losses.density import region_counts, region_edges, region_index

CLASSIFICATION_END = 1 + 1e-6  # mmdet's last edge of GHM-C
MOST_BINS = 2**14 - 2


def no_region(bins: int) -> int:
    """The slot of what is in no region, which is the slot of any norm with its bits set. W is one more."""
    return (1 << (bins + 1).bit_length()) - 1


@lru_cache
def slot_dtype(bins: int) -> torch.dtype:
    """The dtype that holds the slots."""
    dtypes = (torch.int8, torch.int16, torch.int32)
    return next(dtype for dtype in dtypes if no_region(bins) <= torch.iinfo(dtype).max)


@lru_cache
def product_is_exact(bins: int) -> bool:
    """Whether floor(g * bins) in float32 is the region of every float32 g in [0, 1).

    Rounding keeps the order, so it is enough to look at each edge and at the number below it.
    """
    edge_E = region_edges(bins, end=1.0)[1:-1]
    here_E = torch.arange(1, bins)
    below_E = torch.nextafter(edge_E, torch.zeros(()))
    return bool(((edge_E * bins).long() == here_E).all() and ((below_E * bins).long() == here_E - 1).all())


def find(norm: Tensor, bins: int, spare: Tensor, *, out: Tensor) -> None:
    """Write the slot of every gradient norm; `spare` may be `norm`, which is lost then."""
    if product_is_exact(bins):
        out.copy_(torch.mul(norm, bins, out=spare).nan_to_num_(no_region(bins)))
    else:
        edge_E = region_edges(bins, end=CLASSIFICATION_END, device=norm.device)
        index = region_index(norm, norm == norm, edge_E=edge_E)
        out.copy_(index.masked_fill_(index == bins, no_region(bins)))


def ignore(slot: Tensor, weight: Tensor, bins: int) -> None:
    """Give examples that are ignored, [N, D] or whole rows, [N], the slot of no region."""
    bits = (weight > 0).to(slot.dtype).sub_(1).bitwise_and_(no_region(bins))
    slot.bitwise_or_(bits if bits.dim() == slot.dim() else bits[:, None])


def counts(slot: Tensor, sizes: list[int], bins: int, *, host: bool) -> Tensor:
    """Count the examples of each region and population by their slots, [N, D]: int64, [L, K].

    On a CPU, `host`, by what would have the host wait for a device.
    """
    width = no_region(bins) + 1
    parts = [part.view(-1) for part in slot.split(sizes)]
    count_lW = [torch.bincount(part, minlength=width) if host else region_counts(part, bins=width) for part in parts]
    count_LW = torch.stack(count_lW)
    count_LW[:, bins - 1].add_(count_LW[:, bins])
    return count_LW[:, :bins].contiguous()


def lookup(factor_LK: Tensor) -> Callable[[list[int], Tensor, Tensor, Tensor], Tensor]:
    """Make the function that looks up the factors of slots.

    It takes how many slots of each population there are in its second argument, and writes their factors to its third,
    which it returns; what is in the fourth is lost. All of these are flat.
    """
    levels, bins = factor_LK.shape
    factor_LW = torch.cat([factor_LK, factor_LK[:, -1:], factor_LK.new_zeros(levels, no_region(bins) - bins)], 1)
    factor_l = factor_LW.unbind()

    def look_up(lengths: list[int], slot: Tensor, out: Tensor, spare: Tensor) -> Tensor:
        index = spare.view(torch.int32).copy_(slot)
        parts = (factor_l, index.split(lengths), out.split(lengths))
        for factor, indices, target in zip(*parts, strict=True):
            torch.index_select(factor, 0, indices, out=target)
        return out

    return look_up
