"""GHM-C, GHM-R and Focal Loss in plain PyTorch: in chunks that stay in the cache, from labels without one-hot targets.

Shapes: N examples (anchors), C classes or coordinates, L populations, K unit regions, W slots, P rows that may hold a
positive. `sizes` are the rows of each population, in order. Predictions are contiguous.

Nearly every logit belongs to a negative, and a row holds one positive at most. So each pass treats all logits as
negative and mends the positives apart. The slot of an example is its region; K too is the last region (a norm of 1).
The second half of the slots are positives. The last of either half are in no region: ignored, or NaN.
`ghm/losses/kernels.py` has the same functions. On a CPU slots of 8 bits are counted and looked up two at a time, as one
number of 16 bits, in half the time.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise
from math import isnan, prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from ghm.losses.density import classification_gradient_norm, region_counts, region_edges, region_index

CLASSIFICATION_END = 1 + 1e-6  # mmdet's last edge of GHM-C
MOST_BINS = 2**14 - 2
ONE = torch.ones(())
_kept = threading.local()  # the memory of a chunk on a CPU
# Examples of a chunk: on a CPU its buffers share the cache, on a GPU launches must be few.
CHUNK, DEVICE_CHUNK = 100_000, 1 << 24


def on_host(tensor: Tensor) -> bool:
    """Whether the values of a tensor can be looked at without waiting for a device."""
    return tensor.device.type == "cpu"


def slot_dtype(bins: int) -> torch.dtype:
    """The dtype that holds the slots of up to `MOST_BINS` regions."""
    return torch.int8 if bins <= 2**6 - 2 else torch.int16


def ghm_c_count(
    logit_NC: Tensor, label_N: Tensor, weight_N: Tensor, sizes: list[int], bins: int
) -> tuple[Tensor, Tensor]:
    """Count the gradient norms of valid examples in each region: int64, [L, K]; and the slot of each logit, [N, C]."""
    slot_NC = torch.empty_like(logit_NC, dtype=slot_dtype(bins))
    ignored_N1 = _ignored(weight_N, bins)[:, None]
    for _, rows, norm in _chunks(logit_NC, sizes):
        slot = slot_NC[rows]
        _regions(torch.sigmoid(logit_NC[rows].float(), out=norm), bins, out=slot)
        slot.bitwise_or_(ignored_N1[rows])
    row_P, place_P, positive_P = _positives(label_N, logit_NC.shape[1])
    right_P = slot_NC.new_empty(place_P.shape)
    _regions(classification_gradient_norm(logit_NC.view(-1)[place_P].float(), ONE), bins, out=right_P)
    slot_P = right_P.bitwise_or_(ignored_N1[row_P, 0]).bitwise_or_(_none(bins) + 1)
    slot_NC.view(-1).index_copy_(0, place_P, torch.where(positive_P, slot_P, slot_NC.view(-1)[place_P]))
    return _counts(torch.stack([_histogram(slot, bins) for slot in slot_NC.split(sizes)]), bins), slot_NC


def ghm_c_loss_and_gradient(
    logit_NC: Tensor, label_N: Tensor, weight_N: Tensor, slot_NC: Tensor, sizes: list[int], factor_LK: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum cross entropy times the factor of its region over each population, and derive the sum by the logits.

    float32, [L]; and in the dtype of the logits, rounded once, [N, C].
    """
    negative_LW, positive_LW = _by_slot(factor_LK)
    lookup = _lookup(negative_LW)
    gradient_NC = torch.empty_like(logit_NC)
    loss_L = torch.zeros(len(sizes), dtype=torch.float64, device=logit_NC.device)
    for level, rows, probability, entropy, factor, spare in _chunks(logit_NC, sizes, buffers=4):
        logit = logit_NC[rows].float()
        lookup(level, slot_NC[rows], factor, spare)
        torch.sigmoid(logit, out=probability)
        loss_L[level].add_(_softplus(logit, probability, out=entropy, spare=spare).mul_(factor).sum())
        torch.mul(probability, factor, out=gradient_NC[rows])
    row_P, place_P, _ = _positives(label_N, logit_NC.shape[1])
    level_P = torch.zeros_like(row_P)
    for size in sizes[:-1]:
        row_P = row_P - size
        level_P += row_P >= 0
    factor_P = positive_LW[level_P, slot_NC.view(-1)[place_P].int()]
    logit_P = -logit_NC.view(-1)[place_P].float()
    loss_L.scatter_add_(0, level_P, (softplus(logit_P) * factor_P).double())
    # All else is zero there.
    gradient_NC.view(-1).index_add_(0, place_P, (logit_P.sigmoid() * -factor_P).to(logit_NC.dtype))
    return loss_L.float(), gradient_NC


