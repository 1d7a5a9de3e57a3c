"""What the Triton kernels are made of: functions that run on the device, for a tile of examples.

Shapes: K unit regions, L populations, R rows of a tile. A norm is computed as PyTorch computes it on CUDA, by the same
exponential, correctly rounded divisions and no fused products, so that both agree on its region. Elsewhere fewer
instructions count, for the passes are bound by them.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

# Of the 32 values in a register of a warp, how many have the lane's number: their bits that agree with its bits.
_BITS = "".join(
    f"and.b32 t, $1, {1 << bit}; setp.ne.b32 p, t, 0; vote.sync.ballot.b32 v, p, 0xffffffff; "
    f"bfe.s32 t, lane, {bit}, 1; lop3.b32 m, m, v, t, 0x90; "
    for bit in range(5)
)
VOTES = tl.constexpr(
    "{ .reg .pred p; .reg .b32 lane, t, v, m; mov.u32 lane, %laneid; "
    f"setp.ne.b32 p, $2, 0; vote.sync.ballot.b32 m, p, 0xffffffff; {_BITS} popc.b32 $0, m; }}"
)
# The sum of a thread's 8 values in the first, 0 in the others.
_SUM = " ".join(f"add.s32 t, t, ${8 + i};" for i in range(8)) + " mov.b32 $0, t; "
TOGETHER = tl.constexpr(
    "{ .reg .b32 t; mov.b32 t, 0; " + _SUM + " ".join(f"mov.b32 ${i}, 0;" for i in range(1, 8)) + " }"
)
TOGETHER_OF = tl.constexpr(",".join(8 * ["=r"] + 8 * ["r"]))
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)  # it has no library of CUDA's and no assembly


@triton.jit
def exp(x):
    if INTERPRETED:
        return tl.exp(x)
    else:
        return libdevice.exp(x)


@triton.jit
def reciprocal(x):
    """1 / x, correctly rounded, for x from 1 to 2^126: what ptxas makes of `rcp.rn.f32`, less its branch for others."""
    if INTERPRETED:
        return tl.div_rn(1.0, x)
    else:
        near = tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
        return tl.fma(near, tl.fma(-x, near, 1.0), near)


@triton.jit
def probability(x):
    """sigmoid(x) as PyTorch rounds it, or 2e-38 where that is less; and sigmoid(-|x|) without cancellation."""
    decay = exp(-tl.where(x < -87.0, -87.0, x))  # a maximum would lose NaN
    probability = reciprocal(1.0 + decay)
    return probability, tl.where(x > 0, decay * probability, probability)


@triton.jit
def gradient_norm(probability, positive):
    """|p - p*|, rounded as PyTorch does."""
    return tl.where(positive, 1.0 - probability, probability)


@triton.jit
def error(x, norm, positive, small):
    """|p - p*| without cancellation near 0; `small` is sigmoid(-|x|)."""
    return tl.where(positive & (x > 0), small, norm)


@triton.jit
def cross_entropy(x, positive, small):
    """softplus(x), or softplus(-x) of a positive: max(x, 0) - log(1 - s), where s = sigmoid(-|x|) is `small`.

    -log(1 - s) / s = 1 + s / 2 + ... by the polynomial of degree 8 that is nearest to it for s in [0, 1/2], 4e-8 off.
    """
    series = 1.4065688848495483 * small - 1.6274398565292358
    series = series * small + 1.2027658224105835
    series = series * small - 0.18062271177768707
    series = series * small + 0.2643258571624756
    series = series * small + 0.24346554279327393
    series = series * small + 0.3336602449417114
    series = series * small + 0.49999380111694336
    series = series * small + 1.0
    return tl.maximum(tl.where(positive, -x, x), 0.0) + series * small


@triton.jit
def region(norm, K: tl.constexpr, EXACT: tl.constexpr):
    """k / K <= norm < (k + 1) / K, the edges rounded as in `region_edges`; a norm of 1 is in the last, NaN in any."""
    if INTERPRETED:
        norm = tl.where(norm == norm, norm, 0.0)  # what is compiled has the other number for minimum
    if EXACT:
        return tl.minimum(norm * K, K - 0.5).to(tl.int32)
    else:
        # One too many at most, which the edge tells.
        region = tl.minimum(norm * (K + K * 2.0**-20), K - 0.5).to(tl.int32)
        return region - (norm < quotient(region.to(tl.float32), K)).to(tl.int32)


@triton.jit
def quotient(k, K: tl.constexpr):
    """k / K, correctly rounded, for whole k: by Markstein's correction of the product with 1 / K."""
    if INTERPRETED:
        return tl.div_rn(k, tl.zeros_like(k) + K)
    else:
        near = k * (1.0 / K)
        return tl.fma(tl.fma(-near, tl.zeros_like(k) + K, k), tl.zeros_like(k) + 1.0 / K, near)


