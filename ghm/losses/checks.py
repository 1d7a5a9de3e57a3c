"""What the losses accept: the range of each argument, and one sentence for a value outside of it."""

from collections.abc import Callable
from math import inf
from numbers import Integral, Real
from typing import Any, Literal, get_args

from torch import Tensor

Reduction = Literal["none", "mean", "sum"]
Statistics = Literal["level", "batch"]
Normalizer = Literal["valid_bins", "bins"]
SIGMOID = "True, for these losses have one logit per class and none for the background (softmax has one)"
COUNT = (Integral, "a whole number, 1 or greater", lambda value: value >= 1)
FLAG = (bool, "True or False", lambda _value: True)


def _choice(choices: Any) -> tuple[type, str, Callable[[Any], bool]]:
    return str, f"one of {', '.join(get_args(choices))}", lambda value: value in get_args(choices)


# Argument -> its type, the allowed values in words, and a test of them.
ALLOWED: dict[str, tuple[type, str, Callable[[Any], bool]]] = {
    "alpha": (Real, "in [0, 1]", lambda value: 0 <= value <= 1),
    "beta": (Real, "greater than 0 and finite", lambda value: 0 < value < inf),
    "bias_correction": FLAG,
    "bins": COUNT,
    "check": FLAG,
    "gamma": (Real, "0 or greater and finite", lambda value: 0 <= value < inf),
    "keep": COUNT,
    "loss_weight": (Real, "0 or greater and finite", lambda value: 0 <= value < inf),
    "momentum": (Real, "in [0, 1)", lambda value: 0 <= value < 1),
    "mu": (Real, "greater than 0 and finite", lambda value: 0 < value < inf),
    "normalizer": _choice(Normalizer),
    "reduction": _choice(Reduction),
    "smoothing": (Real, "0 or greater and finite", lambda value: 0 <= value < inf),
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


def check_finite(**tensors: Tensor) -> None:
    """Raise ValueError that says which tensor holds how many numbers that are not finite. Waits for the device."""
    for name, tensor in tensors.items():
        wrong = int((~tensor.isfinite()).sum())
        if wrong:
            raise ValueError(f"{name} must be finite, got {wrong} of {tensor.numel()} values that are NaN or infinite")
