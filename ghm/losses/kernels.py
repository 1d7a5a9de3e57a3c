"""The passes of the losses as Triton kernels for CUDA; `ghm/losses/vectorised.py` says what each function does.

Shapes: N examples, C classes or coordinates, L populations of `sizes` rows, K unit regions.

A program is one warp, so that nothing in it waits. It takes a block of rows of one population, in tiles of TILE / WIDTH
rows and WIDTH columns. Labels and weights are read once a row and never expanded, counts are private to the program
until it ends, and one launch covers all populations. Programs add to the sums without the fences that an order would
cost. Under `TRITON_INTERPRET=1` the kernels run on a CPU, for tests.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ghm.losses import kernel_parts as parts
from ghm.losses.slots import product_is_exact, slot_dtype

TILE = 256  # 8 values a thread
PROGRAMS = 128  # of each multiprocessor, of which 32 run at a time
MOST_POPULATIONS = 8
COPIES = tl.constexpr(16)  # of sums that programs add to: at one address they would wait for each other
SIZES = [f"size_{level}" for level in range(MOST_POPULATIONS)]
# What a kernel is compiled for. COUNT writes counts, LOSS sums, GRADIENT derivatives, LOSS_AND_GRADIENT both.
COUNT, LOSS, GRADIENT, LOSS_AND_GRADIENT = map(tl.constexpr, range(4))


@triton.jit(do_not_specialize=["block", *SIZES])
def _ghm_c_kernel(
    logit, label, weight, table, total, out, block,
    size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7,
    PASS: tl.constexpr, L: tl.constexpr, C: tl.constexpr, K: tl.constexpr, EXACT: tl.constexpr, EASY: tl.constexpr,
    SLOTS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    level, first, rows = parts.locate(size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7, block, L)
    histogram = parts.nothing(SLOTS, TILE // WIDTH, WIDTH)
    easy = 0
    part = tl.zeros([TILE // WIDTH, WIDTH], dtype=tl.float32)
    begin = 0
    while begin < rows:
        row, inside, target, factor = parts.rows_of_tile(label, weight, first, begin, rows, C, TILE // WIDTH)
        counts = inside & (factor > 0)
        target = tl.where(counts, target, -1)
        several = tl.sum(counts.to(tl.int32))
        for left in range(0, C, WIDTH):
            column = left + tl.arange(0, WIDTH)[None, :]
            mask, valid = inside & (column < C), counts & (column < C)
            place = first * C + row * C + column
            positive = target - left == tl.arange(0, WIDTH)[None, :]  # or else compared in 64 bits
            if PASS == COUNT:
                x = tl.load(logit + place, mask=valid, other=-100.0).to(tl.float32)
                # Most tiles hold nothing but sure negatives, which are all in the first region.
                if tl.max((positive | ~(x < EASY)).to(tl.int32)) == 0:
                    easy += several * tl.minimum(WIDTH, C - left)
                else:
                    norm = parts.gradient_norm(parts.probability(x)[0], positive)
                    region = parts.region(norm, K, EXACT)
                    histogram += parts.histogram(region, valid & (norm == norm), SLOTS, TILE)
            else:
                x = tl.load(logit + place, mask=mask, other=0.0).to(tl.float32)
                probability, small = parts.probability(x)
                norm = parts.gradient_norm(probability, positive)
                weigh = parts.gather(table + level * K, parts.region(norm, K, EXACT), valid)
                if PASS != GRADIENT:
                    part += tl.where(mask, parts.cross_entropy(x, positive, small) * weigh, 0.0)
                if PASS != LOSS:
                    slope = parts.error(x, norm, positive, small) * tl.where(positive, -weigh, weigh)
                    tl.store(out + place, slope.to(out.dtype.element_ty), mask=mask)
        begin += TILE // WIDTH
    if PASS == COUNT:
        own = total + (tl.program_id(0) % COPIES * L + level) * K
        parts.add_up(own, histogram, K, SLOTS)
        tl.atomic_add(own, easy.to(tl.int64), sem="relaxed")
    elif PASS != GRADIENT:
        tl.atomic_add(total + tl.program_id(0) % COPIES * L + level, tl.sum(part.to(tl.float64)), sem="relaxed")


@triton.jit(do_not_specialize=["block", *SIZES])
def _ghm_r_kernel(
    pred, target, weight, table, total, out, mu, mu_square, block,
    size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7,
    PASS: tl.constexpr, L: tl.constexpr, C: tl.constexpr, K: tl.constexpr, EXACT: tl.constexpr,
    SLOTS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    level, first, rows = parts.locate(size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7, block, L)
    histogram = parts.nothing(SLOTS, 1, TILE)
    part = tl.zeros([1, TILE], dtype=tl.float32)
    begin = 0
    while begin < rows * C:
        place = begin + tl.arange(0, TILE)[None, :]
        inside = place < rows * C
        d, valid = parts.differences(pred, target, weight, first * C + place, inside)
        length = tl.sqrt_rn(d * d + mu_square)
        norm = tl.abs(tl.div_rn(d, length))
        region = parts.region(norm, K, EXACT)
        if PASS == COUNT:
            histogram += parts.histogram(region, valid & (norm == norm), SLOTS, TILE)
        else:
            weigh = parts.gather(table + level * K, region, valid)
            if PASS != GRADIENT:
                part += tl.where(inside, (length - mu) * weigh, 0.0)
            if PASS != LOSS:
                slope = d / length * weigh
                tl.store(out + first * C + place, slope.to(out.dtype.element_ty), mask=inside)
        begin += TILE
    if PASS == COUNT:
        parts.add_up(total + (tl.program_id(0) % COPIES * L + level) * K, histogram, K, SLOTS)
    elif PASS != GRADIENT:
        tl.atomic_add(total + tl.program_id(0) % COPIES * L + level, tl.sum(part.to(tl.float64)), sem="relaxed")


@triton.jit(do_not_specialize=["block", *SIZES])
def _focal_kernel(
    logit, label, weight, scale, total, out, gamma, alpha, block,
    size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7,
    PASS: tl.constexpr, SQUARE: tl.constexpr, L: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    _, first, rows = parts.locate(size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7, block, L)
    upstream = tl.load(scale)
    part = tl.zeros([TILE // WIDTH, WIDTH], dtype=tl.float32)
    begin = 0
    while begin < rows:
        row, inside, target, factor = parts.rows_of_tile(label, weight, first, begin, rows, C, TILE // WIDTH)
        for left in range(0, C, WIDTH):
            column = left + tl.arange(0, WIDTH)[None, :]
            mask = inside & (column < C)
            place = first * C + row * C + column
            x = tl.load(logit + place, mask=mask, other=0.0).to(tl.float32)
            positive = target == column
            probability, small = parts.probability(x)
            norm = parts.gradient_norm(probability, positive)
            error, entropy = parts.error(x, norm, positive, small), parts.cross_entropy(x, positive, small)
            weigh = tl.where(positive, alpha, 1 - alpha) * parts.power(error, gamma, SQUARE) * factor * upstream
            if PASS != GRADIENT:
                part += tl.where(mask, entropy * weigh, 0.0)
            if PASS != LOSS:
                other = parts.error(x, parts.gradient_norm(probability, target != column), target != column, small)
                slope = (gamma * other * entropy + error) * tl.where(positive, -weigh, weigh)
                tl.store(out + place, slope.to(out.dtype.element_ty), mask=mask)
        begin += TILE // WIDTH
    if PASS != GRADIENT:
        tl.atomic_add(total + tl.program_id(0) % COPIES, tl.sum(part.to(tl.float64)), sem="relaxed")


@triton.jit(do_not_specialize=["block", "stride", *SIZES])
def _multiply_kernel(
    gradient, upstream, stride, block,
    size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7,
    L: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    level, first, rows = parts.locate(size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7, block, L)
    factor = tl.load(upstream + level * stride).to(tl.float32)
    if factor != 1.0:
        begin = 0
        while begin < rows * C:
            place = begin + tl.arange(0, TILE)
            inside = place < rows * C
            value = tl.load(gradient + first * C + place, mask=inside, other=0.0).to(tl.float32) * factor
            tl.store(gradient + first * C + place, value.to(gradient.dtype.element_ty), mask=inside)
            begin += TILE


def _width(columns: int) -> int:
    """The columns of a tile: a power of two that leaves few lanes idle, and at least 4 or 16 neighbours in memory."""
    least = min(16 if columns > 64 else 4, triton.next_power_of_2(columns))
    return min(
        (2**power for power in range(7) if 2**power >= least),
        key=lambda width: (triton.cdiv(columns, width) * width, -width),
    )


def _block(rows: int, tile_rows: int, device: torch.device) -> int:
    """The rows of a program: whole tiles, and as many programs as keep the device busy to the end."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return triton.cdiv(triton.cdiv(rows, PROGRAMS * processors), tile_rows) * tile_rows