def ghm_r_count(
    pred_ND: Tensor, target_ND: Tensor, weight_ND: Tensor, sizes: list[int], bins: int, mu: float
) -> tuple[Tensor, Tensor]:
    """Count the gradient norms of ASL1 of valid examples in each region: int64, [L, K].

    With it sqrt(d^2 + mu^2) of each, d = prediction - target, float32, [N, D], which `ghm_r_loss_and_gradient` takes.
    """
    length_ND = torch.empty_like(pred_ND, dtype=torch.float32)
    count_LW = torch.zeros(len(sizes), 2 * _none(bins) + 2, dtype=torch.int64, device=pred_ND.device)
    for level, rows, slope, spare in _chunks(pred_ND, sizes, buffers=2):
        torch.sub(pred_ND[rows].float(), target_ND[rows].float(), out=slope)
        length = torch.mul(slope, slope, out=length_ND[rows]).add_(mu * mu).sqrt_()
        slot = _box_slots(slope.div_(length), weight_ND[rows], bins, spare)
        count_LW[level].add_(_histogram(slot, bins))
    return _counts(count_LW, bins), length_ND


def ghm_r_loss_and_gradient(
    pred_ND: Tensor,
    target_ND: Tensor,
    weight_ND: Tensor,
    length_ND: Tensor,
    sizes: list[int],
    factor_LK: Tensor,
    mu: float,
) -> tuple[Tensor, Tensor]:
    """Sum ASL1 times the factor of its region over each population, and derive the sum by the prediction.

    float32, [L]; and in the dtype of the prediction, rounded once, [N, D].
    """
    lookup = _lookup(_by_slot(factor_LK)[0])
    gradient_ND = torch.empty_like(pred_ND)
    loss_L = torch.zeros(len(sizes), dtype=torch.float64, device=pred_ND.device)
    for level, rows, slope, factor, spare in _chunks(pred_ND, sizes, buffers=3):
        torch.sub(pred_ND[rows].float(), target_ND[rows].float(), out=slope).div_(length_ND[rows])
        lookup(level, _box_slots(slope, weight_ND[rows], factor_LK.shape[1], spare), factor, spare)
        loss_L[level].add_(torch.sub(length_ND[rows], mu, out=spare).mul_(factor).sum())
        torch.mul(slope, factor, out=gradient_ND[rows])
    return loss_L.float(), gradient_ND


