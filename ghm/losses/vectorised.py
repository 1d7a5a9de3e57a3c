"""GHM-C and Focal Loss from integer labels in plain PyTorch: in chunks that stay in the cache, without one-hot targets.

Shapes: N examples (anchors), C classes, L populations, K unit regions, W slots, P rows that may hold a positive.
`sizes` are the rows of each population, in order.

Nearly every logit belongs to a negative, and a row holds one positive at most. So each pass treats all logits as
negative and mends the positives apart. The slot of a logit is its region; K too is the last region (a norm of 1), and
W - 1 none: ignored, NaN, or a positive, which is looked up again. `ghm/losses/kernels.py` has the same functions.
"""

import sys
from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from ghm.losses.density import classification_gradient_norm, region_counts, region_edges, region_index

CLASSIFICATION_END = 1 + 1e-6  # mmdet's last edge of GHM-C
MOST_BINS = 2**15 - 2
# Logits of a chunk: on a CPU its buffers share the cache, on a GPU launches must be few.
CHUNK, DEVICE_CHUNK = 220_000, 1 << 24
Positives = tuple[Tensor, Tensor, Tensor, Tensor]  # row, column, population and whether it is one at all, each [P]


def on_host(tensor: Tensor) -> bool:
    """Whether the values of a tensor can be looked at without waiting for a device."""
    return tensor.device.type == "cpu"


def slot_dtype(bins: int) -> torch.dtype:
    """The dtype that holds the slots of up to `MOST_BINS` regions; W is one more than half its range."""
    return torch.uint8 if bins <= 2**7 - 2 else torch.int16


def ghm_c_count(
    logit_NC: Tensor, label_N: Tensor, weight_N: Tensor, sizes: list[int], bins: int
) -> tuple[Tensor, Tensor]:
    """Count the gradient norms of valid examples in each region: int64, [L, K]; and the slot of each logit, [N, C]."""
    slot_NC = torch.empty_like(logit_NC, dtype=slot_dtype(bins))
    none = _none(slot_NC)
    edge_E = region_edges(bins, end=CLASSIFICATION_END, device=logit_NC.device)
    ignored_N = ~(weight_N > 0)
    mask_N1 = (ignored_N * none).to(slot_NC.dtype)[:, None]
    count_LW = torch.zeros(len(sizes), none + 1, dtype=torch.int64, device=logit_NC.device)
    for level, rows, buffer in _chunks(logit_NC, sizes):
        slot = slot_NC[rows]
        _regions(torch.sigmoid(logit_NC[rows].float(), out=buffer), edge_E, out=slot)
        slot.bitwise_or_(mask_N1[rows])
        count_LW[level] += _histogram(slot, none + 1)
    row_P, column_P, level_P, positive_P = positives = _positives(label_N, ignored_N, sizes, logit_NC.shape[1])
    wrong_P = slot_NC[row_P, column_P]
    slot_NC[row_P, column_P] = torch.where(positive_P, none, wrong_P)
    one_P, start_P = positive_P.long(), level_P * (none + 1)
    count_LW.view(-1).scatter_add_(0, start_P + wrong_P, -one_P)
    count_LW.view(-1).scatter_add_(0, start_P + _positive_slots(logit_NC, positives, edge_E, none), one_P)
    count_LK = count_LW[:, :bins].clone()
    count_LK[:, -1] += count_LW[:, bins]
    return count_LK, slot_NC


def ghm_c_loss(
    logit_NC: Tensor, label_N: Tensor, weight_N: Tensor, slot_NC: Tensor, sizes: list[int], factor_LK: Tensor
) -> Tensor:
    """Sum cross entropy times the factor of its region over each population. float32, [L]"""
    lookup, positives, factor_P = _factors(logit_NC, label_N, weight_N, slot_NC, sizes, factor_LK)
    loss_L = torch.zeros(len(sizes), dtype=torch.float64, device=logit_NC.device)
    for level, rows, buffer in _chunks(logit_NC, sizes):
        loss_L[level] += _softplus(logit_NC[rows].float(), out=buffer).mul_(lookup(level, slot_NC[rows])).sum()
    row_P, column_P, level_P, positive_P = positives
    loss_P = torch.where(positive_P, softplus(-logit_NC[row_P, column_P].float()) * factor_P, 0.0)
    return loss_L.scatter_add_(0, level_P, loss_P.double()).float()


def ghm_c_gradient(
    logit_NC: Tensor, label_N: Tensor, weight_N: Tensor, slot_NC: Tensor, sizes: list[int], factor_LK: Tensor
) -> Tensor:
    """The derivative of `ghm_c_loss` by the logits, in their dtype, rounded once. [N, C]"""
    lookup, positives, factor_P = _factors(logit_NC, label_N, weight_N, slot_NC, sizes, factor_LK)
    gradient_NC = torch.empty_like(logit_NC)
    for level, rows, buffer in _chunks(logit_NC, sizes):
        torch.sigmoid(logit_NC[rows].float(), out=buffer)
        torch.mul(buffer, lookup(level, slot_NC[rows]), out=gradient_NC[rows])
    row_P, column_P, _, positive_P = positives
    slope_P = -torch.sigmoid(-logit_NC[row_P, column_P].float()) * factor_P
    gradient_NC[row_P, column_P] = torch.where(positive_P, slope_P.to(logit_NC.dtype), gradient_NC[row_P, column_P])
    return gradient_NC


