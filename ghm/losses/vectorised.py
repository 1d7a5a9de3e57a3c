"""GHM-C, GHM-R and Focal Loss in plain PyTorch: in chunks that stay in the cache, from labels without one-hot targets.

Shapes: N examples (anchors), C classes or D coordinates, L populations, K unit regions, P candidates for positives.
`sizes` are the rows of each population, in order. Predictions are contiguous. Within a chunk all tensors are flat.

Nearly every logit belongs to a negative, and a row holds one positive at most. So each pass treats all logits as
negative and mends the positives. `ghm/losses/kernels.py` has the same functions for CUDA, `ghm/losses/host.py` those of
GHM-C and GHM-R for a CPU.
"""

import threading
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ghm.losses import slots
from ghm.losses.slots import slot_dtype

ONE = torch.ones(())
EASY = 0.995  # up to this probability its difference to 1 has digits enough in float32
# Examples of a chunk: on a CPU its buffers share the last cache, on a GPU launches must be few.
CHUNK, DEVICE_CHUNK = 1 << 20, 1 << 24
BUFFERS = 4


class _Kept(threading.local):
    """What a thread keeps on a CPU."""

    memory: Tensor = torch.empty(0)  # of a chunk


_kept = _Kept()


def on_host(tensor: Tensor) -> bool:
    """Whether the values of a tensor can be looked at without waiting for a device."""
    return tensor.device.type == "cpu"


def ghm_c_count(
    logit_NC: Tensor, label_N: Tensor, weight_N: Tensor, sizes: list[int], bins: int
) -> tuple[Tensor, Tensor]:
    """Count the gradient norms of valid examples in each region: int64, [L, K]; and the slot of each logit, [N, C]."""
    slot_NC = torch.empty_like(logit_NC, dtype=slot_dtype(bins))
    every_logit, every_slot = logit_NC.view(-1), slot_NC.view(-1)
    positives = _positives(label_N, logit_NC.shape[1])
    for _, here, norm, spare, *_ in _chunks(logit_NC, sizes):
        torch.sigmoid(_wide(every_logit[here], spare), out=norm)
        place_P, positive_P = _in_chunk(here, logit_NC, *positives)
        _put(norm, place_P, 1 - norm[place_P], positive_P)  # equation 3
        slots.find(norm, bins, spare, out=every_slot[here])
    slots.ignore(slot_NC, weight_N, bins)
    return slots.counts(slot_NC, sizes, bins, host=on_host(slot_NC)), slot_NC


