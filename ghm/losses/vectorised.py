"""GHM-C and Focal Loss from integer labels in plain PyTorch: in chunks that stay in the cache, without one-hot targets.

Shapes: N examples (anchors), C classes, L populations, K unit regions, W slots, P rows that may hold a positive.
`sizes` are the rows of each population, in order.

Nearly every logit belongs to a negative, and a row holds one positive at most. So each pass treats all logits as
negative and mends the positives apart. The slot of a logit is its region; K too is the last region (a norm of 1), and
W - 1 none: ignored, NaN, or a positive, which is looked up again. `ghm/losses/kernels.py` has the same functions.
On a CPU slots of 8 bits are counted and looked up two at a time, as one number of 16 bits, in half the time.
"""

import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

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
    """The dtype that holds the slots of up to `MOST_BINS` regions."""
    return torch.int8 if bins <= 2**7 - 2 else torch.int16


def ghm_c_count(
    logit_NC: Tensor, label_N: Tensor, weight_N: Tensor, sizes: list[int], bins: int
) -> tuple[Tensor, Tensor]:
    """Count the gradient norms of valid examples in each region: int64, [L, K]; and the slot of each logit, [N, C]."""
    slot_NC = torch.empty_like(logit_NC, dtype=slot_dtype(bins))
    none = _none(bins)
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


