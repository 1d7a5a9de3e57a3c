"""The passes of the losses as Triton kernels for CUDA; `ghm/losses/vectorised.py` says what each function does.

Shapes: N examples, C classes or coordinates, L populations of `sizes` rows, K unit regions.

A program takes ROWS rows of one population, in tiles of TILE / WIDTH rows and WIDTH columns. Labels and weights are
read once a row and never expanded, counts are private to the program until it ends, and one launch covers all
populations. Under `TRITON_INTERPRET=1` the kernels run on a CPU, for tests.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ghm.losses import kernel_parts as parts
from ghm.losses.vectorised import product_is_exact

ROWS, TILE = 512, 1024
MOST_POPULATIONS = 8
SIZES = [f"size_{level}" for level in range(MOST_POPULATIONS)]


@triton.jit(do_not_specialize=SIZES)
def _ghm_c_count_kernel(
    logit, label, weight, count,
    size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7,
    L: tl.constexpr, C: tl.constexpr, K: tl.constexpr, EXACT: tl.constexpr, SLOTS: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    level, first, rows = parts.locate(size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7, ROWS, L)
    histogram = tl.zeros([SLOTS], dtype=tl.int32)
    for begin in range(0, ROWS, TILE // WIDTH):
        row, inside, target, factor = parts.rows_of_tile(label, weight, first, begin, rows, TILE // WIDTH)
        for left in range(0, C, WIDTH):
            column = left + tl.arange(0, WIDTH)[None, :]
            mask = inside & (column < C)
            x = tl.load(logit + first * C + row * C + column, mask=mask, other=0.0).to(tl.float32)
            probability, _ = parts.probability(x)
            region = parts.classification_region(probability, target == column, K, EXACT)
            histogram += parts.histogram(region, mask & (factor > 0), K, SLOTS, TILE)
    slot = tl.arange(0, SLOTS)
    tl.atomic_add(count + level * K + slot, histogram.to(tl.int64), mask=slot < K)


@triton.jit(do_not_specialize=SIZES)
def _ghm_c_loss_kernel(
    logit, label, weight, table, total,
    size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7,
    L: tl.constexpr, C: tl.constexpr, K: tl.constexpr, EXACT: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    level, first, rows = parts.locate(size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7, ROWS, L)
    part = tl.zeros([TILE // WIDTH, WIDTH], dtype=tl.float32)
    for begin in range(0, ROWS, TILE // WIDTH):
        row, inside, target, factor = parts.rows_of_tile(label, weight, first, begin, rows, TILE // WIDTH)
        for left in range(0, C, WIDTH):
            column = left + tl.arange(0, WIDTH)[None, :]
            mask = inside & (column < C)
            x = tl.load(logit + first * C + row * C + column, mask=mask, other=0.0).to(tl.float32)
            probability, small = parts.probability(x)
            region = parts.classification_region(probability, target == column, K, EXACT)
            weigh = parts.factor(table + level * K, region, mask & (factor > 0), K)
            part += tl.where(mask, parts.cross_entropy(x, target == column, small) * weigh, 0.0)
    tl.atomic_add(total + level, tl.sum(part.to(tl.float64)))


@triton.jit(do_not_specialize=SIZES)
def _ghm_c_gradient_kernel(
    logit, label, weight, table, gradient,
    size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7,
    L: tl.constexpr, C: tl.constexpr, K: tl.constexpr, EXACT: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    level, first, rows = parts.locate(size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7, ROWS, L)
    for begin in range(0, ROWS, TILE // WIDTH):
        row, inside, target, factor = parts.rows_of_tile(label, weight, first, begin, rows, TILE // WIDTH)
        for left in range(0, C, WIDTH):
            column = left + tl.arange(0, WIDTH)[None, :]
            mask = inside & (column < C)
            place = first * C + row * C + column
            x = tl.load(logit + place, mask=mask, other=0.0).to(tl.float32)
            probability, small = parts.probability(x)
            positive = target == column
            region = parts.classification_region(probability, positive, K, EXACT)
            weigh = parts.factor(table + level * K, region, mask & (factor > 0), K)
            slope = parts.error(x, positive, small) * tl.where(positive, -weigh, weigh)
            tl.store(gradient + place, slope.to(gradient.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def _ghm_r_count_kernel(
    pred, target, weight, count, mu_square,
    size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7,
    L: tl.constexpr, C: tl.constexpr, K: tl.constexpr, EXACT: tl.constexpr, SLOTS: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    level, first, rows = parts.locate(size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7, ROWS, L)
    histogram = tl.zeros([SLOTS], dtype=tl.int32)
    for begin in range(0, ROWS * C, TILE):
        place = begin + tl.arange(0, TILE)
        d, valid = parts.differences(pred, target, weight, first * C + place, place < rows * C)
        region = parts.regression_region(d, tl.sqrt_rn(d * d + mu_square), K, EXACT)
        histogram += parts.histogram(region, valid, K, SLOTS, TILE)
    slot = tl.arange(0, SLOTS)
    tl.atomic_add(count + level * K + slot, histogram.to(tl.int64), mask=slot < K)


@triton.jit(do_not_specialize=SIZES)
def _ghm_r_loss_kernel(
    pred, target, weight, table, total, mu, mu_square,
    size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7,
    L: tl.constexpr, C: tl.constexpr, K: tl.constexpr, EXACT: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    level, first, rows = parts.locate(size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7, ROWS, L)
    part = tl.zeros([TILE], dtype=tl.float32)
    for begin in range(0, ROWS * C, TILE):
        place = begin + tl.arange(0, TILE)
        d, valid = parts.differences(pred, target, weight, first * C + place, place < rows * C)
        length = tl.sqrt_rn(d * d + mu_square)
        weigh = parts.factor(table + level * K, parts.regression_region(d, length, K, EXACT), valid, K)
        part += tl.where(place < rows * C, (length - mu) * weigh, 0.0)
    tl.atomic_add(total + level, tl.sum(part.to(tl.float64)))


@triton.jit(do_not_specialize=SIZES)
def _ghm_r_gradient_kernel(
    pred, target, weight, table, gradient, mu_square,
    size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7,
    L: tl.constexpr, C: tl.constexpr, K: tl.constexpr, EXACT: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    level, first, rows = parts.locate(size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7, ROWS, L)
    for begin in range(0, ROWS * C, TILE):
        place = begin + tl.arange(0, TILE)
        d, valid = parts.differences(pred, target, weight, first * C + place, place < rows * C)
        length = tl.sqrt_rn(d * d + mu_square)
        weigh = parts.factor(table + level * K, parts.regression_region(d, length, K, EXACT), valid, K)
        slope = d / length * weigh
        tl.store(gradient + first * C + place, slope.to(gradient.dtype.element_ty), mask=place < rows * C)


@triton.jit
def _focal_loss_kernel(
    logit, label, weight, total, gamma, alpha, size,
    SQUARE: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    rows = tl.minimum(size - first, ROWS)
    part = tl.zeros([TILE // WIDTH, WIDTH], dtype=tl.float32)
    for begin in range(0, ROWS, TILE // WIDTH):
        row, inside, target, factor = parts.rows_of_tile(label, weight, first, begin, rows, TILE // WIDTH)
        for left in range(0, C, WIDTH):
            column = left + tl.arange(0, WIDTH)[None, :]
            mask = inside & (column < C)
            x = tl.load(logit + first * C + row * C + column, mask=mask, other=0.0).to(tl.float32)
            positive = target == column
            _, small = parts.probability(x)
            balance = tl.where(positive, alpha, 1 - alpha)
            power = parts.power(parts.error(x, positive, small), gamma, SQUARE)
            part += tl.where(mask, balance * power * parts.cross_entropy(x, positive, small) * factor, 0.0)
    tl.atomic_add(total, tl.sum(part.to(tl.float64)))


@triton.jit
def _focal_gradient_kernel(
    logit, label, weight, scale, gradient, gamma, alpha, size,
    SQUARE: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    rows = tl.minimum(size - first, ROWS)
    upstream = tl.load(scale)
    for begin in range(0, ROWS, TILE // WIDTH):
        row, inside, target, factor = parts.rows_of_tile(label, weight, first, begin, rows, TILE // WIDTH)
        for left in range(0, C, WIDTH):
            column = left + tl.arange(0, WIDTH)[None, :]
            mask = inside & (column < C)
            place = first * C + row * C + column
            x = tl.load(logit + place, mask=mask, other=0.0).to(tl.float32)
            positive = target == column
            _, small = parts.probability(x)
            error = parts.error(x, positive, small)
            right = parts.error(x, target != column, small)
            slope = gamma * right * parts.cross_entropy(x, positive, small) + error
            balance = tl.where(positive, -alpha, 1 - alpha)
            value = balance * parts.power(error, gamma, SQUARE) * slope * factor * upstream
            tl.store(gradient + place, value.to(gradient.dtype.element_ty), mask=mask)


def _width(columns: int) -> int:
    """The columns of a tile: the power of two that leaves the fewest lanes idle, at least 4 where there are as many."""
    widths = [2**power for power in range(7) if 2**power >= min(4, triton.next_power_of_2(columns))]
    return min(widths, key=lambda width: (triton.cdiv(columns, width) * width, -width))


def _launch(
    kernel: triton.JITFunction, inputs: tuple[Tensor, ...], rest: tuple, sizes: list[int], bins: int, **constants: int
) -> None:
    """Run a kernel over all populations at once; `inputs` are the prediction, and what there is of each example.

    Raises:
        ValueError: more populations than the kernels take.
    """
    if len(sizes) > MOST_POPULATIONS:
        raise ValueError(f"sizes must name at most {MOST_POPULATIONS} populations, got {len(sizes)}")
    programs, columns = sum(triton.cdiv(size, ROWS) for size in sizes), inputs[0].shape[1]
    if programs and columns:
        arguments = [tensor.contiguous() for tensor in inputs]
        padded = sizes + [0] * (MOST_POPULATIONS - len(sizes))
        shape = {"L": len(sizes), "C": columns, "ROWS": ROWS, "TILE": TILE, "WIDTH": _width(columns)}
        with torch.cuda.device_of(inputs[0]):  # Triton launches on the current device
            kernel[(programs,)](*arguments, *rest, *padded, K=bins, EXACT=product_is_exact(bins), **shape, **constants)


def ghm_c_count(logit: Tensor, label: Tensor, weight: Tensor, sizes: list[int], bins: int) -> tuple[Tensor, Tensor]:
    """Counts, [L, K]; nothing is kept for the other passes, which find the regions again."""
    count_LK = torch.zeros(len(sizes), bins, dtype=torch.int64, device=logit.device)
    slots = triton.next_power_of_2(bins + 1)  # one more for what is in no region
    _launch(_ghm_c_count_kernel, (logit, label, weight), (count_LK,), sizes, bins, SLOTS=slots)
    return count_LK, torch.empty(0, dtype=torch.uint8, device=logit.device)


def ghm_c_loss(
    logit: Tensor, label: Tensor, weight: Tensor, _slot: Tensor, sizes: list[int], factor_LK: Tensor
) -> Tensor:
    total_L = torch.zeros(len(sizes), dtype=torch.float64, device=logit.device)
    rest = (factor_LK.contiguous(), total_L)
    _launch(_ghm_c_loss_kernel, (logit, label, weight), rest, sizes, factor_LK.shape[1])
    return total_L.float()


def ghm_c_gradient(
    logit: Tensor, label: Tensor, weight: Tensor, _slot: Tensor, sizes: list[int], factor_LK: Tensor
) -> Tensor:
    gradient = torch.empty_like(logit)
    rest = (factor_LK.contiguous(), gradient)
    _launch(_ghm_c_gradient_kernel, (logit, label, weight), rest, sizes, factor_LK.shape[1])
    return gradient


def ghm_r_count(pred: Tensor, target: Tensor, weight: Tensor, sizes: list[int], bins: int, mu: float) -> Tensor:
    """Counts of the gradient norms of ASL1, [L, K]."""
    count_LK = torch.zeros(len(sizes), bins, dtype=torch.int64, device=pred.device)
    constants = {"SLOTS": triton.next_power_of_2(bins + 1), "enable_fp_fusion": False}
    _launch(_ghm_r_count_kernel, (pred, target, weight), (count_LK, mu * mu), sizes, bins, **constants)
    return count_LK


def ghm_r_loss(pred: Tensor, target: Tensor, weight: Tensor, sizes: list[int], factor_LK: Tensor, mu: float) -> Tensor:
    """ASL1 times the factor of its region, summed over each population, [L]."""
    total_L = torch.zeros(len(sizes), dtype=torch.float64, device=pred.device)
    rest = (factor_LK.contiguous(), total_L, mu, mu * mu)
    _launch(_ghm_r_loss_kernel, (pred, target, weight), rest, sizes, factor_LK.shape[1], enable_fp_fusion=False)
    return total_L.float()


def ghm_r_gradient(
    pred: Tensor, target: Tensor, weight: Tensor, sizes: list[int], factor_LK: Tensor, mu: float
) -> Tensor:
    """The derivative of `ghm_r_loss` by the prediction, [N, D]."""
    gradient = torch.empty_like(pred)
    rest = (factor_LK.contiguous(), gradient, mu * mu)
    _launch(_ghm_r_gradient_kernel, (pred, target, weight), rest, sizes, factor_LK.shape[1], enable_fp_fusion=False)
    return gradient


def focal_loss(logit: Tensor, label: Tensor, weight: Tensor, gamma: float, alpha: float, factor: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64, device=logit.device)
    _launch_focal(_focal_loss_kernel, logit, label, weight, (total,), gamma, alpha)
    return (total * factor).float()


def focal_gradient(logit: Tensor, label: Tensor, weight: Tensor, gamma: float, alpha: float, factor: Tensor) -> Tensor:
    gradient = torch.empty_like(logit)
    _launch_focal(_focal_gradient_kernel, logit, label, weight, (factor.contiguous(), gradient), gamma, alpha)
    return gradient


def _launch_focal(
    kernel: triton.JITFunction, logit: Tensor, label: Tensor, weight: Tensor, rest: tuple, gamma: float, alpha: float
) -> None:
    if logit.numel():
        arguments = (logit, label.contiguous(), weight.contiguous(), *rest, gamma, alpha, len(logit))
        constants = {"SQUARE": gamma == 2, "C": logit.shape[1], "WIDTH": _width(logit.shape[1])}
        with torch.cuda.device_of(logit):
            kernel[(triton.cdiv(len(logit), ROWS),)](*arguments, **constants, ROWS=ROWS, TILE=TILE)
