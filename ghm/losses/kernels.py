"""The passes of the losses as Triton kernels for CUDA; `ghm/losses/vectorised.py` says what each function does.

Shapes: N examples, C classes or coordinates, L populations of `sizes` rows, K unit regions.

A program takes ROWS rows of one population, in tiles of TILE / WIDTH rows and WIDTH columns. Labels and weights are
read once a row and never expanded, counts are private to the program until it ends, and one launch covers all
populations. A norm is computed as PyTorch computes it on CUDA, by the same exponential, correctly rounded divisions and
no fused products, so that both agree on its region. Under `TRITON_INTERPRET=1` the kernels run on a CPU, for tests.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from ghm.losses.vectorised import product_is_exact

ROWS, TILE = 512, 1024
MOST_POPULATIONS = 8
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
SIZES = [f"size_{level}" for level in range(MOST_POPULATIONS)]


@triton.jit
def _exp(x):
    # The interpreter cannot call into CUDA's library.
    if INTERPRETED:
        return tl.exp(x)
    else:
        return libdevice.exp(x)


@triton.jit
def _log1p(x):
    if INTERPRETED:
        # Kahan's correction of the rounding in 1 + x.
        total = 1.0 + x
        return tl.where(total == 1.0, x, tl.log(total) * (x / (total - 1.0)))
    else:
        return libdevice.log1p(x)


@triton.jit
def _probability(x):
    """sigmoid(x) as PyTorch rounds it, and exp(-|x|) without a second exponential."""
    decay = _exp(-x)
    return tl.div_rn(1.0, 1.0 + decay), tl.where(x > 0, decay, 1.0 / decay)


@triton.jit
def _cross_entropy(x, positive, small):
    """softplus(x), or softplus(-x) of a positive; `small` is exp(-|x|)."""
    return tl.maximum(tl.where(positive, -x, x), 0.0) + _log1p(small)


@triton.jit
def _error(x, positive, small):
    """|p - p*| without cancellation near 0; `small` is exp(-|x|)."""
    return tl.where((x > 0) != positive, 1.0, small) / (1.0 + small)


@triton.jit
def _region(norm, K: tl.constexpr, EXACT: tl.constexpr):
    """k / K <= norm < (k + 1) / K, the edges rounded as in `region_edges`; a norm of 1 is in the last; K for NaN."""
    region = (norm * K).to(tl.int32)
    if not EXACT:
        number = tl.zeros_like(norm) + K
        region -= (norm < tl.div_rn(region.to(tl.float32), number)).to(tl.int32)
        region += (norm >= tl.div_rn((region + 1).to(tl.float32), number)).to(tl.int32)
    return tl.where(norm == norm, tl.minimum(region, K - 1), K)


@triton.jit
def _locate(size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7, ROWS: tl.constexpr, L: tl.constexpr):
    """The population of this program, its first row, and how many rows it has."""
    sizes = (size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7)
    left = tl.program_id(0)
    level = left * 0
    start = left.to(tl.int64) * 0
    first = start
    rows = level
    for i in tl.static_range(L):
        blocks = tl.cdiv(sizes[i], ROWS)
        here = (left >= 0) & (left < blocks)
        level = tl.where(here, i, level)
        first = tl.where(here, start + left * ROWS, first)
        rows = tl.where(here, tl.minimum(sizes[i] - left * ROWS, ROWS), rows)
        left -= blocks
        start += sizes[i]
    return level, first, rows


@triton.jit
def _rows_of_tile(label, weight, first, begin, rows, R: tl.constexpr):
    """The rows of a tile, which of them are inside, their labels and their weights. [R, 1] each"""
    row = begin + tl.arange(0, R)
    inside = row < rows
    target = tl.load(label + first + row, mask=inside, other=-1)
    factor = tl.load(weight + first + row, mask=inside, other=0.0).to(tl.float32)
    return row[:, None], inside[:, None], target[:, None], factor[:, None]


@triton.jit
def _differences(pred, target, weight, place, inside):
    """d = prediction - target, and whether it is valid."""
    d = tl.load(pred + place, mask=inside, other=0.0).to(tl.float32)
    d -= tl.load(target + place, mask=inside, other=0.0).to(tl.float32)
    return d, inside & (tl.load(weight + place, mask=inside, other=0.0) > 0)


@triton.jit
def _classification_region(probability, positive, K: tl.constexpr, EXACT: tl.constexpr):
    return _region(tl.abs(probability - tl.where(positive, 1.0, 0.0)), K, EXACT)


@triton.jit
def _regression_region(d, length, K: tl.constexpr, EXACT: tl.constexpr):
    return _region(tl.abs(tl.div_rn(d, length)), K, EXACT)


@triton.jit
def _factor(table, region, valid, K: tl.constexpr):
    return tl.load(table + region, mask=valid & (region < K), other=0.0)


@triton.jit
def _histogram(region, valid, K: tl.constexpr, SLOTS: tl.constexpr, TILE: tl.constexpr):
    return tl.histogram(tl.reshape(tl.where(valid, region, K), [TILE], can_reorder=True), SLOTS)


@triton.jit(do_not_specialize=SIZES)
def _ghm_c_count_kernel(
    logit, label, weight, count,
    size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7,
    L: tl.constexpr, C: tl.constexpr, K: tl.constexpr, EXACT: tl.constexpr, SLOTS: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    level, first, rows = _locate(size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7, ROWS, L)
    histogram = tl.zeros([SLOTS], dtype=tl.int32)
    for begin in range(0, ROWS, TILE // WIDTH):
        row, inside, target, factor = _rows_of_tile(label, weight, first, begin, rows, TILE // WIDTH)
        for left in range(0, C, WIDTH):
            column = left + tl.arange(0, WIDTH)[None, :]
            mask = inside & (column < C)
            x = tl.load(logit + first * C + row * C + column, mask=mask, other=0.0).to(tl.float32)
            probability, _ = _probability(x)
            region = _classification_region(probability, target == column, K, EXACT)
            histogram += _histogram(region, mask & (factor > 0), K, SLOTS, TILE)
    slot = tl.arange(0, SLOTS)
    tl.atomic_add(count + level * K + slot, histogram.to(tl.int64), mask=slot < K)


@triton.jit(do_not_specialize=SIZES)
def _ghm_c_loss_kernel(
    logit, label, weight, table, total,
    size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7,
    L: tl.constexpr, C: tl.constexpr, K: tl.constexpr, EXACT: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    level, first, rows = _locate(size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7, ROWS, L)
    part = tl.zeros([TILE // WIDTH, WIDTH], dtype=tl.float32)
    for begin in range(0, ROWS, TILE // WIDTH):
        row, inside, target, factor = _rows_of_tile(label, weight, first, begin, rows, TILE // WIDTH)
        for left in range(0, C, WIDTH):
            column = left + tl.arange(0, WIDTH)[None, :]
            mask = inside & (column < C)
            x = tl.load(logit + first * C + row * C + column, mask=mask, other=0.0).to(tl.float32)
            probability, small = _probability(x)
            region = _classification_region(probability, target == column, K, EXACT)
            weigh = _factor(table + level * K, region, mask & (factor > 0), K)
            part += tl.where(mask, _cross_entropy(x, target == column, small) * weigh, 0.0)
    tl.atomic_add(total + level, tl.sum(part.to(tl.float64)))


@triton.jit(do_not_specialize=SIZES)
def _ghm_c_gradient_kernel(
    logit, label, weight, table, gradient,
    size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7,
    L: tl.constexpr, C: tl.constexpr, K: tl.constexpr, EXACT: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    level, first, rows = _locate(size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7, ROWS, L)
    for begin in range(0, ROWS, TILE // WIDTH):
        row, inside, target, factor = _rows_of_tile(label, weight, first, begin, rows, TILE // WIDTH)
        for left in range(0, C, WIDTH):
            column = left + tl.arange(0, WIDTH)[None, :]
            mask = inside & (column < C)
            place = first * C + row * C + column
            x = tl.load(logit + place, mask=mask, other=0.0).to(tl.float32)
            probability, small = _probability(x)
            positive = target == column
            region = _classification_region(probability, positive, K, EXACT)
            weigh = _factor(table + level * K, region, mask & (factor > 0), K)
            slope = _error(x, positive, small) * tl.where(positive, -weigh, weigh)
            tl.store(gradient + place, slope.to(gradient.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def _ghm_r_count_kernel(
    pred, target, weight, count, mu_square,
    size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7,
    L: tl.constexpr, C: tl.constexpr, K: tl.constexpr, EXACT: tl.constexpr, SLOTS: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    level, first, rows = _locate(size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7, ROWS, L)
    histogram = tl.zeros([SLOTS], dtype=tl.int32)
    for begin in range(0, ROWS * C, TILE):
        place = begin + tl.arange(0, TILE)
        d, valid = _differences(pred, target, weight, first * C + place, place < rows * C)
        region = _regression_region(d, tl.sqrt_rn(d * d + mu_square), K, EXACT)
        histogram += _histogram(region, valid, K, SLOTS, TILE)
    slot = tl.arange(0, SLOTS)
    tl.atomic_add(count + level * K + slot, histogram.to(tl.int64), mask=slot < K)


@triton.jit(do_not_specialize=SIZES)
def _ghm_r_loss_kernel(
    pred, target, weight, table, total, mu, mu_square,
    size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7,
    L: tl.constexpr, C: tl.constexpr, K: tl.constexpr, EXACT: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    level, first, rows = _locate(size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7, ROWS, L)
    part = tl.zeros([TILE], dtype=tl.float32)
    for begin in range(0, ROWS * C, TILE):
        place = begin + tl.arange(0, TILE)
        d, valid = _differences(pred, target, weight, first * C + place, place < rows * C)
        length = tl.sqrt_rn(d * d + mu_square)
        weigh = _factor(table + level * K, _regression_region(d, length, K, EXACT), valid, K)
        part += tl.where(place < rows * C, (length - mu) * weigh, 0.0)
    tl.atomic_add(total + level, tl.sum(part.to(tl.float64)))


@triton.jit(do_not_specialize=SIZES)
def _ghm_r_gradient_kernel(
    pred, target, weight, table, gradient, mu_square,
    size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7,
    L: tl.constexpr, C: tl.constexpr, K: tl.constexpr, EXACT: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    level, first, rows = _locate(size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7, ROWS, L)
    for begin in range(0, ROWS * C, TILE):
        place = begin + tl.arange(0, TILE)
        d, valid = _differences(pred, target, weight, first * C + place, place < rows * C)
        length = tl.sqrt_rn(d * d + mu_square)
        weigh = _factor(table + level * K, _regression_region(d, length, K, EXACT), valid, K)
        slope = d / length * weigh
        tl.store(gradient + first * C + place, slope.to(gradient.dtype.element_ty), mask=place < rows * C)


@triton.jit
def _power(probability, gamma, SQUARE: tl.constexpr):
    if SQUARE:
        return probability * probability
    else:
        # 0 to the power of 0 is 1.
        power = tl.exp2(gamma * tl.log2(tl.where(probability > 0, probability, 1.0)))
        return tl.where((probability > 0) | (gamma == 0), power, 0.0)


@triton.jit
def _focal_loss_kernel(
    logit, label, weight, total, gamma, alpha, size,
    SQUARE: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    rows = tl.minimum(size - first, ROWS)
    part = tl.zeros([TILE // WIDTH, WIDTH], dtype=tl.float32)
    for begin in range(0, ROWS, TILE // WIDTH):
        row, inside, target, factor = _rows_of_tile(label, weight, first, begin, rows, TILE // WIDTH)
        for left in range(0, C, WIDTH):
            column = left + tl.arange(0, WIDTH)[None, :]
            mask = inside & (column < C)
            x = tl.load(logit + first * C + row * C + column, mask=mask, other=0.0).to(tl.float32)
            positive = target == column
            _, small = _probability(x)
            balance = tl.where(positive, alpha, 1 - alpha)
            power = _power(_error(x, positive, small), gamma, SQUARE)
            part += tl.where(mask, balance * power * _cross_entropy(x, positive, small) * factor, 0.0)
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
        row, inside, target, factor = _rows_of_tile(label, weight, first, begin, rows, TILE // WIDTH)
        for left in range(0, C, WIDTH):
            column = left + tl.arange(0, WIDTH)[None, :]
            mask = inside & (column < C)
            place = first * C + row * C + column
            x = tl.load(logit + place, mask=mask, other=0.0).to(tl.float32)
            positive = target == column
            _, small = _probability(x)
            error = _error(x, positive, small)
            right = _error(x, target != column, small)
            slope = gamma * right * _cross_entropy(x, positive, small) + error
            balance = tl.where(positive, -alpha, 1 - alpha)
            value = balance * _power(error, gamma, SQUARE) * slope * factor * upstream
            tl.store(gradient + place, value.to(gradient.dtype.element_ty), mask=mask)


def _width(columns: int) -> int:
    """The columns of a tile: the power of two that leaves the fewest lanes idle, at least 4 where there are as many."""
    widths = [2**power for power in range(7) if 2**power >= min(4, triton.next_power_of_2(columns))]
    return min(widths, key=lambda width: (triton.cdiv(columns, width) * width, -width))


def _launch(
    kernel: triton.JITFunction, pred: Tensor, sizes: list[int], arguments: tuple, bins: int, **constants: object
) -> None:
    """Run a kernel over all populations at once.

    Raises:
        ValueError: more populations than the kernels take.
    """
    if len(sizes) > MOST_POPULATIONS:
        raise ValueError(f"sizes must name at most {MOST_POPULATIONS} populations, got {len(sizes)}")
    programs = sum(triton.cdiv(size, ROWS) for size in sizes)
    if programs and pred.shape[1]:
        padded = sizes + [0] * (MOST_POPULATIONS - len(sizes))
        shape = {"L": len(sizes), "C": pred.shape[1], "ROWS": ROWS, "TILE": TILE, "WIDTH": _width(pred.shape[1])}
        with torch.cuda.device_of(pred):  # Triton launches on the current device
            kernel[(programs,)](*arguments, *padded, K=bins, EXACT=product_is_exact(bins), **shape, **constants)


def _slots(bins: int) -> int:
    """The length of a histogram of `bins` regions and one more for what is in none."""
    return triton.next_power_of_2(bins + 1)


def ghm_c_count(logit: Tensor, label: Tensor, weight: Tensor, sizes: list[int], bins: int) -> tuple[Tensor, Tensor]:
    """Counts, [L, K]; nothing is kept for the other passes, which find the regions again."""
    count_LK = torch.zeros(len(sizes), bins, dtype=torch.int64, device=logit.device)
    arguments = (logit, label.contiguous(), weight.contiguous(), count_LK)
    _launch(_ghm_c_count_kernel, logit, sizes, arguments, bins, SLOTS=_slots(bins))
    return count_LK, torch.empty(0, dtype=torch.uint8, device=logit.device)


def ghm_c_loss(
    logit: Tensor, label: Tensor, weight: Tensor, _slot: Tensor, sizes: list[int], factor_LK: Tensor
) -> Tensor:
    """Cross entropy times the factor of its region, summed over each population, [L]."""
    total_L = torch.zeros(len(sizes), dtype=torch.float64, device=logit.device)
    arguments = (logit, label.contiguous(), weight.contiguous(), factor_LK.contiguous(), total_L)
    _launch(_ghm_c_loss_kernel, logit, sizes, arguments, factor_LK.shape[1])
    return total_L.float()


def ghm_c_gradient(
    logit: Tensor, label: Tensor, weight: Tensor, _slot: Tensor, sizes: list[int], factor_LK: Tensor
) -> Tensor:
    """The derivative of `ghm_c_loss` by the logits, [N, C]."""
    gradient = torch.empty_like(logit)
    arguments = (logit, label.contiguous(), weight.contiguous(), factor_LK.contiguous(), gradient)
    _launch(_ghm_c_gradient_kernel, logit, sizes, arguments, factor_LK.shape[1])
    return gradient


def ghm_r_count(pred: Tensor, target: Tensor, weight: Tensor, sizes: list[int], bins: int, mu: float) -> Tensor:
    """Counts of the gradient norms of ASL1, [L, K]."""
    count_LK = torch.zeros(len(sizes), bins, dtype=torch.int64, device=pred.device)
    arguments = (pred, target, weight, count_LK, mu * mu)
    _launch(_ghm_r_count_kernel, pred, sizes, arguments, bins, SLOTS=_slots(bins), enable_fp_fusion=False)
    return count_LK


def ghm_r_loss(pred: Tensor, target: Tensor, weight: Tensor, sizes: list[int], factor_LK: Tensor, mu: float) -> Tensor:
    """ASL1 times the factor of its region, summed over each population, [L]."""
    total_L = torch.zeros(len(sizes), dtype=torch.float64, device=pred.device)
    arguments = (pred, target, weight, factor_LK.contiguous(), total_L, mu, mu * mu)
    _launch(_ghm_r_loss_kernel, pred, sizes, arguments, factor_LK.shape[1], enable_fp_fusion=False)
    return total_L.float()


def ghm_r_gradient(
    pred: Tensor, target: Tensor, weight: Tensor, sizes: list[int], factor_LK: Tensor, mu: float
) -> Tensor:
    """The derivative of `ghm_r_loss` by the prediction, [N, D]."""
    gradient = torch.empty_like(pred)
    arguments = (pred, target, weight, factor_LK.contiguous(), gradient, mu * mu)
    _launch(_ghm_r_gradient_kernel, pred, sizes, arguments, factor_LK.shape[1], enable_fp_fusion=False)
    return gradient


def focal_loss(logit: Tensor, label: Tensor, weight: Tensor, gamma: float, alpha: float, factor: Tensor) -> Tensor:
    """Focal Loss times the weight of its row, summed, times `factor`, []."""
    total = torch.zeros((), dtype=torch.float64, device=logit.device)
    _launch_focal(_focal_loss_kernel, logit, label, weight, (total,), gamma, alpha)
    return (total * factor).float()


def focal_gradient(logit: Tensor, label: Tensor, weight: Tensor, gamma: float, alpha: float, factor: Tensor) -> Tensor:
    """The derivative of `focal_loss` by the logits, [N, C]."""
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
