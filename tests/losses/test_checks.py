"""Laws of the arguments of all losses: a wrong one is named first, with what is allowed and what it is."""

import inspect
import math
from typing import Any

import pytest

from ghm import losses
from ghm.losses.checks import ALLOWED

LOSSES = [getattr(losses, name) for name in losses.__all__]
WRONG: dict[str, tuple[tuple[object, ...], str]] = {
    "alpha": ((1.5, -0.1), "in [0, 1]"),
    "beta": ((0, math.inf), "greater than 0 and finite"),
    "bias_correction": ((1, "yes"), "True or False"),
    "bins": ((0, 2.5, True), "a whole number, 1 or greater"),
    "check": ((None,), "True or False"),
    "gamma": ((-1.0, "2", math.nan), "0 or greater and finite"),
    "keep": ((0, 2.5), "a whole number, 1 or greater"),
    "loss_weight": ((-1.0, math.inf), "0 or greater and finite"),
    "momentum": ((-0.1, 1, math.nan, "high"), "in [0, 1)"),
    "mu": ((0, -1.0, math.nan, math.inf), "greater than 0 and finite"),
    "normalizer": (("none", 3), "one of valid_bins, bins"),
    "reduction": (("average", None), "one of none, mean, sum"),
    "smoothing": ((-1, math.inf), "0 or greater and finite"),
    "statistics": (("image",), "one of level, batch"),
    "sync": ((0,), "True or False"),
    "use_sigmoid": ((False, 1), "True, for these losses have one logit per class"),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_wrong_argument_is_named_with_its_value_and_what_is_allowed(loss: type) -> None:
    names = inspect.signature(loss).parameters
    assert set(names) <= WRONG.keys() == ALLOWED.keys()
    for name in names:
        values, words = WRONG[name]
        for value in values:
            with pytest.raises(ValueError) as error:  # noqa: PT011
                loss(**{name: value})
            assert str(error.value).startswith(f"{name} must be {words}")
            assert str(error.value).endswith(f"got {value!r}")


def test_the_options_stand_in_the_signature_with_their_types_and_defaults() -> None:
    for loss in (losses.GHMC, losses.GHMR):
        options = {name: each for name, each in inspect.signature(loss).parameters.items() if each.kind == 3}
        assert list(options) == ["statistics", "sync", "bias_correction", "normalizer", "smoothing", "check"]
        module: Any = loss(momentum=0.5, **{name: each.default for name, each in options.items()})
        assert all(getattr(module, name) == each.default for name, each in options.items())
        with pytest.raises(TypeError, match="smothing"):
            inspect.signature(loss).bind(smothing=1.0)


def test_bias_correction_needs_an_average() -> None:
    with pytest.raises(ValueError, match="bias_correction must be False with momentum 0, got True"):
        losses.GHMC(bias_correction=True)
