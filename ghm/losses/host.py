"""The passes of GHM-C and GHM-R on a CPU, in C: functions of `ghm/losses/vectorised.py`, which says what each does.

For some 10^5 logits plain PyTorch spends more time between its many small operators than in them. `host.c` is compiled
when it is first needed, in a tenth of a second, for this process alone; without a C compiler plain PyTorch takes its
place. Slots, counts and gradients are those of plain PyTorch bit for bit, so that a training run may go on elsewhere.
"""

import ctypes
import logging
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ghm.losses import slots, vectorised
from ghm.losses.density import region_edges

_log = logging.getLogger(__name__)
SOURCE = Path(__file__).with_suffix(".c")
# Vectors, and every rounding as it is written. Not every compiler knows the first, which uses what this machine has.
FLAGS = ("-march=native", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
TYPES = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "i": ctypes.c_int, "f": ctypes.c_float}
ARGUMENTS = {
    "positives": "ppllpp",
    "factors": "pplippffffiip",
    "ghm_c_count": "ppppll" + "pliip" + "pppp",
    "ghm_c_loss_and_gradient": "pppppl" + "plpi" + "ppp",
    "ghm_r_count": "pppp" + "pliip" + "pp",
    "ghm_r_loss_and_gradient": "pppp" + "plpif" + "ppp",
}


class _Kept(threading.local):
    """What the last count of a thread has found, for the pass that follows it."""

    slot: Tensor | None = None  # of that count
    place: int = 0  # of its prediction
    found: Any = None


_kept = _Kept()


@cache
def library() -> Any:
    """The functions of `host.c`; None where there is no C compiler, or it fails, which is logged."""
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None:
        return None
    try:
        try:
            found = _compiled([*compiler.split(), *FLAGS])
        except subprocess.CalledProcessError:
            found = _compiled([*compiler.split(), *FLAGS[1:]])
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        _log.warning("%s does not compile %s, so that the losses are slower: %s", compiler, SOURCE, said)
        return None
    for name, types in ARGUMENTS.items():
        getattr(found, name).argtypes = [TYPES[each] for each in types]
    found.positives.restype = found.ghm_c_count.restype = ctypes.c_int64
    return found


def _compiled(command: list[str]) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        target = str(Path(folder) / "host.so")
        subprocess.run([*command, str(SOURCE), "-o", target, "-lm"], check=True, capture_output=True, text=True)
        return ctypes.CDLL(target)


def ghm_c_count(
    logit_NC: Tensor, label_N: Tensor, weight_N: Tensor, sizes: list[int], bins: int
) -> tuple[Tensor, Tensor]:
    if slots.slot_dtype(bins) != torch.int8:
        return vectorised.ghm_c_count(logit_NC, label_N, weight_N, sizes, bins)
    slot_NC = torch.empty_like(logit_NC, dtype=torch.int8)
    count_LK = torch.zeros(len(sizes), bins, dtype=torch.int64)
    label_N, weight_N, found = _values(label_N, torch.int64), _values(weight_N), None
    for rows, length_L in _chunks(logit_NC, sizes):
        logit = _values(_part(logit_NC, rows))
        probability, place, opposite = logit.sigmoid(), *_places(len(logit))
        number = library().ghm_c_count(
            logit.data_ptr(), probability.data_ptr(), _address(label_N, rows), _address(weight_N, rows), *logit.shape,
            length_L, len(sizes), *_regions(bins), _address(slot_NC, rows), count_LK.data_ptr(), place.data_ptr(),
            opposite.data_ptr(),
        )  # fmt: skip
        found = probability, place, opposite, number
    _keep(slot_NC, logit_NC, found)
    return count_LK, slot_NC