def _launch(kernel: triton.JITFunction, tensors: list[Tensor], numbers: tuple, sizes: list[int], **fixed: Any) -> None:
    """Run a pass over all populations at once; the first of the tensors has the rows and columns.

    Raises:
        ValueError: more populations than the kernels take.
    """
    if len(sizes) > MOST_POPULATIONS:
        raise ValueError(f"sizes must name at most {MOST_POPULATIONS} populations, got {len(sizes)}")
    columns = tensors[0].shape[1]
    width = _width(columns)
    block = _block(sum(sizes), TILE // width, tensors[0].device)
    if block and columns:
        programs = sum(triton.cdiv(size, block) for size in sizes)
        padded = sizes + [0] * (MOST_POPULATIONS - len(sizes))
        fixed |= {"L": len(sizes), "C": columns, "TILE": TILE, "num_warps": 1}
        if "WIDTH" in kernel.arg_names:
            fixed["WIDTH"] = width
        with torch.cuda.device_of(tensors[0]):  # Triton launches on the current device
            kernel[(programs,)](*tensors, *numbers, block, *padded, **fixed)


def _run(
    kernel: triton.JITFunction, which: Any, inputs: tuple, table: Tensor, numbers: tuple, sizes: list[int], **fixed: Any
) -> tuple[Tensor, Tensor]:
    """The sums in float64, one a population, and the gradient; only what the pass makes of them is filled in."""
    total = torch.zeros(COPIES.value, *table.shape[:-1], dtype=torch.float64, device=table.device)
    gradient = total if which == LOSS else torch.empty_like(inputs[0])
    tensors = [tensor.contiguous() for tensor in (*inputs, table)] + [total, gradient]
    _launch(kernel, tensors, numbers, sizes, PASS=which, **fixed)
    return total.sum(0), gradient


def _count(
    kernel: triton.JITFunction, inputs: tuple, numbers: tuple, sizes: list[int], bins: int, **fixed: Any
) -> Tensor:
    total = torch.zeros(COPIES.value, len(sizes), bins, dtype=torch.int64, device=inputs[0].device)
    tensors = [tensor.contiguous() for tensor in inputs] + 3 * [total]
    _launch(kernel, tensors, numbers, sizes, PASS=COUNT, **fixed)
    return total.sum(0)


def _regions(bins: int) -> dict[str, Any]:
    return {"K": bins, "EXACT": product_is_exact(bins), "SLOTS": triton.next_power_of_2(bins)}


def _logits(bins: int) -> dict[str, Any]:
    """Of logits below EASY the sigmoid is less than 1 / bins, by far more than any rounding of it."""
    return {**_regions(bins), "EASY": -math.log(bins - 1) - 1e-3 if bins > 1 else 1e38}


def _passes(
    run: Callable[..., tuple[Tensor, Tensor]],
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """The functions `..._loss`, `..._gradient` and `..._loss_and_gradient`."""

    def loss(*inputs: Any) -> Tensor:
        return run(LOSS, *inputs)[0].float()

    def gradient(*inputs: Any) -> Tensor:
        return run(GRADIENT, *inputs)[1]

    def both(*inputs: Any) -> tuple[Tensor, Tensor]:
        total, slope = run(LOSS_AND_GRADIENT, *inputs)
        return total.float(), slope

    return loss, gradient, both


def ghm_c_count(logit: Tensor, label: Tensor, weight: Tensor, sizes: list[int], bins: int) -> tuple[Tensor, Tensor]:
    """Counts, [L, K]; nothing is kept for the other passes, which find the regions again."""
    count_LK = _count(_ghm_c_kernel, (logit, label, weight), (), sizes, bins, **_logits(bins))
    return count_LK, logit.new_empty(0, dtype=slot_dtype(bins))


def ghm_r_count(
    pred: Tensor, target: Tensor, weight: Tensor, sizes: list[int], bins: int, mu: float
) -> tuple[Tensor, Tensor]:
    """Counts, [L, K]; nothing is kept here, either."""
    fixed = {**_regions(bins), "enable_fp_fusion": False}
    count_LK = _count(_ghm_r_kernel, (pred, target, weight), (mu, mu * mu), sizes, bins, **fixed)
    return count_LK, pred.new_empty(0, dtype=slot_dtype(bins))


def _ghm_c(
    which: Any, logit: Tensor, label: Tensor, weight: Tensor, _slot: Tensor, sizes: list[int], factor_LK: Tensor
) -> tuple[Tensor, Tensor]:
    return _run(_ghm_c_kernel, which, (logit, label, weight), factor_LK, (), sizes, **_logits(factor_LK.shape[1]))


def _ghm_r(
    which: Any,
    pred: Tensor,
    target: Tensor,
    weight: Tensor,
    _length: Tensor,
    sizes: list[int],
    factor_LK: Tensor,
    mu: float,
) -> tuple[Tensor, Tensor]:
    fixed = {**_regions(factor_LK.shape[1]), "enable_fp_fusion": False}
    return _run(_ghm_r_kernel, which, (pred, target, weight), factor_LK, (mu, mu * mu), sizes, **fixed)


def _focal(
    which: Any, logit: Tensor, label: Tensor, weight: Tensor, gamma: float, alpha: float, factor: Tensor
) -> tuple[Tensor, Tensor]:
    inputs, sizes = (logit, label, weight), [len(logit)]
    return _run(_focal_kernel, which, inputs, factor, (gamma, alpha), sizes, SQUARE=gamma == 2)


ghm_c_loss, ghm_c_gradient, ghm_c_loss_and_gradient = _passes(_ghm_c)
ghm_r_loss, ghm_r_gradient, ghm_r_loss_and_gradient = _passes(_ghm_r)
focal_loss, focal_gradient, focal_loss_and_gradient = _passes(_focal)


def multiply(gradient: Tensor, upstream: Tensor, sizes: list[int]) -> None:
    """Multiply the rows of each population by its `upstream`, [L] or []; nothing is read or written where that is 1."""
    stride = upstream.stride(0) if upstream.dim() else 0
    _launch(_multiply_kernel, [gradient, upstream], (stride,), sizes)