def focal_loss(
    logit_NC: Tensor, label_N: Tensor, weight_N: Tensor, gamma: float, alpha: float, factor: Tensor
) -> Tensor:
    """Sum Focal Loss times the weight of its row, times `factor`. float32, []"""
    row_P, column_P, _, positive_P = _positives(label_N, weight_N == 0, [len(logit_NC)], logit_NC.shape[1])
    loss = torch.zeros((), dtype=torch.float64, device=logit_NC.device)
    for _, rows, buffer in _chunks(logit_NC, [len(logit_NC)]):
        logit = logit_NC[rows].float()
        _softplus(logit, out=buffer)
        here = rows  # the positives of these rows
        if on_host(row_P):
            here = slice(*torch.searchsorted(row_P, torch.tensor([rows.start, rows.stop])).tolist())
        position_P = row_P[here] - rows.start, column_P[here]
        buffer[position_P] = buffer[position_P].masked_fill(positive_P[here], 0.0)
        loss_N = buffer.mul_(_power(torch.sigmoid(logit), gamma)).sum(1)
        loss += (1 - alpha) * torch.dot(loss_N, weight_N[rows].float())
    logit_P = -logit_NC[row_P, column_P].float()
    loss_P = alpha * _power(logit_P.sigmoid(), gamma) * softplus(logit_P) * weight_N[row_P].float()
    return (factor * (loss + torch.where(positive_P, loss_P, 0.0).sum(dtype=torch.float64))).float()


def focal_gradient(
    logit_NC: Tensor, label_N: Tensor, weight_N: Tensor, gamma: float, alpha: float, factor: Tensor
) -> Tensor:
    """The derivative of `focal_loss` by the logits, in their dtype, rounded once. [N, C]"""
    factor_N = factor * weight_N.float()
    gradient_NC = torch.empty_like(logit_NC)
    for _, rows, buffer in _chunks(logit_NC, [len(logit_NC)]):
        _focal_slope(logit_NC[rows].float(), gamma, out=buffer)
        torch.mul(buffer, (1 - alpha) * factor_N[rows, None], out=gradient_NC[rows])
    row_P, column_P, _, positive_P = _positives(label_N, weight_N == 0, [len(logit_NC)], logit_NC.shape[1])
    logit_P = -logit_NC[row_P, column_P].float()
    slope_P = -alpha * factor_N[row_P] * _focal_slope(logit_P, gamma, out=torch.empty_like(logit_P))
    gradient_NC[row_P, column_P] = torch.where(positive_P, slope_P.to(logit_NC.dtype), gradient_NC[row_P, column_P])
    return gradient_NC


def _focal_slope(logit: Tensor, gamma: float, *, out: Tensor) -> Tensor:
    """The derivative of p^gamma softplus(x) by x, p = sigmoid(x): p^gamma (gamma (1 - p) softplus(x) + p)."""
    _softplus(logit, out=out)
    probability = torch.sigmoid(logit)
    out.addcmul_(out, probability, value=-1)  # (1 - p) softplus(x)
    return out.mul_(gamma).add_(probability).mul_(_power(probability, gamma))


def _power(probability: Tensor, gamma: float) -> Tensor:
    return probability * probability if gamma == 2 else probability**gamma