def ghm_c_loss_and_gradient(
    logit_NC: Tensor, label_N: Tensor, weight_N: Tensor, slot_NC: Tensor, sizes: list[int], factor_LK: Tensor
) -> tuple[Tensor, Tensor]:
    if slot_NC.dtype != torch.int8:
        return vectorised.ghm_c_loss_and_gradient(logit_NC, label_N, weight_N, slot_NC, sizes, factor_LK)
    kept, label_N, factor_LK = _found(slot_NC, logit_NC), _values(label_N, torch.int64), _values(factor_LK)
    gradient_NC = torch.empty_like(logit_NC)
    loss_L, sum_L = torch.zeros(len(sizes)), (ctypes.c_double * len(sizes))()
    for rows, length_L in _chunks(logit_NC, sizes):
        logit, gradient = _values(_part(logit_NC, rows)), _values(_part(gradient_NC, rows))
        probability, place, opposite, number = kept or _probabilities(logit, label_N, rows)
        opposite_P = opposite[:number].sigmoid()  # a difference to 1 would have lost digits
        library().ghm_c_loss_and_gradient(
            logit.data_ptr(), probability.data_ptr(), _address(slot_NC, rows), place.data_ptr(),
            opposite_P.data_ptr(), number, length_L, len(sizes), factor_LK.data_ptr(), factor_LK.shape[1],
            sum_L, loss_L.data_ptr(), gradient.data_ptr(),
        )  # fmt: skip
        if gradient.dtype != gradient_NC.dtype:
            gradient_NC[rows] = gradient
    return loss_L, gradient_NC


def ghm_r_count(
    pred_ND: Tensor, target_ND: Tensor, weight_ND: Tensor, sizes: list[int], bins: int, mu: float
) -> tuple[Tensor, Tensor]:
    if slots.slot_dtype(bins) != torch.int8:
        return vectorised.ghm_r_count(pred_ND, target_ND, weight_ND, sizes, bins, mu)
    slot_ND = torch.empty_like(pred_ND, dtype=torch.int8)
    count_LK = torch.zeros(len(sizes), bins, dtype=torch.int64)
    weight_ND, found = _values(weight_ND), None
    for rows, length_L in _chunks(pred_ND, sizes):
        pred, target = _values(_part(pred_ND, rows)), _values(_part(target_ND, rows))
        found = _root(pred, target, mu)
        library().ghm_r_count(
            pred.data_ptr(), target.data_ptr(), found.data_ptr(), _address(weight_ND, rows), length_L, len(sizes),
            *_regions(bins), _address(slot_ND, rows), count_LK.data_ptr(),
        )  # fmt: skip
    _keep(slot_ND, pred_ND, found)
    return count_LK, slot_ND


def ghm_r_loss_and_gradient(
    pred_ND: Tensor,
    target_ND: Tensor,
    weight_ND: Tensor,
    slot_ND: Tensor,
    sizes: list[int],
    factor_LK: Tensor,
    mu: float,
) -> tuple[Tensor, Tensor]:
    if slot_ND.dtype != torch.int8:
        return vectorised.ghm_r_loss_and_gradient(pred_ND, target_ND, weight_ND, slot_ND, sizes, factor_LK, mu)
    kept, factor_LK = _found(slot_ND, pred_ND), _values(factor_LK)
    gradient_ND = torch.empty_like(pred_ND)
    loss_L, sum_L = torch.zeros(len(sizes)), (ctypes.c_double * len(sizes))()
    for rows, length_L in _chunks(pred_ND, sizes):
        pred, target = _values(_part(pred_ND, rows)), _values(_part(target_ND, rows))
        root, gradient = _root(pred, target, mu) if kept is None else kept, _values(_part(gradient_ND, rows))
        library().ghm_r_loss_and_gradient(
            pred.data_ptr(), target.data_ptr(), root.data_ptr(), _address(slot_ND, rows), length_L, len(sizes),
            factor_LK.data_ptr(), factor_LK.shape[1], mu, sum_L, loss_L.data_ptr(), gradient.data_ptr(),
        )  # fmt: skip
        if gradient.dtype != gradient_ND.dtype:
            gradient_ND[rows] = gradient
    return loss_L, gradient_ND