def ghm_c_loss_and_gradient(
    logit_NC: Tensor, label_N: Tensor, weight_N: Tensor, slot_NC: Tensor, sizes: list[int], factor_LK: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum cross entropy times the factor of its region over each population, and derive the sum by the logits.

    float32, [L]; and in the dtype of the logits, rounded once, [N, C].
    """
    positives = _positives(label_N, logit_NC.shape[1])
    look_up = slots.lookup(factor_LK)
    gradient_NC = torch.empty_like(logit_NC)
    every_logit, every_slot, every_gradient = logit_NC.view(-1), slot_NC.view(-1), gradient_NC.view(-1)
    loss_L = torch.zeros(len(sizes), dtype=torch.float64, device=logit_NC.device)
    for lengths, here, probability, likelihood, spare, other in _chunks(logit_NC, sizes):
        gradient = every_gradient[here]
        factor = look_up(lengths, every_slot[here], _room(gradient, other), likelihood)
        logit = _wide(every_logit[here], spare)
        torch.sigmoid(logit, out=probability)
        place_P, positive_P = _in_chunk(here, logit_NC, *positives)
        logit_P = logit[place_P]
        # The derivative: the difference of two probabilities would have lost digits.
        _put(probability, place_P, logit_P.neg().sigmoid_().neg_(), positive_P)
        _log_likelihood(logit, probability, out=likelihood, spare=spare)
        _put(likelihood, place_P, logsigmoid(logit_P), positive_P)
        _add(loss_L, likelihood.mul_(factor), lengths)
        _product(probability, factor, out=gradient)
    return loss_L.neg_().float(), gradient_NC


def ghm_r_count(
    pred_ND: Tensor, target_ND: Tensor, weight_ND: Tensor, sizes: list[int], bins: int, mu: float
) -> tuple[Tensor, Tensor]:
    """Count the gradient norms of ASL1 of valid examples in each region: int64, [L, K]; and their slots, [N, D]."""
    slot_ND = torch.empty_like(pred_ND, dtype=slot_dtype(bins))
    every_slot, pair = slot_ND.view(-1), (pred_ND.view(-1), target_ND.reshape(-1))
    for _, here, length, slope, norm, _ in _chunks(pred_ND, sizes):
        _asl1(pair, here, mu, length, slope)
        slots.find(torch.abs(slope, out=norm), bins, norm, out=every_slot[here])
    slots.ignore(slot_ND, weight_ND, bins)
    return slots.counts(slot_ND, sizes, bins, host=on_host(slot_ND)), slot_ND


def ghm_r_loss_and_gradient(
    pred_ND: Tensor,
    target_ND: Tensor,
    weight_ND: Tensor,
    slot_ND: Tensor,
    sizes: list[int],
    factor_LK: Tensor,
    mu: float,
) -> tuple[Tensor, Tensor]:
    """Sum ASL1 times the factor of its region over each population, and derive the sum by the prediction.

    float32, [L]; and in the dtype of the prediction, rounded once, [N, D].
    """
    look_up = slots.lookup(factor_LK)
    gradient_ND = torch.empty_like(pred_ND)
    every_slot, every_gradient, pair = slot_ND.view(-1), gradient_ND.view(-1), (pred_ND.view(-1), target_ND.reshape(-1))
    loss_L = torch.zeros(len(sizes), dtype=torch.float64, device=pred_ND.device)
    for lengths, here, length, slope, spare, other in _chunks(pred_ND, sizes):
        _asl1(pair, here, mu, length, slope)
        gradient = every_gradient[here]
        factor = look_up(lengths, every_slot[here], _room(gradient, other), spare)
        _add(loss_L, torch.sub(length, mu, out=spare).mul_(factor), lengths)
        _product(slope, factor, out=gradient)
    return loss_L.float(), gradient_ND


def focal_loss_and_gradient(
    logit_NC: Tensor, label_N: Tensor, weight_N: Tensor, gamma: float, alpha: float, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum Focal Loss times the weight of its row, times `factor`, and derive the sum by the logits.

    float32, []; and in the dtype of the logits, rounded once, [N, C].
    """
    classes = logit_NC.shape[1]
    place_P, positive_P = positives = _positives(label_N, classes)
    weight_N = weight_N.float()
    factor_N1 = ((1 - alpha) * factor * weight_N)[:, None]
    gradient_NC = torch.empty_like(logit_NC)
    every_logit, every_gradient = logit_NC.view(-1), gradient_NC.view(-1)
    loss = torch.zeros((), dtype=torch.float64, device=logit_NC.device)
    for _, here, *buffers in _chunks(logit_NC, [len(logit_NC)]):
        value, slope = _focal(every_logit[here].float(), gamma, *buffers)
        rows = slice(here.start // classes, here.stop // classes)
        torch.mul(slope.view(-1, classes), factor_N1[rows], out=gradient_NC[rows])
        here_P, here_positive_P = _in_chunk(here, logit_NC, *positives)
        _put(value, here_P, torch.zeros_like(here_P, dtype=torch.float32), here_positive_P)
        loss += (1 - alpha) * torch.dot(value.view(-1, classes).sum(1), weight_N[rows])
    logit_P = -every_logit[place_P].float()
    value_P, slope_P = _focal(logit_P, gamma, *logit_P.new_empty(4, len(logit_P)))
    weight_P = alpha * weight_N[place_P // classes]
    value_P = value_P * weight_P
    loss += (value_P if positive_P is None else value_P.where(positive_P, 0.0)).sum(dtype=torch.float64)
    _put(every_gradient, place_P, (slope_P * -factor * weight_P).to(logit_NC.dtype), positive_P)
    return (factor * loss).float(), gradient_NC


def multiply(gradient: Tensor, upstream: Tensor, sizes: list[int]) -> None:
    """Multiply the rows of each population by its `upstream`, [L] or []; nothing is written where that is 1."""
    if not (on_host(upstream) and all(value == 1 for value in upstream.reshape(-1).tolist())):
        for part, factor in zip(gradient.split(sizes), upstream.reshape(-1), strict=True):
            part.copy_(part.float().mul_(factor))


def few_rows(weight_ND: Tensor) -> Tensor | None:
    """Rows on a CPU, [R], few of all: those with a weight other than zero, and some beside them; else None, for all."""
    if not on_host(weight_ND) or torch.compiler.is_compiling() or not weight_ND.numel():
        return None
    if weight_ND.stride(-1) == 0:  # one weight a row, as `ghm.targets` makes them
        row_R = weight_ND[:, 0].nonzero().view(-1)
        return row_R if 4 * len(row_R) < len(weight_ND) else None
    some = weight_ND[:: 1 + len(weight_ND) // 512]
    if 2 * int(some.count_nonzero()) > some.numel():
        return None  # or nearly: it is not worth a look at all
    used_ND, columns = weight_ND.bool(), weight_ND.shape[1]  # comparisons take ten times as long
    if 8 % columns or used_ND.numel() % 8:
        row_R = used_ND.any(1).nonzero().view(-1)
    else:  # eight at a time
        rows = 8 // columns
        row_R = torch.add(torch.arange(rows), used_ND.reshape(-1).view(torch.int64).nonzero(), alpha=rows).view(-1)
    return row_R if 4 * len(row_R) < len(weight_ND) else None


def sizes_of_rows(row_R: Tensor, sizes: list[int]) -> list[int]:
    """How many of the rows, in order, are in each population."""
    end_L = torch.searchsorted(row_R, torch.tensor([*accumulate(sizes, initial=0)])).tolist()
    return [end - start for start, end in pairwise(end_L)]


def _focal(
    logit: Tensor, gamma: float, probability: Tensor, power: Tensor, value: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor]:
    """p^gamma softplus(x), p = sigmoid(x), and its derivative by x: p^gamma (gamma (1 - p) softplus(x) + p)."""
    torch.sigmoid(logit, out=probability)
    _log_likelihood(logit, probability, out=slope, spare=value).neg_()
    if gamma == 2:
        torch.mul(probability, probability, out=power)
    else:
        torch.pow(probability, gamma, out=power)
    torch.mul(slope, power, out=value)
    slope.addcmul_(slope, probability, value=-1).mul_(gamma).add_(probability).mul_(power)
    return value, slope


def _chunks(prediction: Tensor, sizes: list[int]) -> Iterator[tuple[Any, ...]]:
    """Yield how much of each population is in a chunk of whole rows, where it is, and float32 memory for its examples.

    The next chunk gets the same memory. New memory costs more than what is done with it, so that each thread keeps its
    own on a CPU.
    """
    columns, total, host = prediction.shape[1], prediction.numel(), on_host(prediction)
    step = columns * max(1, (CHUNK if host else DEVICE_CHUNK) // max(1, columns))
    length = min(total, step)
    if host:
        if _kept.memory.numel() < BUFFERS * length:
            with torch.inference_mode(False):  # what is made in that mode could not be written to outside of it
                _kept.memory = torch.empty(BUFFERS * length)
        memory = _kept.memory[: BUFFERS * length].view(BUFFERS, length)
    else:
        memory = torch.empty(BUFFERS, length, device=prediction.device)
    ends = [0, *accumulate(size * columns for size in sizes)]
    for first in range(0, total, max(1, step)):
        last = min(first + step, total)
        lengths = [max(0, min(end, last) - max(start, first)) for start, end in pairwise(ends)]
        yield lengths, slice(first, last), *(memory[:, : last - first] if last - first < length else memory).unbind()


def _wide(part: Tensor, spare: Tensor) -> Tensor:
    """Some values as float32, in `spare` where they are not."""
    return part if part.dtype == torch.float32 else spare.copy_(part)


def _room(part: Tensor, other: Tensor) -> Tensor:
    """Memory for float32: that of what is written last, which is in the cache then, where it is float32."""
    return part if part.dtype == torch.float32 else other


def _product(slope: Tensor, factor: Tensor, *, out: Tensor) -> None:
    """Write the product, rounded once, to a tensor of any dtype; the first is lost where it is not float32."""
    product = torch.mul(slope, factor, out=_room(out, slope))
    if product is slope:
        out.copy_(product)


def _add(loss_L: Tensor, value: Tensor, lengths: list[int]) -> None:
    """Add values of a chunk to the sums of their populations."""
    loss_L.add_(value.sum() if len(lengths) == 1 else torch.stack([part.sum() for part in value.split(lengths)]))


def _asl1(pair: tuple[Tensor, Tensor], here: slice, mu: float, length: Tensor, slope: Tensor) -> None:
    """sqrt(d^2 + mu^2), d = prediction - target, and the derivative of ASL1 by d, which is d divided by it."""
    pred, target = pair
    torch.sub(_wide(pred[here], slope), _wide(target[here], length), out=slope)
    torch.mul(slope, slope, out=length).add_(mu * mu).sqrt_()
    slope.div_(length)


def _log_likelihood(logit: Tensor, probability: Tensor, *, out: Tensor, spare: Tensor) -> Tensor:
    """log(1 - p), p = sigmoid(x), as log(max(p, 1 - p)) - max(x, 0); exponentials are what costs most."""
    if on_host(probability) and probability.numel() and probability.amax().item() <= EASY:
        return torch.neg(probability, out=out).log1p_()
    torch.sub(ONE, probability, out=out)
    torch.minimum(out, probability, out=out).neg_().log1p_()
    return out.sub_(torch.clamp(logit, min=0, out=spare))


def _positives(label_N: Tensor, classes: int) -> tuple[Tensor, Tensor | None]:
    """The places of positives among all logits, and whether they are positives at all, both [P].

    On a CPU only them, and None for the second, elsewhere one candidate a row, so that nothing waits for the device.
    """
    column_N = label_N.clamp(0, classes - 1)
    positive_N = column_N == label_N
    if on_host(label_N):
        row_P = positive_N.nonzero().view(-1)
        return torch.add(label_N[row_P].long(), row_P, alpha=classes), None
    row_N = torch.arange(len(label_N), device=label_N.device)
    return row_N * classes + column_N.long(), positive_N


def _in_chunk(
    here: slice, logit_NC: Tensor, place_P: Tensor, positive_P: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The places of positives in a chunk, and whether they are positives at all."""
    if here == slice(0, logit_NC.numel()):
        return place_P, positive_P
    if positive_P is None:
        first, last = torch.searchsorted(place_P, torch.tensor([here.start, here.stop])).tolist()
        return place_P[first:last] - here.start, None
    rows = slice(here.start // logit_NC.shape[1], here.stop // logit_NC.shape[1])
    return place_P[rows] - here.start, positive_P[rows]


def _put(target: Tensor, place_P: Tensor, value_P: Tensor, positive_P: Tensor | None) -> None:
    """Write the values of positives to their places."""
    if positive_P is not None:
        value_P = value_P.where(positive_P, target[place_P])
    target.index_copy_(0, place_P, value_P)
