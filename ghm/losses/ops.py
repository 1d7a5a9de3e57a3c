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
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from ghm.losses import vectorised

_log = logging.getLogger(__name__)


def lacking() -> str:
    """What Triton needs and this machine lacks: it compiles C that starts its kernels. Looked for as Triton does."""
    scheme = "posix_prefix" if sysconfig.get_default_scheme() == "posix_local" else sysconfig.get_default_scheme()
    header = Path(sysconfig.get_paths(scheme)["include"]) / "Python.h"
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    compiler = "" if any(map(shutil.which, compilers)) else f"a C compiler ({' or '.join(compilers)})"
    return " or ".join(filter(None, [compiler, "" if header.is_file() else f"the headers of Python ({header})"]))


@cache
def _warn(tools: str) -> None:
    _log.warning("Triton does not find %s: the losses run in plain PyTorch on CUDA, which is slower", tools)


TRITON = importlib.util.find_spec("triton") is not None
LACKING = lacking() if TRITON else ""


def uses_kernels(tensor: Tensor) -> bool:
    """Whether the Triton kernels take a tensor: on CUDA, where Triton is installed and can compile."""
    if tensor.is_cuda and LACKING and not torch.compiler.is_compiling():
        _warn(LACKING)
    return TRITON and tensor.is_cuda and not LACKING


def _operator(name: str, schema: str) -> Any:
    """An operator that Triton's kernels or plain PyTorch run: the function `name` of one of the two modules."""

    def run(prediction: Tensor, *rest: Any) -> Any:
        if not uses_kernels(prediction):
            return getattr(vectorised, name)(prediction, *rest)
        from ghm.losses import kernels  # not before: it needs Triton

        return getattr(kernels, name)(prediction, *rest)

    return custom_op(f"ghm::{name}", run, mutates_args=(), schema=schema)


def _differentiable(loss: Any, gradient: Any) -> None:
    """Make `gradient`, which takes the same arguments, the derivative of `loss` by its first argument.

    The last tensor among the arguments is the factor, [] or, for the sums of L populations, [L, K]: what arrives from
    above is multiplied into it.
    """

    def setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.rest = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))

    def backward(ctx: Any, upstream: Tensor) -> tuple:
        *tensors, factor = ctx.saved_tensors
        tensors = iter([*tensors, factor * (upstream[:, None] if factor.dim() else upstream)])
        arguments = [next(tensors) if value is None else value for value in ctx.rest]
        return gradient(*arguments), *[None] * (len(arguments) - 1)

    def empty_loss(prediction: Tensor, *rest: Any) -> Tensor:
        factor = [value for value in rest if isinstance(value, Tensor)][-1]
        return prediction.new_empty(factor.shape[:-1], dtype=torch.float32)

    loss.register_autograd(backward, setup_context=setup)
    loss.register_fake(empty_loss)
    gradient.register_fake(lambda prediction, *_: torch.empty_like(prediction))


_GHM_C = "(Tensor logit, Tensor label, Tensor weight, Tensor slot, int[] sizes, Tensor factor) -> Tensor"
_FOCAL = "(Tensor logit, Tensor label, Tensor weight, float gamma, float alpha, Tensor factor) -> Tensor"
_GHM_R = "(Tensor pred, Tensor target, Tensor weight, int[] sizes, Tensor factor, float mu) -> Tensor"
ghm_c_count = _operator(
    "ghm_c_count", "(Tensor logit, Tensor label, Tensor weight, int[] sizes, int bins) -> (Tensor, Tensor)"
)
ghm_c_loss, ghm_c_gradient = _operator("ghm_c_loss", _GHM_C), _operator("ghm_c_gradient", _GHM_C)
focal_loss, focal_gradient = _operator("focal_loss", _FOCAL), _operator("focal_gradient", _FOCAL)
# With kernels alone: elsewhere `ghm.losses.GHMR` composes PyTorch's operators.
ghm_r_count = _operator(
    "ghm_r_count", "(Tensor pred, Tensor target, Tensor weight, int[] sizes, int bins, float mu) -> Tensor"
)
ghm_r_loss, ghm_r_gradient = _operator("ghm_r_loss", _GHM_R), _operator("ghm_r_gradient", _GHM_R)
_differentiable(ghm_c_loss, ghm_c_gradient)
_differentiable(focal_loss, focal_gradient)
_differentiable(ghm_r_loss, ghm_r_gradient)


@ghm_c_count.register_fake
def _(logit: Tensor, label: Tensor, weight: Tensor, sizes: list[int], bins: int) -> tuple[Tensor, Tensor]:
    count_LK = logit.new_empty(len(sizes), bins, dtype=torch.int64)
    if uses_kernels(logit):
        return count_LK, logit.new_empty(0, dtype=torch.uint8)
    return count_LK, torch.empty_like(logit, dtype=vectorised.slot_dtype(bins))


@ghm_r_count.register_fake
def _(pred: Tensor, target: Tensor, weight: Tensor, sizes: list[int], bins: int, mu: float) -> Tensor:
    return pred.new_empty(len(sizes), bins, dtype=torch.int64)
