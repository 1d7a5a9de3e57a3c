"""The unit regions of examples as small whole numbers: found, counted and looked up in plain PyTorch.

The slot of an example is its region; K too is the last region (a norm of 1), and the last slot is that of what is in no
region: ignored, or NaN. With `host` the values can be looked at without waiting for a device; slots of 8 bits are then
counted and looked up two at a time, as one number of 16 bits, in half the time.

Shapes: L populations of `sizes` rows, K unit regions, W slots. Tensors without a suffix hold a value an example.
"""

import sys
from collections.abc import Callable
from functools import lru_cache
from math import isnan

import torch
from torch import Tensor

from ghm.losses.density import region_counts, region_edges, region_index

CLASSIFICATION_END = 1 + 1e-6  # mmdet's last edge of GHM-C
MOST_BINS = 2**14 - 2
PAIRS = 1 << 14  # slots for which a table of pairs is worth its making


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


def find(norm: Tensor, bins: int, spare: Tensor, *, out: Tensor, host: bool) -> None:
    """Write the slot of every gradient norm; `spare` may be `norm`, which is lost then."""
    if host and product_is_exact(bins):
        torch.mul(norm, bins, out=spare)
        out.copy_(spare.nan_to_num_(no_region(bins)) if isnan(spare.sum()) else spare)
    else:
        edge_E = region_edges(bins, end=CLASSIFICATION_END, device=norm.device)
        index = region_index(norm, norm == norm, edge_E=edge_E)
        out.copy_(index.masked_fill_(index == bins, no_region(bins)))


def ignore(slot: Tensor, weight: Tensor, bins: int, *, host: bool) -> None:
    """Give examples that are ignored, [N, D] or whole rows, [N], the slot of no region."""
    if host and weight.dim() == 1:
        slot.index_fill_(0, (weight > 0).logical_not_().nonzero().view(-1), no_region(bins))
    elif not (host and weight.numel() and weight.amin().item() > 0):
        bits = (weight > 0).to(slot.dtype).sub_(1).bitwise_and_(no_region(bins))
        slot.bitwise_or_(bits if bits.dim() == slot.dim() else bits[:, None])


def counts(slot: Tensor, sizes: list[int], bins: int, *, host: bool) -> Tensor:
    """Count the examples of each region and population by their slots, [N, D]: int64, [L, K]."""
    count_LW = torch.stack([_histogram(part.view(-1), no_region(bins) + 1, host) for part in slot.split(sizes)])
    count_LW[:, bins - 1].add_(count_LW[:, bins])
    return count_LW[:, :bins].contiguous()


def _histogram(slot: Tensor, width: int, host: bool) -> Tensor:
    """Count the slots, int64, [W]."""
    if not host:
        return region_counts(slot, bins=width)
    if _pairs(slot) and len(slot) >= width * 256:
        count_WW = torch.bincount(slot.view(torch.int16), minlength=width * 256).view(-1, 256)[:, :width]
        return count_WW.sum(0).add_(count_WW.sum(1))
    return torch.bincount(slot, minlength=width)


def _pairs(slot: Tensor) -> bool:
    """Whether slots can be read two at a time."""
    return slot.dtype == torch.int8 and slot.numel() % 2 == slot.storage_offset() % 2 == 0


def lookup(factor_LK: Tensor, size: int, *, host: bool) -> Callable[[list[int], Tensor, Tensor, Tensor], Tensor]:
    """Make the function that looks up the factors of slots, `size` in all, two at a time as complex numbers.

    It takes how many slots of each population there are in its second argument, and writes their factors to its third,
    which it returns; what is in the fourth is lost. All of these are flat.
    """
    levels, bins = factor_LK.shape
    width = no_region(bins) + 1
    factor_LW = torch.cat([factor_LK, factor_LK[:, -1:], factor_LK.new_zeros(levels, width - bins - 1)], 1)
    factor_l, pair_l = factor_LW.unbind(), ()
    if host and size >= PAIRS and slot_dtype(bins) == torch.int8:
        pair_LWV = torch.empty(levels, width, 256, dtype=torch.complex64)
        low_high = (factor_LW[:, None], factor_LW[:, :, None])  # the high byte is the row of a table
        torch.complex(*low_high[:: 1 if sys.byteorder == "little" else -1], out=pair_LWV[:, :, :width])
        pair_l = pair_LWV.view(levels, -1).unbind()

    def look_up(lengths: list[int], slot: Tensor, out: Tensor, spare: Tensor) -> Tensor:
        indices = spare.view(torch.int32).split(lengths)
        for level, (slots, target, index) in enumerate(
            zip(slot.split(lengths), out.split(lengths), indices, strict=True)
        ):
            if pair_l and _pairs(slots) and target.storage_offset() % 2 == 0:
                slots = slots.view(torch.int16)
                index = index[: len(slots)].copy_(slots)
                torch.index_select(pair_l[level], 0, index, out=target.view(torch.complex64))
            elif lengths[level]:
                torch.index_select(factor_l[level], 0, index.copy_(slots), out=target)
        return out

    return look_up
