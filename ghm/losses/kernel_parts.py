"""What the Triton kernels are made of: functions that run on the device, for a tile of examples.

Shapes: K unit regions, L populations, R rows of a tile. A norm is computed as PyTorch computes it on CUDA, by the same
exponential, correctly rounded divisions and no fused products, so that both agree on its region.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def exp(x):
    # The interpreter cannot call into CUDA's library.
    if INTERPRETED:
        return tl.exp(x)
    else:
        return libdevice.exp(x)


@triton.jit
def log1p(x):
    if INTERPRETED:
        # Kahan's correction of the rounding in 1 + x.
        total = 1.0 + x
        return tl.where(total == 1.0, x, tl.log(total) * (x / (total - 1.0)))
    else:
        return libdevice.log1p(x)


@triton.jit
def probability(x):
    """sigmoid(x) as PyTorch rounds it, and exp(-|x|) without a second exponential."""
    decay = exp(-x)
    return tl.div_rn(1.0, 1.0 + decay), tl.where(x > 0, decay, 1.0 / decay)


@triton.jit
def cross_entropy(x, positive, small):
    """softplus(x), or softplus(-x) of a positive; `small` is exp(-|x|)."""
    return tl.maximum(tl.where(positive, -x, x), 0.0) + log1p(small)


@triton.jit
def error(x, positive, small):
    """|p - p*| without cancellation near 0; `small` is exp(-|x|)."""
    return tl.where((x > 0) != positive, 1.0, small) / (1.0 + small)


@triton.jit
def region(norm, K: tl.constexpr, EXACT: tl.constexpr):
    """k / K <= norm < (k + 1) / K, the edges rounded as in `region_edges`; a norm of 1 is in the last; K for NaN."""
    region = (norm * K).to(tl.int32)
    if not EXACT:
        number = tl.zeros_like(norm) + K
        region -= (norm < tl.div_rn(region.to(tl.float32), number)).to(tl.int32)
        region += (norm >= tl.div_rn((region + 1).to(tl.float32), number)).to(tl.int32)
    return tl.where(norm == norm, tl.minimum(region, K - 1), K)


@triton.jit
def locate(size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7, ROWS: tl.constexpr, L: tl.constexpr):
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
def rows_of_tile(label, weight, first, begin, rows, R: tl.constexpr):
    """The rows of a tile, which of them are inside, their labels and their weights. [R, 1] each"""
    row = begin + tl.arange(0, R)
    inside = row < rows
    target = tl.load(label + first + row, mask=inside, other=-1)
    factor = tl.load(weight + first + row, mask=inside, other=0.0).to(tl.float32)
    return row[:, None], inside[:, None], target[:, None], factor[:, None]


@triton.jit
def differences(pred, target, weight, place, inside):
    """d = prediction - target, and whether it is valid."""
    d = tl.load(pred + place, mask=inside, other=0.0).to(tl.float32)
    d -= tl.load(target + place, mask=inside, other=0.0).to(tl.float32)
    return d, inside & (tl.load(weight + place, mask=inside, other=0.0) > 0)


@triton.jit
def factor(table, region, valid, K: tl.constexpr):
    return tl.load(table + region, mask=valid & (region < K), other=0.0)


@triton.jit
def histogram(region, valid, K: tl.constexpr, SLOTS: tl.constexpr, TILE: tl.constexpr):
    return tl.histogram(tl.reshape(tl.where(valid, region, K), [TILE], can_reorder=True), SLOTS)


@triton.jit
def power(probability, gamma, SQUARE: tl.constexpr):
    if SQUARE:
        return probability * probability
    else:
        # 0 to the power of 0 is 1.
        power = tl.exp2(gamma * tl.log2(tl.where(probability > 0, probability, 1.0)))
        return tl.where((probability > 0) | (gamma == 0), power, 0.0)