def ghm_c_loss_and_gradient(
    logit_NC: Tensor, label_N: Tensor, weight_N: Tensor, slot_NC: Tensor, sizes: list[int], factor_LK: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum cross entropy times the factor of its region over each population, and derive the sum by the logits.

    float32, [L]; and in the dtype of the logits, rounded once, [N, C].
    """
    lookup, positives, factor_P = _factors(logit_NC, label_N, weight_N, sizes, factor_LK)
    gradient_NC = torch.empty_like(logit_NC)
    loss_L = torch.zeros(len(sizes), dtype=torch.float64, device=logit_NC.device)
    for level, rows, probability, entropy, positive_part in _chunks(logit_NC, sizes, buffers=3):
        logit, factor = logit_NC[rows].float(), lookup(level, slot_NC[rows])
        torch.sigmoid(logit, out=probability)
        _softplus(logit, probability, out=entropy, positive_part=positive_part)
        loss_L[level] += entropy.mul_(factor).sum()
        torch.mul(probability, factor, out=gradient_NC[rows])
    row_P, column_P, level_P, positive_P = positives
    logit_P = -logit_NC[row_P, column_P].float()
    loss_P = torch.where(positive_P, softplus(logit_P) * factor_P, 0.0)
    slope_P = (-torch.sigmoid(logit_P) * factor_P).to(logit_NC.dtype)
    gradient_NC[row_P, column_P] = torch.where(positive_P, slope_P, gradient_NC[row_P, column_P])
    return loss_L.scatter_add_(0, level_P, loss_P.double()).float(), gradient_NC


def ghm_c_loss(*inputs: Any) -> Tensor:
    """The first that `ghm_c_loss_and_gradient` gives."""
    return ghm_c_loss_and_gradient(*inputs)[0]


def ghm_c_gradient(*inputs: Any) -> Tensor:
    """The second that `ghm_c_loss_and_gradient` gives."""
    return ghm_c_loss_and_gradient(*inputs)[1]


def focal_loss(
    logit_NC: Tensor, label_N: Tensor, weight_N: Tensor, gamma: float, alpha: float, factor: Tensor
) -> Tensor:
    """Sum Focal Loss times the weight of its row, times `factor`. float32, []"""
    row_P, column_P, _, positive_P = _positives(label_N, weight_N == 0, [len(logit_NC)], logit_NC.shape[1])
    loss = torch.zeros((), dtype=torch.float64, device=logit_NC.device)
    for _, rows, buffer, probability, spare in _chunks(logit_NC, [len(logit_NC)], buffers=3):
        logit = logit_NC[rows].float()
        _softplus(logit, torch.sigmoid(logit, out=probability), out=buffer, positive_part=spare)
        here = rows  # the positives of these rows
        if on_host(row_P):
            here = slice(*torch.searchsorted(row_P, torch.tensor([rows.start, rows.stop])).tolist())
        position_P = row_P[here] - rows.start, column_P[here]
        buffer[position_P] = buffer[position_P].masked_fill(positive_P[here], 0.0)
        loss_N = buffer.mul_(_power(probability, gamma)).sum(1)
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
    for _, rows, *buffers in _chunks(logit_NC, [len(logit_NC)], buffers=3):
        slope = _focal_slope(logit_NC[rows].float(), gamma, buffers)
        torch.mul(slope, (1 - alpha) * factor_N[rows, None], out=gradient_NC[rows])
    row_P, column_P, _, positive_P = _positives(label_N, weight_N == 0, [len(logit_NC)], logit_NC.shape[1])
    logit_P = -logit_NC[row_P, column_P].float()
    slope_P = -alpha * factor_N[row_P] * _focal_slope(logit_P, gamma, [torch.empty_like(logit_P) for _ in range(3)])
    gradient_NC[row_P, column_P] = torch.where(positive_P, slope_P.to(logit_NC.dtype), gradient_NC[row_P, column_P])
    return gradient_NC


def _focal_slope(logit: Tensor, gamma: float, buffers: list[Tensor]) -> Tensor:
    """The derivative of p^gamma softplus(x) by x, p = sigmoid(x): p^gamma (gamma (1 - p) softplus(x) + p)."""
    slope, probability, spare = buffers
    _softplus(logit, torch.sigmoid(logit, out=probability), out=slope, positive_part=spare)
    slope.addcmul_(slope, probability, value=-1)  # (1 - p) softplus(x)
    return slope.mul_(gamma).add_(probability).mul_(_power(probability, gamma))


def _power(probability: Tensor, gamma: float) -> Tensor:
    return probability * probability if gamma == 2 else probability**gamma


def _chunk_rows(logit_NC: Tensor) -> int:
    return max(1, (CHUNK if on_host(logit_NC) else DEVICE_CHUNK) // max(1, logit_NC.shape[1]))


def _chunks(logit_NC: Tensor, sizes: list[int], buffers: int = 1) -> Iterator[tuple[Any, ...]]:
    """Yield a population, rows of it, and float32 memory for their logits, which the next chunk gets too.

    New memory for each chunk would cost more than what is done with it.
    """
    rows = _chunk_rows(logit_NC)
    shape = (buffers, min(len(logit_NC), rows), logit_NC.shape[1])
    buffers_BNC = torch.empty(shape, device=logit_NC.device).unbind()
    start = 0
    for level, size in enumerate(sizes):
        for first in range(start, start + size, rows):
            last = min(first + rows, start + size)
            yield level, slice(first, last), *(buffer_NC[: last - first] for buffer_NC in buffers_BNC)
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
        out.copy_(index.masked_fill_(index == bins, _none(bins)))


def _histogram(slot: Tensor, width: int) -> Tensor:
    """Count the slots, int64, [W]."""
    slot = slot.view(-1)
    if not on_host(slot):
        return region_counts(slot, bins=width)
    if _pairs(slot) and len(slot) >= 2 * width * 256:
        count_WW = torch.bincount(slot.view(torch.int16), minlength=width * 256).view(-1, 256)[:, :width]
        return count_WW.sum(0) + count_WW.sum(1)
    return torch.bincount(slot, minlength=width)


def _pairs(slot: Tensor) -> bool:
    """Whether slots can be read two at a time."""
    return slot.dtype == torch.int8 and slot.numel() % 2 == slot.storage_offset() % 2 == 0


def _lookup(factor_LW: Tensor) -> Callable[[int, Tensor], Tensor]:
    """Make the function that looks up the factors of slots of a population, two at a time as complex numbers."""
    levels, width = factor_LW.shape
    pair_LWV = torch.empty(levels, width, 256, dtype=torch.complex64, device=factor_LW.device)
    second = int(sys.byteorder == "little")  # the part that the high byte, a row of the table, stands for
    table_LWW2 = torch.view_as_real(pair_LWV)[:, :, :width]
    table_LWW2[..., second] = factor_LW[:, :, None]
    table_LWW2[..., 1 - second] = factor_LW[:, None]

    def lookup(level: int, slot: Tensor) -> Tensor:
        if on_host(slot) and _pairs(slot):
            pair = slot.view(-1).view(torch.int16).int()
            return pair_LWV[level].view(-1).index_select(0, pair).view(torch.float32).view(slot.shape)
        return factor_LW[level].index_select(0, slot.reshape(-1).int()).view(slot.shape)

    return lookup


def _softplus(logit: Tensor, probability: Tensor, *, out: Tensor, positive_part: Tensor) -> None:
    """log(1 + exp(x)) from p = sigmoid(x), as max(x, 0) - log(1 - min(p, 1 - p)); exponentials are what costs most."""
    torch.sub(torch.ones((), device=logit.device), probability, out=out)
    torch.log1p(torch.minimum(out, probability, out=out).neg_(), out=out)
    torch.sub(torch.clamp(logit, min=0, out=positive_part), out, out=out)


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
    logit_NC: Tensor, label_N: Tensor, weight_N: Tensor, sizes: list[int], factor_LK: Tensor
) -> tuple[Callable[[int, Tensor], Tensor], Positives, Tensor]:
    """What looks up the factors of a chunk of slots, the positives, and the factor of each of them, [P]."""
    bins = factor_LK.shape[1]
    factor_LW = _by_slot(factor_LK)
    edge_E = region_edges(bins, end=CLASSIFICATION_END, device=logit_NC.device)
    positives = _positives(label_N, ~(weight_N > 0), sizes, logit_NC.shape[1])
    factor_P = factor_LW[positives[2], _positive_slots(logit_NC, positives, edge_E, _none(bins))]
    return _lookup(factor_LW), positives, factor_P


def _by_slot(factor_LK: Tensor) -> Tensor:
    """The factor of each slot, [L, W]."""
    bins = factor_LK.shape[1]
    return pad(torch.cat([factor_LK, factor_LK[:, -1:]], dim=1), (0, _none(bins) - bins))


def _none(bins: int) -> int:
    """The slot of what is in no region, which is any slot of `bins` regions with its bits set."""
    return (1 << (bins + 1).bit_length()) - 1
