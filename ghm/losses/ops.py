"""The passes of the losses as PyTorch operators: differentiable, opaque to `torch.compile`, on CUDA by Triton.

A step reads the predictions twice: to count, and for loss and gradient in one pass of forward. Backward multiplies that
gradient by what arrives from above, on the device, and leaves it as it is where that is 1. Three passes are left where
this would not do: in float16, where what arrives is a loss scale that must be in the gradient before it is rounded; in
a second backward; and where no gradient is wanted, which needs the loss alone.

Shapes: N examples, C classes or coordinates, L populations of `sizes` rows, K unit regions.
"""

import importlib
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
from torch.nn import Parameter

from ghm.losses import host, slots, vectorised

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


TRITON = importlib.util.find_spec("triton") is not None and torch.version.hip is None  # kernels hold CUDA's assembly
LACKING = lacking() if TRITON else ""


def uses_kernels(tensor: Tensor) -> bool:
    """Whether the Triton kernels take a tensor: on CUDA, where Triton is installed and can compile."""
    if tensor.is_cuda and LACKING and not torch.compiler.is_compiling():
        _warn(LACKING)
    return TRITON and tensor.is_cuda and not LACKING


def compiled(tensor: Tensor, kernels: str = "kernels") -> Any:
    """The module of compiled functions for a tensor: Triton's of that name on CUDA, those in C on a CPU, or None."""
    if uses_kernels(tensor):
        return importlib.import_module(f"ghm.losses.{kernels}")  # not before: it needs Triton
    return host if vectorised.on_host(tensor) and host.library() else None


def is_eager(tensor: Tensor) -> bool:
    """Whether a pass may run without an operator around it: on an ordinary tensor, where nothing traces."""
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    return type(tensor) in (Tensor, Parameter) and not tensor.is_meta and not is_traced


class _Operator:
    """A pass: the function `name` of Triton's kernels or of plain PyTorch. A custom operator for what traces it.

    Plain PyTorch makes `..._loss` and `..._gradient` together, as the one is a by-product of the other.
    """

    def __init__(self, name: str, schema: str, mutates: tuple[str, ...] = ()) -> None:
        self.name = name
        self.operator: Any = custom_op(f"ghm::{name}", self.run, mutates_args=mutates, schema=schema)

    def __call__(self, prediction: Tensor, *rest: Any) -> Any:
        return (self.run if is_eager(prediction) else self.operator)(prediction, *rest)

    def run(self, prediction: Tensor, *rest: Any) -> Any:
        modules = compiled(prediction), vectorised
        for module in modules:
            if hasattr(module, self.name):
                return getattr(module, self.name)(prediction, *rest)
        stem, _, result = self.name.rpartition("_")
        name = f"{stem}_loss_and_gradient"
        both = next(getattr(module, name) for module in modules if hasattr(module, name))(prediction, *rest)
        return both[("loss", "gradient").index(result)]


class _Eager(torch.autograd.Function):
    """A loss with its gradient made in forward, without an operator around it."""

    @staticmethod
    def forward(ctx: Any, passes: "_Passes", scalar: bool, prediction: Tensor, *rest: Any) -> Tensor:  # type: ignore[override]
        loss, ctx.gradient = passes.both.run(prediction, *rest)
        _save(ctx, (prediction, *rest))
        ctx.passes = passes
        return loss.view(()) if scalar else loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple:  # type: ignore[override]
        return None, None, *ctx.passes.backward(ctx, upstream)


multiply = _Operator("multiply", "(Tensor(a!) gradient, Tensor upstream, int[] sizes) -> ()", ("gradient",))