@triton.jit
def locate(size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7, block, L: tl.constexpr):
    """The population of this program, its first row, and how many rows it has, `block` at most."""
    sizes = (size_0, size_1, size_2, size_3, size_4, size_5, size_6, size_7)
    left = tl.program_id(0)
    level = left * 0
    start = left.to(tl.int64) * 0
    first = start
    rows = level
    for i in tl.static_range(L):
        blocks = tl.cdiv(sizes[i], block)
        here = (left >= 0) & (left < blocks)
        level = tl.where(here, i, level)
        first = tl.where(here, start + left * block, first)
        rows = tl.where(here, tl.minimum(sizes[i] - left * block, block), rows)
        left -= blocks
        start += sizes[i]
    return level, first, rows


@triton.jit
def rows_of_tile(label, weight, first, begin, rows, C: tl.constexpr, R: tl.constexpr):
    """The rows of a tile, which of them are inside, their labels (-1: background) and their weights. [R, 1] each"""
    row = begin + tl.arange(0, R)
    inside = row < rows
    target = tl.load(label + first + row, mask=inside, other=-1)
    target = tl.where((target >= 0) & (target < C), target, -1).to(tl.int32)
    factor = tl.load(weight + first + row, mask=inside, other=0.0).to(tl.float32)
    return row[:, None], inside[:, None], target[:, None], factor[:, None]


@triton.jit
def differences(pred, target, weight, place, inside):
    """d = prediction - target, and whether it is valid."""
    d = tl.load(pred + place, mask=inside, other=0.0).to(tl.float32)
    d -= tl.load(target + place, mask=inside, other=0.0).to(tl.float32)
    return d, inside & (tl.load(weight + place, mask=inside, other=0.0) > 0)


@triton.jit
def gather(table, region, valid):
    """The factor of each region. By assembly: a load would move the tile to another layout, through shared memory."""
    if INTERPRETED:
        found = tl.load(table + region)
    else:
        found = tl.inline_asm_elementwise(
            "ld.global.nc.b32 $0, [$1];", "=r,l", [table + region], tl.float32, is_pure=True, pack=1
        )
    return tl.where(valid, found, 0.0)


@triton.jit
def nothing(SLOTS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """A histogram of nothing: a number a slot, or with VOTES numbers of a lane's region in each of its registers."""
    if INTERPRETED or SLOTS > 32:
        return tl.zeros([SLOTS], dtype=tl.int32)
    else:
        return tl.zeros([ROWS, WIDTH], dtype=tl.int32)


@triton.jit
def histogram(region, valid, SLOTS: tl.constexpr, TILE: tl.constexpr):
    """How many of a tile are in each region. Up to 32 regions by votes: lane i counts the lanes whose region is i."""
    if INTERPRETED or SLOTS > 32:
        return tl.histogram(
            tl.reshape(region, [TILE], can_reorder=True), SLOTS, tl.reshape(valid, [TILE], can_reorder=True)
        )
    else:
        return tl.inline_asm_elementwise(VOTES, "=r,r,r", [region, valid.to(tl.int32)], tl.int32, is_pure=False, pack=1)


@triton.jit
def add_up(total, histogram, K: tl.constexpr, SLOTS: tl.constexpr):
    """Add a histogram to the counts of a population."""
    if INTERPRETED or SLOTS > 32:
        slot = tl.arange(0, SLOTS)
        tl.atomic_add(total + slot, histogram.to(tl.int64), mask=slot < K, sem="relaxed")
    else:
        lane = tl.inline_asm_elementwise("mov.u32 $0, %laneid;", "=r,r", [histogram], tl.int32, is_pure=True, pack=1)
        several = tl.inline_asm_elementwise(TOGETHER, TOGETHER_OF, [histogram], tl.int32, is_pure=True, pack=8)
        tl.atomic_add(total + lane, several.to(tl.int64), mask=(lane < K) & (several > 0), sem="relaxed")


@triton.jit
def power(probability, gamma, SQUARE: tl.constexpr):
    if SQUARE:
        return probability * probability
    else:
        # 0 to the power of 0 is 1.
        power = tl.exp2(gamma * tl.log2(tl.where(probability > 0, probability, 1.0)))
        return tl.where((probability > 0) | (gamma == 0), power, 0.0)