def focal_loss_and_gradient(
    logit_NC: Tensor, label_N: Tensor, weight_N: Tensor, gamma: float, alpha: float, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum Focal Loss times the weight of its row, times `factor`, and derive the sum by the logits.

    float32, []; and in the dtype of the logits, rounded once, [N, C].
    """
    row_P, place_P, positive_P = _positives(label_N, logit_NC.shape[1])
    weight_N = weight_N.float()
    factor_N1 = ((1 - alpha) * factor * weight_N)[:, None]
    gradient_NC = torch.empty_like(logit_NC)
    loss = torch.zeros((), dtype=torch.float64, device=logit_NC.device)
    for _, rows, *buffers in _chunks(logit_NC, [len(logit_NC)], buffers=4):
        value, slope = _focal(logit_NC[rows].float(), gamma, *buffers)
        torch.mul(slope, factor_N1[rows], out=gradient_NC[rows])
        here = rows  # the positives of these rows
        if on_host(row_P):
            here = slice(*torch.searchsorted(row_P, torch.tensor([rows.start, rows.stop])).tolist())
        position_P = place_P[here] - rows.start * logit_NC.shape[1]
        value.view(-1)[position_P] = value.view(-1)[position_P].masked_fill(positive_P[here], 0.0)
        loss += (1 - alpha) * torch.dot(value.sum(1), weight_N[rows])
    logit_P = -logit_NC.view(-1)[place_P].float()
    value_P, slope_P = _focal(logit_P, gamma, *logit_P.new_empty(4, len(logit_P)))
    weight_P = alpha * weight_N[row_P]
    loss += torch.where(positive_P, value_P * weight_P, 0.0).sum(dtype=torch.float64)
    slope_P = (slope_P * -factor * weight_P).to(logit_NC.dtype)
    gradient_NC.view(-1).index_copy_(0, place_P, torch.where(positive_P, slope_P, gradient_NC.view(-1)[place_P]))
    return (factor * loss).float(), gradient_NC


def multiply(gradient: Tensor, upstream: Tensor, sizes: list[int]) -> None:
    """Multiply the rows of each population by its `upstream`, [L] or []; nothing is written where that is 1."""
    if not (on_host(upstream) and bool((upstream == 1).all())):
        for part, factor in zip(gradient.split(sizes), upstream.reshape(-1), strict=True):
            part.copy_(part.float().mul_(factor))


def few_rows(weight_ND: Tensor) -> Tensor | None:
    """The rows with a weight other than zero on a CPU where they are few, [R]; else None, which stands for all."""
    if not on_host(weight_ND) or torch.compiler.is_compiling():
        return None
    # Comparisons, and sums of short rows, take ten times as long.
    used_N = weight_ND.float().abs() @ torch.ones(weight_ND.shape[1])
    if 4 * int(used_N.count_nonzero()) >= len(used_N):
        return None
    return used_N.nonzero().squeeze(1)


def sizes_of_rows(row_R: Tensor, sizes: list[int]) -> list[int]:
    """How many of the rows, in order, are in each population."""
    end_L = torch.searchsorted(row_R, torch.tensor([0, *sizes]).cumsum(0)).tolist()
    return [end - start for start, end in pairwise(end_L)]


def _focal(
    logit: Tensor, gamma: float, probability: Tensor, power: Tensor, value: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor]:
    """p^gamma softplus(x), p = sigmoid(x), and its derivative by x: p^gamma (gamma (1 - p) softplus(x) + p)."""
    torch.sigmoid(logit, out=probability)
    _softplus(logit, probability, out=slope, spare=value)
    if gamma == 2:
        torch.mul(probability, probability, out=power)
    else:
        torch.pow(probability, gamma, out=power)
    torch.mul(slope, power, out=value)
    slope.addcmul_(slope, probability, value=-1).mul_(gamma).add_(probability).mul_(power)
    return value, slope


def _chunks(prediction: Tensor, sizes: list[int], buffers: int = 1) -> Iterator[tuple[Any, ...]]:
    """Yield a population, rows of it, and float32 memory for their examples, which the next chunk gets too.

    New memory costs more than what is done with it, so that each thread keeps its own on a CPU.
    """
    columns, host = prediction.shape[1], on_host(prediction)
    rows = max(1, (CHUNK if host else DEVICE_CHUNK) // max(1, columns))
    shape = (buffers, min(len(prediction), rows), columns)
    if host:
        if getattr(_kept, "memory", ONE).numel() < max(2, prod(shape)):
            _kept.memory = torch.empty(max(2, prod(shape)))
        memory = _kept.memory[: prod(shape)].view(shape).unbind()
    else:
        memory = torch.empty(shape, device=prediction.device).unbind()
    start = 0
    for level, size in enumerate(sizes):
        for first in range(start, start + size, rows):
            last = min(first + rows, start + size)
            yield level, slice(first, last), *(buffer[: last - first] for buffer in memory)
        start += size


@lru_cache
def product_is_exact(bins: int) -> bool:
    """Whether floor(g * bins) in float32 is the region of every float32 g in [0, 1).

    Rounding keeps the order, so it is enough to look at each edge and at the number below it.
    """
    edge_E = region_edges(bins, end=1.0)[1:-1]
    here_E = torch.arange(1, bins)
    below_E = torch.nextafter(edge_E, torch.zeros(()))
    return bool(((edge_E * bins).long() == here_E).all() and ((below_E * bins).long() == here_E - 1).all())


def _regions(norm: Tensor, bins: int, *, out: Tensor) -> None:
    """Write the slot of every gradient norm; `norm` is used up."""
    if on_host(norm) and product_is_exact(bins) and not isnan(norm.sum()):
        out.copy_(norm.mul_(bins))
    else:
        edge_E = region_edges(bins, end=CLASSIFICATION_END, device=norm.device)
        index = region_index(norm, norm == norm, edge_E=edge_E)
        out.copy_(index.masked_fill_(index == bins, _none(bins)))


def _box_slots(slope: Tensor, weight: Tensor, bins: int, spare: Tensor) -> Tensor:
    """The slot of every coordinate by its slope, the derivative of ASL1."""
    slot = torch.empty(slope.shape, dtype=slot_dtype(bins), device=slope.device)
    _regions(torch.abs(slope, out=spare), bins, out=slot)
    return slot if _all_valid(weight) else slot.bitwise_or_(_ignored(weight, bins))


def _all_valid(weight: Tensor) -> bool:
    """Whether it is known that no example is ignored."""
    return on_host(weight) and weight.numel() > 0 and weight.amin().item() > 0


def _none(bins: int) -> int:
    """The slot of what is in no region, which is the slot of any norm with its bits set. W is twice one more."""
    return (1 << (bins + 1).bit_length()) - 1


def _ignored(weight: Tensor, bins: int) -> Tensor:
    """The bits to set in the slots of examples with a weight: those of none where they are ignored."""
    return (weight > 0).to(slot_dtype(bins)).sub_(1).bitwise_and_(_none(bins))


def _histogram(slot: Tensor, bins: int) -> Tensor:
    """Count the slots, int64, [W]."""
    slot, width = slot.view(-1), 2 * _none(bins) + 2
    if not on_host(slot):
        return region_counts(slot, bins=width)
    if _pairs(slot) and len(slot) >= width * 256:
        count_WW = torch.bincount(slot.view(torch.int16), minlength=width * 256).view(-1, 256)[:, :width]
        return count_WW.sum(0) + count_WW.sum(1)
    return torch.bincount(slot, minlength=width)


def _counts(count_LW: Tensor, bins: int) -> Tensor:
    """The counts of the regions, of negatives and positives, [L, K], from those of the slots."""
    count_LH = count_LW.unflatten(1, (2, -1)).sum(1)
    count_LK = count_LH[:, :bins].clone()
    count_LK[:, -1].add_(count_LH[:, bins])
    return count_LK


def _pairs(slot: Tensor) -> bool:
    """Whether slots can be read two at a time."""
    return slot.dtype == torch.int8 and slot.numel() % 2 == slot.storage_offset() % 2 == 0


def _by_slot(factor_LK: Tensor) -> tuple[Tensor, Tensor]:
    """The factor of each slot of a negative, 0 for positives, and the other way round, both [L, W]."""
    half = _none(factor_LK.shape[1]) + 1
    factor_LH = pad(torch.cat([factor_LK, factor_LK[:, -1:]], dim=1), (0, half - factor_LK.shape[1] - 1))
    return pad(factor_LH, (0, half)), pad(factor_LH, (half, 0))


def _lookup(factor_LW: Tensor) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
    """Make the function that looks up the factors of slots of a population, two at a time as complex numbers.

    It writes to its third argument; what is in the fourth is lost.
    """
    levels, width = factor_LW.shape
    pair_LWV = torch.empty(levels, width, 256 if width <= 128 else 0, dtype=torch.complex64, device=factor_LW.device)
    second = int(sys.byteorder == "little")  # the part that the high byte, a row of the table, stands for
    table_LWW2 = torch.view_as_real(pair_LWV)[:, :, :width]
    if width <= 128:
        table_LWW2[..., second] = factor_LW[:, :, None]
        table_LWW2[..., 1 - second] = factor_LW[:, None]
    factor_l, pair_l = factor_LW.unbind(), pair_LWV.flatten(1).unbind()

    def lookup(level: int, slot: Tensor, out: Tensor, spare: Tensor) -> Tensor:
        table, target = factor_l[level], out.view(-1)
        slot = slot.view(-1)
        if on_host(slot) and _pairs(slot):
            table, target, slot = pair_l[level], target.view(torch.complex64), slot.view(torch.int16)
        index = spare.view(-1).view(torch.int32)[: len(slot)]
        torch.index_select(table, 0, index.copy_(slot), out=target)
        return out

    return lookup


def _softplus(logit: Tensor, probability: Tensor, *, out: Tensor, spare: Tensor) -> Tensor:
    """log(1 + exp(x)) from p = sigmoid(x), as max(x, 0) - log(1 - min(p, 1 - p)); exponentials are what costs most."""
    torch.sub(ONE, probability, out=out)
    torch.log1p(torch.minimum(out, probability, out=out).neg_(), out=out)
    return torch.sub(torch.clamp(logit, min=0, out=spare), out, out=out)


def _positives(label_N: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of positives, their places among all logits, and whether they are positives at all, each [P].

    On a CPU only them, elsewhere one candidate a row, so that nothing waits for the device.
    """
    column_N = label_N.clamp(0, classes - 1).long()
    positive_N = column_N == label_N
    if on_host(label_N):
        row_P = positive_N.nonzero().squeeze(1)
        return row_P, row_P * classes + column_N[row_P], positive_N[row_P]
    row_N = torch.arange(len(label_N), device=label_N.device)
    return row_N, row_N * classes + column_N, positive_N