def _chunk_rows(logit_NC: Tensor) -> int:
    return max(1, (CHUNK if on_host(logit_NC) else DEVICE_CHUNK) // max(1, logit_NC.shape[1]))


def _chunks(logit_NC: Tensor, sizes: list[int]) -> Iterator[tuple[int, slice, Tensor]]:
    """Yield a population, rows of it, and float32 memory for their logits, which the next chunk gets too.

    New memory for each chunk would cost more than what is done with it.
    """
    rows = _chunk_rows(logit_NC)
    buffer_NC = torch.empty(min(len(logit_NC), rows), logit_NC.shape[1], device=logit_NC.device)
    start = 0
    for level, size in enumerate(sizes):
        for first in range(start, start + size, rows):
            last = min(first + rows, start + size)
            yield level, slice(first, last), buffer_NC[: last - first]
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


def _regions(norm: Tensor, edge_E: Tensor, *, out: Tensor) -> None:
    """Write the slot of every gradient norm; `norm` is used up."""
    bins = len(edge_E) - 1
    if on_host(norm) and product_is_exact(bins) and not norm.sum().isnan():
        out.copy_(norm.mul_(bins))
    else:
        index = region_index(norm, norm == norm, edge_E=edge_E)
        out.copy_(index.masked_fill_(index == bins, _none(out)))


def _histogram(slot: Tensor, width: int) -> Tensor:
    """Count the slots, int64, [W]."""
    slot = slot.view(-1)
    if not on_host(slot):
        return region_counts(slot, bins=width)
    if _pairs(slot) and len(slot) >= 2 * width * 256:
        # Two slots at a time, as one number of 16 bits: half the work of the one loop here that has one thread.
        count_WW = torch.bincount(slot.view(torch.int16), minlength=width * 256).view(-1, 256)[:, :width]
        return count_WW.sum(0) + count_WW.sum(1)
    return torch.bincount(slot, minlength=width)


def _pairs(slot: Tensor) -> bool:
    """Whether slots can be read two at a time."""
    return slot.dtype == torch.uint8 and slot.numel() % 2 == slot.storage_offset() % 2 == 0


def _lookup(factor_LW: Tensor, slot_NC: Tensor) -> Callable[[int, Tensor], Tensor]:
    """Make the function that looks up the factors of a chunk of slots; its result lasts until the next call.

    On a CPU many slots are looked up two at a time, as complex numbers, which takes half as long.
    """
    if not on_host(slot_NC) or slot_NC.dtype != torch.uint8 or slot_NC.numel() < CHUNK:
        return lambda level, slot: torch.take(factor_LW[level], slot.long())
    first_LWV = pad(factor_LW, (0, 256 - factor_LW.shape[1]))[:, None].expand(-1, factor_LW.shape[1], 256)
    second_LWV = factor_LW[:, :, None].expand(first_LWV.shape)
    pair = (first_LWV, second_LWV) if sys.byteorder == "little" else (second_LWV, first_LWV)
    pair_LV = torch.complex(*(part.contiguous() for part in pair)).flatten(1)
    length = _chunk_rows(slot_NC) * slot_NC.shape[1] // 2
    index_V = torch.empty(length, dtype=torch.int64)
    factor_V = torch.empty(length, dtype=torch.complex64)

    def lookup(level: int, slot: Tensor) -> Tensor:
        if not _pairs(slot):
            return torch.take(factor_LW[level], slot.long())
        pair = slot.view(-1).view(torch.int16)
        torch.take(pair_LV[level], index_V[: len(pair)].copy_(pair), out=factor_V[: len(pair)])
        return factor_V[: len(pair)].view(torch.float32).view(slot.shape)

    return lookup


def _softplus(logit: Tensor, *, out: Tensor) -> Tensor:
    """log(1 + exp(x)), by two operators that are faster together than PyTorch's one, where nothing overflows."""
    if on_host(logit) and logit.numel() and logit.amax() < 80:
        return torch.log1p(torch.exp(logit, out=out), out=out)
    return torch.ops.aten.softplus(logit, out=out)


def _positives(label_N: Tensor, ignored_N: Tensor, sizes: list[int], classes: int) -> Positives:
    """Find the positives: on a CPU only them, elsewhere one candidate a row, so that nothing waits for the device."""
    positive_P = (label_N >= 0) & (label_N < classes) & ~ignored_N
    if on_host(label_N):
        row_P = positive_P.nonzero().squeeze(1)
        column_P, positive_P = label_N[row_P], positive_P[row_P]
    else:
        row_P = torch.arange(len(label_N), device=label_N.device)
        column_P = label_N.clamp(0, classes - 1)
    level_P = torch.zeros_like(row_P)
    start = 0
    for size in sizes[:-1]:
        start += size
        level_P += row_P >= start
    return row_P, column_P.long(), level_P, positive_P


def _positive_slots(logit_NC: Tensor, positives: Positives, edge_E: Tensor, none: int) -> Tensor:
    """The slot of every positive, int64, [P]."""
    row_P, column_P, _, _ = positives
    norm_P = classification_gradient_norm(logit_NC[row_P, column_P].float(), torch.ones((), device=logit_NC.device))
    slot_P = region_index(norm_P, norm_P == norm_P, edge_E=edge_E)
    return slot_P.masked_fill(slot_P == len(edge_E) - 1, none)


def _factors(
    logit_NC: Tensor, label_N: Tensor, weight_N: Tensor, slot_NC: Tensor, sizes: list[int], factor_LK: Tensor
) -> tuple[Callable[[int, Tensor], Tensor], Positives, Tensor]:
    """What looks up the factors of a chunk of slots, the positives, and the factor of each of them, [P]."""
    none, bins = _none(slot_NC), factor_LK.shape[1]
    factor_LW = pad(torch.cat([factor_LK, factor_LK[:, -1:]], dim=1), (0, none - bins))
    edge_E = region_edges(bins, end=CLASSIFICATION_END, device=logit_NC.device)
    positives = _positives(label_N, ~(weight_N > 0), sizes, logit_NC.shape[1])
    factor_P = factor_LW[positives[2], _positive_slots(logit_NC, positives, edge_E, none)]
    return _lookup(factor_LW, slot_NC), positives, factor_P


def _none(slot: Tensor) -> int:
    """The slot of what is in no region, which is any slot with its bits set."""
    return 2**7 - 1 if slot.dtype == torch.uint8 else 2**15 - 1