class _Passes:
    """The operators of a loss, and the loss as a differentiable function of its first argument.

    The last tensor among the arguments is the factor, [] or, for the sums of L populations, [L, K]: what arrives from
    above can be multiplied into it.
    """

    def __init__(self, name: str, arguments: str) -> None:
        self.loss = _Operator(f"{name}_loss", f"({arguments}) -> Tensor")
        self.gradient = _Operator(f"{name}_gradient", f"({arguments}) -> Tensor")
        self.both = _Operator(f"{name}_loss_and_gradient", f"({arguments}) -> (Tensor, Tensor)")
        self.loss.operator.register_fake(_empty_loss)
        self.gradient.operator.register_fake(lambda prediction, *_: torch.empty_like(prediction))
        self.both.operator.register_fake(
            lambda prediction, *rest: (_empty_loss(prediction, *rest), torch.empty_like(prediction))
        )
        self.loss.operator.register_autograd(self._again, setup_context=_save)
        self.both.operator.register_autograd(self.backward, setup_context=_save_gradient)

    def __call__(self, prediction: Tensor, *rest: Any, scalar: bool = False) -> Tensor:
        """The loss, float32, in one pass with its gradient where that is wanted; with `scalar` [] in place of [1]."""
        if not (torch.is_grad_enabled() and prediction.requires_grad):
            loss = self.loss(prediction, *rest)
        elif prediction.dtype == torch.float16:
            loss = self.loss.operator(prediction, *rest)
        elif is_eager(prediction):
            return _Eager.apply(self, scalar, prediction, *rest)
        else:
            loss = self.both.operator(prediction, *rest)[0]
        return loss.view(()) if scalar else loss

    def backward(self, ctx: Any, upstream: Tensor, _: None = None) -> tuple:
        """The gradients of the arguments, the first of which is made already."""
        gradient, ctx.gradient = ctx.gradient, None
        # The first backward gave it away; and one to be differentiated, which it cannot be, must know where it is from.
        if gradient is None or torch.is_grad_enabled():
            return self._again(ctx, upstream)
        if type(gradient) is not Tensor:  # while `torch.compile` traces, for which it is an output of forward
            gradient = gradient.clone()
        sizes = [value for value in ctx.rest if isinstance(value, list)]
        multiply(gradient, upstream, sizes[0] if sizes else [len(gradient)])
        return gradient, *[None] * (len(ctx.rest) - 1)

    def _again(self, ctx: Any, upstream: Tensor) -> tuple:
        *tensors, factor = ctx.saved_tensors
        tensors = iter([*tensors, factor * (upstream.reshape(-1, 1) if factor.dim() else upstream)])
        arguments = [next(tensors) if value is None else value for value in ctx.rest]
        return self.gradient.operator(*arguments), *[None] * (len(arguments) - 1)


def _save(ctx: Any, inputs: tuple, output: Any = None) -> None:
    ctx.rest = [None if isinstance(value, Tensor) else value for value in inputs]
    ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))


def _save_gradient(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    _save(ctx, inputs)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no zeros for the gradient's own derivative
    ctx.gradient = output[1]  # among the saved tensors it could not be written to


def _empty_loss(prediction: Tensor, *rest: Any) -> Tensor:
    factor = [value for value in rest if isinstance(value, Tensor)][-1]
    return prediction.new_empty(factor.shape[:-1], dtype=torch.float32)


_GHM_C = "Tensor logit, Tensor label, Tensor weight, "
_GHM_R = "Tensor pred, Tensor target, Tensor weight, "
# Each count and what it keeps of each value for the passes that follow, so that they need not find it again.
ghm_c_count = _Operator("ghm_c_count", f"({_GHM_C} int[] sizes, int bins) -> (Tensor, Tensor)")
ghm_r_count = _Operator("ghm_r_count", f"({_GHM_R} int[] sizes, int bins, float mu) -> (Tensor, Tensor)")
ghm_c = _Passes("ghm_c", f"{_GHM_C} Tensor slot, int[] sizes, Tensor factor")
ghm_r = _Passes("ghm_r", f"{_GHM_R} Tensor slot, int[] sizes, Tensor factor, float mu")
focal = _Passes("focal", "Tensor logit, Tensor label, Tensor weight, float gamma, float alpha, Tensor factor")


def _empty_counts(prediction: Tensor, sizes: list[int], bins: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    kept = (
        prediction.new_empty(0, dtype=dtype) if uses_kernels(prediction) else torch.empty_like(prediction, dtype=dtype)
    )
    return prediction.new_empty(len(sizes), bins, dtype=torch.int64), kept


@ghm_c_count.operator.register_fake
def _(logit: Tensor, label: Tensor, weight: Tensor, sizes: list[int], bins: int) -> tuple[Tensor, Tensor]:
    return _empty_counts(logit, sizes, bins, slots.slot_dtype(bins))


@ghm_r_count.operator.register_fake
def _(pred: Tensor, target: Tensor, weight: Tensor, sizes: list[int], bins: int, mu: float) -> tuple[Tensor, Tensor]:
    return _empty_counts(pred, sizes, bins, slots.slot_dtype(bins))