def factors(
    count_LK: Tensor,
    total_L: Tensor | None,
    average_K: Tensor | None,
    mass_K: Tensor | None,
    *,
    momentum: float,
    smoothing: float | Tensor,
    loss_weight: float,
    world: int,
    valid: bool,
    mean: bool,
) -> Tensor:
    """`ghm.losses.statistics.HarmonisedLoss.factors`, [L, K], by the same roundings. The averages move in place."""
    factor_LK, averages = torch.empty(count_LK.shape), [each for each in (average_K, mass_K) if each is not None]
    if any(average.shape != count_LK.shape[1:] for average in averages):
        raise ValueError(f"bins must not change after the first step with momentum, got {count_LK.shape[1]}")
    moved = [_values(average) for average in averages]
    total_L = None if total_L is None else _values(total_L)
    places = [None if tensor is None else tensor.data_ptr() for tensor in (total_L, *moved, *[None] * (2 - len(moved)))]
    library().factors(
        count_LK.data_ptr(), places[0], *count_LK.shape, *places[1:], momentum, 1 - momentum, float(smoothing),
        loss_weight * world if mean else loss_weight, valid, mean, factor_LK.data_ptr(),
    )  # fmt: skip
    for average, values in zip(averages, moved, strict=True):
        if average is not values:
            average.copy_(values)
    return factor_LK


def _rows(prediction: Tensor) -> int:
    """The rows of a chunk."""
    return max(1, vectorised.CHUNK // max(1, prediction.shape[1]))


def _chunks(prediction: Tensor, sizes: list[int]) -> Iterator[tuple[slice, ctypes.Array]]:
    """Yield whole rows of a prediction, and how many values of each population are among them."""
    (total, columns), step = prediction.shape, _rows(prediction)
    ends = [0, *accumulate(sizes)]
    for first in range(0, total, step):
        last = min(first + step, total)
        length_L = [columns * max(0, min(end, last) - max(start, first)) for start, end in pairwise(ends)]
        yield slice(first, last), (ctypes.c_int64 * len(sizes))(*length_L)


def _part(tensor: Tensor, rows: slice) -> Tensor:
    return tensor if rows.stop - rows.start == len(tensor) else tensor[rows]


def _address(tensor: Tensor, rows: slice) -> int:
    """Where the first of some rows is in memory."""
    return tensor.data_ptr() + rows.start * tensor.stride(0) * tensor.itemsize


def _values(tensor: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values of a tensor one after the other in memory: itself, or a copy."""
    if not vectorised.on_host(tensor):
        raise ValueError(f"all arguments must be on the device of pred, cpu, got one on {tensor.device}")
    return tensor if tensor.dtype == dtype and tensor.is_contiguous() else tensor.to(dtype).contiguous()


def _places(rows: int) -> tuple[Tensor, Tensor]:
    """Memory for the places of positives and for their logits times -1, a row having one at most."""
    return torch.empty(rows, dtype=torch.int64), torch.empty(rows)


def _probabilities(logit_nC: Tensor, label_N: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor, int]:
    """Of a chunk: p of each logit, [n, C]; places of positives, their logits times -1, and how many these are."""
    place, opposite = _places(len(logit_nC))
    number = library().positives(
        logit_nC.data_ptr(), _address(label_N, rows), *logit_nC.shape, place.data_ptr(), opposite.data_ptr()
    )
    return logit_nC.sigmoid(), place, opposite, number


def _root(pred_nD: Tensor, target_nD: Tensor, mu: float) -> Tensor:
    """sqrt(d^2 + mu^2), d = prediction - target: [n, D]."""
    root_nD = pred_nD - target_nD
    return torch.mul(root_nD, root_nD, out=root_nD).add_(mu * mu).sqrt_()


def _keep(slot: Tensor, prediction: Tensor, found: Any) -> None:
    """Remember what a count has found of its last chunk, where that was all."""
    whole = len(prediction) <= _rows(prediction)
    _kept.slot, _kept.place, _kept.found = slot, prediction.data_ptr(), found if whole else None


def _found(slot: Tensor, prediction: Tensor) -> Any:
    """What the count with these slots has found, if it was the last; else None."""
    return _kept.found if _kept.slot is slot and _kept.place == prediction.data_ptr() else None


@cache
def _edges(bins: int) -> Tensor | None:
    """The edges where they are needed to find a region."""
    return None if slots.product_is_exact(bins) else region_edges(bins, end=slots.CLASSIFICATION_END)


def _regions(bins: int) -> tuple[int, int, int | None]:
    edge_E = _edges(bins)
    return bins, slots.no_region(bins), None if edge_E is None else edge_E.data_ptr()
