"""The statistics of GHM-C and GHM-R as one Triton kernel: what `HarmonisedLoss.factors` does in some 20 operators.

Shapes: L populations, K unit regions.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _factors_kernel(
    count, total, average, mass, factor, momentum, gain, smoothing, loss_weight,
    L: tl.constexpr, K: tl.constexpr, SLOTS: tl.constexpr, COUNTED: tl.constexpr, AVERAGED: tl.constexpr,
    CORRECTED: tl.constexpr, VALID: tl.constexpr, MEAN: tl.constexpr, POSITIVES: tl.constexpr,
):  # fmt: skip
    if POSITIVES:
        smoothing = tl.load(smoothing)
    slot = tl.arange(0, SLOTS)
    inside = slot < K
    moved = tl.zeros([SLOTS], dtype=tl.float32)
    share = moved
    if AVERAGED:
        moved = tl.load(average + slot, mask=inside, other=0.0)
    if CORRECTED:
        share = tl.load(mass + slot, mask=inside, other=0.0)
    for level in range(L):
        number = tl.load(count + level * K + slot, mask=inside, other=0)
        occupied = number > 0
        density = number.to(tl.float32)
        if AVERAGED:
            keep = tl.where(occupied, momentum, 1.0)
            moved = keep * moved + gain * density
            density = moved
        if CORRECTED:
            share = keep * share + gain * occupied.to(tl.float32)
            density = tl.div_rn(moved, tl.maximum(share, gain))
        regions = tl.sum(occupied.to(tl.int32)).to(tl.float32) if VALID else K * 1.0
        share_of = (density + smoothing) * regions
        if MEAN:  # N cancels out
            weight = tl.div_rn(tl.zeros_like(share_of) + loss_weight, share_of)
        else:
            examples = tl.sum(number).to(tl.float32) if COUNTED else tl.load(total + level).to(tl.float32)
            examples = tl.where(examples < 1.0, 1.0, examples)  # a maximum would lose NaN
            weight = loss_weight * tl.div_rn(tl.zeros_like(share_of) + examples, share_of)
        tl.store(factor + level * K + slot, tl.where(occupied, weight, 0.0), mask=inside)
    if AVERAGED:
        tl.store(average + slot, moved, mask=inside)
    if CORRECTED:
        tl.store(mass + slot, share, mask=inside)


def factors(
    count_LK: Tensor,
    total_L: Tensor | None,
    average_K: Tensor | None,
    mass_K: Tensor | None,
    *,
    momentum: float,
    smoothing: float | Tensor,
    loss_weight: float,
    world: int,
    valid: bool,
    mean: bool,
) -> Tensor:
    """`ghm.losses.statistics.HarmonisedLoss.factors`, [L, K], by the same roundings. The averages move in place."""
    levels, bins = count_LK.shape
    scale = float(loss_weight * world if mean else loss_weight)
    factor_LK = torch.empty(levels, bins, device=count_LK.device)
    tensors = [factor_LK if tensor is None else tensor for tensor in (total_L, average_K, mass_K)]
    slots = triton.next_power_of_2(bins)
    fixed = {"L": levels, "K": bins, "SLOTS": slots, "VALID": valid, "MEAN": mean, "COUNTED": total_L is None}
    fixed |= {"AVERAGED": average_K is not None, "CORRECTED": mass_K is not None}
    fixed |= {"POSITIVES": isinstance(smoothing, Tensor)}
    with torch.cuda.device_of(count_LK):
        _factors_kernel[(1,)](
            count_LK, *tensors, factor_LK, momentum, 1 - momentum, smoothing, scale,
            **fixed, num_warps=min(8, max(1, slots // 128)), enable_fp_fusion=False,
        )  # fmt: skip
    return factor_LK
