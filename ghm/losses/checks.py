"""What the losses accept: the range of each argument, and one sentence for a value outside of it."""

from collections.abc import Callable
from math import inf
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, get_args

from torch import Size, Tensor

Reduction = Literal["none", "mean", "sum"]
Statistics = Literal["level", "batch"]
Normalizer = Literal["valid_bins", "bins"]
Smoothing = float | Literal["positives"]
SIGMOID = "True, for these losses have one logit per class and none for the background (softmax has one)"
COUNT = (Integral, "a whole number, 1 or greater", lambda value: value >= 1)
FLAG = (bool, "True or False", lambda _value: True)
NOT_NEGATIVE = (Real, "0 or greater and finite", lambda value: 0 <= value < inf)
POSITIVE = (Real, "greater than 0 and finite", lambda value: 0 < value < inf)


def _choice(choices: Any) -> tuple[type, str, Callable[[Any], bool]]:
    return str, f"one of {', '.join(get_args(choices))}", lambda value: value in get_args(choices)


# Argument -> its type, the allowed values in words, and a test of them.
ALLOWED: dict[str, tuple[type | UnionType, str, Callable[[Any], bool]]] = {
    "alpha": (Real, "in [0, 1]", lambda value: 0 <= value <= 1),
    "beta": POSITIVE,
    "bias_correction": FLAG,
    "bins": COUNT,
    "gamma": NOT_NEGATIVE,
    "keep": COUNT,
    "loss_weight": NOT_NEGATIVE,
    "momentum": (Real, "in [0, 1)", lambda value: 0 <= value < 1),
    "mu": POSITIVE,
    "normalizer": _choice(Normalizer),
    "reduction": _choice(Reduction),
    "smoothing": (
        Real | str,
        "positives, or 0 or greater and finite",
        lambda value: value == "positives" or (not isinstance(value, str) and 0 <= value < inf),
    ),
    "statistics": _choice(Statistics),
    "sync": FLAG,
    "use_sigmoid": (bool, SIGMOID, lambda value: value),
}


def check_arguments(**arguments: object) -> None:
    """Raise ValueError for the first argument that is not what `ALLOWED` says; its message begins with the name."""
    for name, value in arguments.items():
        kind, words, holds = ALLOWED[name]
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool) or not holds(value):
            raise ValueError(f"{name} must be {words}, got {value!r}")


def check_shapes(*allowed: Size, **tensors: Tensor | None) -> None:
    """Raise ValueError for the first tensor that has none of the shapes; one that is None is left out."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape not in allowed:
            words = " or ".join(str(tuple(shape)) for shape in allowed)
            raise ValueError(f"{name} must be of shape {words} for this pred, got {tuple(tensor.shape)}")


def divisor(pred: Tensor, reduction: Reduction, avg_factor: float | Tensor | None) -> float | Tensor:
    """What Focal Loss and Smooth L1 divide the sum over `pred` by: `mean` by `avg_factor`, or by the number of values.

    Raises:
        ValueError: `avg_factor` with `sum`.
    """
    if reduction == "sum" and avg_factor is not None:
        raise ValueError(f"avg_factor must be None with reduction sum, got {avg_factor!r}")
    return 1.0 if reduction == "sum" else max(pred.numel(), 1) if avg_factor is None else avg_factor
