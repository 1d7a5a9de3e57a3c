"""The passes of the losses as PyTorch operators: differentiable, opaque to `torch.compile`, on CUDA by Triton.

Three passes read the logits: `count`, `loss` (forward) and `gradient` (backward). Nothing of the size of the logits is
written before the gradient itself, which already holds the factor that arrives from above: a loss scale of mixed
precision is in it before it is rounded to the dtype of the logits.

Shapes: N examples, C classes or coordinates, L populations of `sizes` rows, K unit regions.
"""

import importlib.util
import logging
import os
import shutil
import sysconfig
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from ghm.losses import vectorised

_log = logging.getLogger(__name__)


def lacking() -> list[str]:
    """What Triton needs and this machine lacks: it compiles C that starts its kernels. Looked for as Triton does."""
    scheme = "posix_prefix" if sysconfig.get_default_scheme() == "posix_local" else sysconfig.get_default_scheme()
    header = Path(sysconfig.get_paths(scheme)["include"]) / "Python.h"
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    found = [] if any(map(shutil.which, compilers)) else [f"a C compiler ({' or '.join(compilers)})"]
    return found if header.is_file() else [*found, f"the headers of Python ({header})"]


TRITON = importlib.util.find_spec("triton") is not None
LACKING = lacking() if TRITON else []


def uses_kernels(tensor: Tensor) -> bool:
    """Whether the Triton kernels take a tensor: on CUDA, where Triton is installed and can compile."""
    if tensor.is_cuda and LACKING and not torch.compiler.is_compiling():
        _warn(" or ".join(LACKING))
    return TRITON and tensor.is_cuda and not LACKING


@cache
def _warn(things: str) -> None:
    _log.warning("Triton does not find %s: the losses run in plain PyTorch on CUDA, which is slower", things)


def _passes(tensor: Tensor) -> ModuleType:
    return _kernels() if uses_kernels(tensor) else vectorised


def _kernels() -> ModuleType:
    from ghm.losses import kernels  # not before: it needs Triton

    return kernels


def _differentiable(loss: Any, gradient: Any) -> None:
    """Make `gradient`, which takes the same arguments, the derivative of `loss` by its first argument.

    The last tensor among the arguments is the factor, one of each summand or [L, K] for sums of L populations: what
    arrives from above is multiplied into it.
    """

    def setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.rest = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))

    def backward(ctx: Any, upstream: Tensor) -> tuple:
        *tensors, factor = ctx.saved_tensors
        tensors = iter([*tensors, factor * (upstream[:, None] if factor.dim() else upstream)])
        arguments = [next(tensors) if value is None else value for value in ctx.rest]
        return gradient(*arguments), *[None] * (len(arguments) - 1)

    def shape_of_loss(prediction: Tensor, *rest: Any) -> Tensor:
        factor = [value for value in rest if isinstance(value, Tensor)][-1]
        return prediction.new_empty(factor.shape[:-1], dtype=torch.float32)

    loss.register_autograd(backward, setup_context=setup)
    loss.register_fake(shape_of_loss)
    gradient.register_fake(lambda prediction, *rest: torch.empty_like(prediction))


@custom_op("ghm::ghm_c_count", mutates_args=())
def ghm_c_count(logit: Tensor, label: Tensor, weight: Tensor, sizes: Sequence[int], bins: int) -> tuple[Tensor, Tensor]:
    """Counts of the regions, int64, [L, K], and what the other passes need to find them again, [N, C] or empty."""
    return _passes(logit).ghm_c_count(logit, label, weight, list(sizes), bins)


@ghm_c_count.register_fake
def _(logit: Tensor, label: Tensor, weight: Tensor, sizes: Sequence[int], bins: int) -> tuple[Tensor, Tensor]:
    count_LK = logit.new_empty(len(sizes), bins, dtype=torch.int64)
    if uses_kernels(logit):
        return count_LK, logit.new_empty(0, dtype=torch.uint8)
    return count_LK, torch.empty_like(logit, dtype=vectorised.slot_dtype(bins))


@custom_op("ghm::ghm_c_loss", mutates_args=())
def ghm_c_loss(
    logit: Tensor, label: Tensor, weight: Tensor, slot: Tensor, sizes: Sequence[int], factor: Tensor
) -> Tensor:
    """Cross entropy times the factor of its region, [L, K], summed over each population. float32, [L]"""
    return _passes(logit).ghm_c_loss(logit, label, weight, slot, list(sizes), factor)


@custom_op("ghm::ghm_c_gradient", mutates_args=())
def ghm_c_gradient(
    logit: Tensor, label: Tensor, weight: Tensor, slot: Tensor, sizes: Sequence[int], factor: Tensor
) -> Tensor:
    """The derivative of `ghm_c_loss` by the logits, in their dtype. [N, C]"""
    return _passes(logit).ghm_c_gradient(logit, label, weight, slot, list(sizes), factor)


@custom_op("ghm::focal_loss", mutates_args=())
def focal_loss(logit: Tensor, label: Tensor, weight: Tensor, gamma: float, alpha: float, factor: Tensor) -> Tensor:
    """Focal Loss times the weight of its row, summed, times `factor`, []. float32, []"""
    return _passes(logit).focal_loss(logit, label, weight, gamma, alpha, factor)


@custom_op("ghm::focal_gradient", mutates_args=())
def focal_gradient(logit: Tensor, label: Tensor, weight: Tensor, gamma: float, alpha: float, factor: Tensor) -> Tensor:
    """The derivative of `focal_loss` by the logits, in their dtype. [N, C]"""
    return _passes(logit).focal_gradient(logit, label, weight, gamma, alpha, factor)


@custom_op("ghm::ghm_r_count", mutates_args=())
def ghm_r_count(pred: Tensor, target: Tensor, weight: Tensor, sizes: Sequence[int], bins: int, mu: float) -> Tensor:
    """Counts of the regions on CUDA, int64, [L, K]. Elsewhere `ghm.losses.GHMR` composes PyTorch's operators."""
    return _kernels().ghm_r_count(pred, target, weight, list(sizes), bins, mu)


@ghm_r_count.register_fake
def _(pred: Tensor, target: Tensor, weight: Tensor, sizes: Sequence[int], bins: int, mu: float) -> Tensor:
    return pred.new_empty(len(sizes), bins, dtype=torch.int64)


@custom_op("ghm::ghm_r_loss", mutates_args=())
def ghm_r_loss(pred: Tensor, target: Tensor, weight: Tensor, sizes: Sequence[int], factor: Tensor, mu: float) -> Tensor:
    """ASL1 times the factor of its region, [L, K], summed over each population. float32, [L]"""
    return _kernels().ghm_r_loss(pred, target, weight, list(sizes), factor, mu)


@custom_op("ghm::ghm_r_gradient", mutates_args=())
def ghm_r_gradient(
    pred: Tensor, target: Tensor, weight: Tensor, sizes: Sequence[int], factor: Tensor, mu: float
) -> Tensor:
    """The derivative of `ghm_r_loss` by the prediction, in its dtype. [N, D]"""
    return _kernels().ghm_r_gradient(pred, target, weight, list(sizes), factor, mu)


_differentiable(ghm_c_loss, ghm_c_gradient)
_differentiable(focal_loss, focal_gradient)
_differentiable(ghm_r_loss, ghm_r_gradient)
