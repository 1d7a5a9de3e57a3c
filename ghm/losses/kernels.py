"""The passes of the losses as Triton kernels for CUDA; `ghm/losses/vectorised.py` says what each function does.

Shapes: N examples, C classes or coordinates, L populations of `sizes` rows, K unit regions.

A program takes ROWS rows of one population, in tiles of TILE / WIDTH rows and WIDTH columns. Labels and weights are
read once a row and never expanded, counts are private to the program until it ends, and one launch covers all
populations. Under `TRITON_INTERPRET=1` the kernels run on a CPU, for tests.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ghm.losses import kernel_parts as parts
from ghm.losses.vectorised import product_is_exact

ROWS, TILE = 512, 1024
MOST_POPULATIONS = 8
SIZES = [f"size_{level}" for level in range(MOST_POPULATIONS)]
# What a kernel is compiled for. COUNT writes counts, LOSS sums, GRADIENT derivatives.
COUNT, LOSS, GRADIENT = map(tl.constexpr, range(3))


@triton.jit(do_not_specialize=SIZES)
def _ghm_c_kernel(
    logit, label, weight, table, out,
    size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7,
    PASS: tl.constexpr, L: tl.constexpr, C: tl.constexpr, K: tl.constexpr, EXACT: tl.constexpr, SLOTS: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    level, first, rows = parts.locate(size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7, ROWS, L)
    histogram = tl.zeros([SLOTS], dtype=tl.int32)
    part = tl.zeros([TILE // WIDTH, WIDTH], dtype=tl.float32)
    for begin in range(0, ROWS, TILE // WIDTH):
        row, inside, target, factor = parts.rows_of_tile(label, weight, first, begin, rows, TILE // WIDTH)
        for left in range(0, C, WIDTH):
            column = left + tl.arange(0, WIDTH)[None, :]
            mask = inside & (column < C)
            place = first * C + row * C + column
            x = tl.load(logit + place, mask=mask, other=0.0).to(tl.float32)
            positive = target == column
            probability, small = parts.probability(x)
            region = parts.region(tl.abs(probability - tl.where(positive, 1.0, 0.0)), K, EXACT)
            if PASS == COUNT:
                histogram += parts.histogram(region, mask & (factor > 0), K, SLOTS, TILE)
            else:
                weigh = parts.factor(table + level * K, region, mask & (factor > 0), K)
                if PASS == LOSS:
                    part += tl.where(mask, parts.cross_entropy(x, positive, small) * weigh, 0.0)
                else:
                    slope = parts.error(x, positive, small) * tl.where(positive, -weigh, weigh)
                    tl.store(out + place, slope.to(out.dtype.element_ty), mask=mask)
    if PASS == COUNT:
        slot = tl.arange(0, SLOTS)
        tl.atomic_add(out + level * K + slot, histogram.to(tl.int64), mask=slot < K)
    if PASS == LOSS:
        tl.atomic_add(out + level, tl.sum(part.to(tl.float64)))


@triton.jit(do_not_specialize=SIZES)
def _ghm_r_kernel(
    pred, target, weight, table, out, mu, mu_square,
    size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7,
    PASS: tl.constexpr, L: tl.constexpr, C: tl.constexpr, K: tl.constexpr, EXACT: tl.constexpr, SLOTS: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    level, first, rows = parts.locate(size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7, ROWS, L)
    histogram = tl.zeros([SLOTS], dtype=tl.int32)
    part = tl.zeros([TILE], dtype=tl.float32)
    for begin in range(0, ROWS * C, TILE):
        place = begin + tl.arange(0, TILE)
        inside = place < rows * C
        d, valid = parts.differences(pred, target, weight, first * C + place, inside)
        length = tl.sqrt_rn(d * d + mu_square)
        region = parts.region(tl.abs(tl.div_rn(d, length)), K, EXACT)
        if PASS == COUNT:
            histogram += parts.histogram(region, valid, K, SLOTS, TILE)
        else:
            weigh = parts.factor(table + level * K, region, valid, K)
            if PASS == LOSS:
                part += tl.where(inside, (length - mu) * weigh, 0.0)
            else:
                slope = d / length * weigh
                tl.store(out + first * C + place, slope.to(out.dtype.element_ty), mask=inside)
    if PASS == COUNT:
        slot = tl.arange(0, SLOTS)
        tl.atomic_add(out + level * K + slot, histogram.to(tl.int64), mask=slot < K)
    if PASS == LOSS:
        tl.atomic_add(out + level, tl.sum(part.to(tl.float64)))


@triton.jit
def _focal_kernel(
    logit, label, weight, scale, out, gamma, alpha, size,
    PASS: tl.constexpr, SQUARE: tl.constexpr, C: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    rows = tl.minimum(size - first, ROWS)
    upstream = tl.load(scale)
    part = tl.zeros([TILE // WIDTH, WIDTH], dtype=tl.float32)
    for begin in range(0, ROWS, TILE // WIDTH):
        row, inside, target, factor = parts.rows_of_tile(label, weight, first, begin, rows, TILE // WIDTH)
        for left in range(0, C, WIDTH):
            column = left + tl.arange(0, WIDTH)[None, :]
            mask = inside & (column < C)
            place = first * C + row * C + column
            x = tl.load(logit + place, mask=mask, other=0.0).to(tl.float32)
            positive = target == column
            _, small = parts.probability(x)
            error, entropy = parts.error(x, positive, small), parts.cross_entropy(x, positive, small)
            power = parts.power(error, gamma, SQUARE)
            if PASS == LOSS:
                part += tl.where(mask, tl.where(positive, alpha, 1 - alpha) * power * entropy * factor, 0.0)
            else:
                slope = gamma * parts.error(x, target != column, small) * entropy + error
                value = tl.where(positive, -alpha, 1 - alpha) * power * slope * factor * upstream
                tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)
    if PASS == LOSS:
        tl.atomic_add(out, tl.sum(part.to(tl.float64)))


def _width(columns: int) -> int:
    """The columns of a tile: the power of two that leaves the fewest lanes idle, at least 4 where there are as many."""
    widths = [2**power for power in range(7) if 2**power >= min(4, triton.next_power_of_2(columns))]
    return min(widths, key=lambda width: (triton.cdiv(columns, width) * width, -width))


def _launch(
    kernel: triton.JITFunction, which: Any, inputs: tuple[Tensor, ...], rest: tuple, sizes: list[int], bins: int,
    **options: bool,
) -> None:  # fmt: skip
    """Run a pass over all populations at once; `inputs` are the prediction, and what there is of each example.

    Raises:
        ValueError: more populations than the kernels take.
    """
    if len(sizes) > MOST_POPULATIONS:
        raise ValueError(f"sizes must name at most {MOST_POPULATIONS} populations, got {len(sizes)}")
    programs, columns = sum(triton.cdiv(size, ROWS) for size in sizes), inputs[0].shape[1]
    if programs and columns:
        arguments = [tensor.contiguous() for tensor in inputs]
        padded = sizes + [0] * (MOST_POPULATIONS - len(sizes))
        slots = triton.next_power_of_2(bins + 1)  # one more for what is in no region
        shape = {"L": len(sizes), "C": columns, "K": bins, "SLOTS": slots, "WIDTH": _width(columns)}
        fixed = {"PASS": which, "EXACT": product_is_exact(bins), "ROWS": ROWS, "TILE": TILE}
        with torch.cuda.device_of(inputs[0]):  # Triton launches on the current device
            kernel[(programs,)](*arguments, *rest, *padded, **fixed, **shape, **options)


def ghm_c_count(logit: Tensor, label: Tensor, weight: Tensor, sizes: list[int], bins: int) -> tuple[Tensor, Tensor]:
    """Counts, [L, K]; nothing is kept for the other passes, which find the regions again."""
    count_LK = torch.zeros(len(sizes), bins, dtype=torch.int64, device=logit.device)
    _launch(_ghm_c_kernel, COUNT, (logit, label, weight), (count_LK, count_LK), sizes, bins)
    return count_LK, torch.empty(0, dtype=torch.uint8, device=logit.device)


def ghm_c_loss(
    logit: Tensor, label: Tensor, weight: Tensor, _slot: Tensor, sizes: list[int], factor_LK: Tensor
) -> Tensor:
    total_L = torch.zeros(len(sizes), dtype=torch.float64, device=logit.device)
    rest = (factor_LK.contiguous(), total_L)
    _launch(_ghm_c_kernel, LOSS, (logit, label, weight), rest, sizes, factor_LK.shape[1])
    return total_L.float()


def ghm_c_gradient(
    logit: Tensor, label: Tensor, weight: Tensor, _slot: Tensor, sizes: list[int], factor_LK: Tensor
) -> Tensor:
    gradient = torch.empty_like(logit)
    rest = (factor_LK.contiguous(), gradient)
    _launch(_ghm_c_kernel, GRADIENT, (logit, label, weight), rest, sizes, factor_LK.shape[1])
    return gradient


def ghm_r_count(pred: Tensor, target: Tensor, weight: Tensor, sizes: list[int], bins: int, mu: float) -> Tensor:
    """Counts of the gradient norms of ASL1, [L, K]."""
    count_LK = torch.zeros(len(sizes), bins, dtype=torch.int64, device=pred.device)
    rest = (count_LK, count_LK, mu, mu * mu)
    _launch(_ghm_r_kernel, COUNT, (pred, target, weight), rest, sizes, bins, enable_fp_fusion=False)
    return count_LK


def ghm_r_loss(pred: Tensor, target: Tensor, weight: Tensor, sizes: list[int], factor_LK: Tensor, mu: float) -> Tensor:
    """ASL1 times the factor of its region, summed over each population, [L]."""
    total_L = torch.zeros(len(sizes), dtype=torch.float64, device=pred.device)
    rest = (factor_LK.contiguous(), total_L, mu, mu * mu)
    _launch(_ghm_r_kernel, LOSS, (pred, target, weight), rest, sizes, factor_LK.shape[1], enable_fp_fusion=False)
    return total_L.float()


def ghm_r_gradient(
    pred: Tensor, target: Tensor, weight: Tensor, sizes: list[int], factor_LK: Tensor, mu: float
) -> Tensor:
    """The derivative of `ghm_r_loss` by the prediction, [N, D]."""
    gradient = torch.empty_like(pred)
    rest = (factor_LK.contiguous(), gradient, mu, mu * mu)
    _launch(_ghm_r_kernel, GRADIENT, (pred, target, weight), rest, sizes, factor_LK.shape[1], enable_fp_fusion=False)
    return gradient


def focal_loss(logit: Tensor, label: Tensor, weight: Tensor, gamma: float, alpha: float, factor: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64, device=logit.device)
    _launch_focal(LOSS, logit, label, weight, (factor.contiguous(), total), gamma, alpha)
    return (total * factor).float()


def focal_gradient(logit: Tensor, label: Tensor, weight: Tensor, gamma: float, alpha: float, factor: Tensor) -> Tensor:
    gradient = torch.empty_like(logit)
    _launch_focal(GRADIENT, logit, label, weight, (factor.contiguous(), gradient), gamma, alpha)
    return gradient


def _launch_focal(
    which: Any, logit: Tensor, label: Tensor, weight: Tensor, rest: tuple, gamma: float, alpha: float
) -> None:
    if logit.numel():
        arguments = (logit, label.contiguous(), weight.contiguous(), *rest, gamma, alpha, len(logit))
        constants = {"PASS": which, "SQUARE": gamma == 2, "C": logit.shape[1], "WIDTH": _width(logit.shape[1])}
        with torch.cuda.device_of(logit):
            _focal_kernel[(triton.cdiv(len(logit), ROWS),)](*arguments, **constants, ROWS=ROWS, TILE=TILE)
