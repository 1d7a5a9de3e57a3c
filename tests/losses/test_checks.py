"""Laws of the arguments of all losses: a wrong one is named first, with what is allowed and what it is."""

import inspect
import math
import re

import pytest

from ghm import losses
from ghm.losses.checks import ALLOWED

LOSSES = [getattr(losses, name) for name in losses.__all__]
WRONG: dict[str, tuple[tuple[object, ...], str]] = {
    "alpha": ((1.5, -0.1), "in [0, 1]"),
    "beta": ((0, math.inf), "greater than 0 and finite"),
    "bias_correction": ((1, "yes"), "True or False"),
    "bins": ((0, 2.5, True), "a whole number, 1 or greater"),
    "gamma": ((-1.0, "2", math.nan), "0 or greater and finite"),
    "keep": ((0,), "a whole number, 1 or greater"),
    "loss_weight": ((math.inf,), "0 or greater and finite"),
    "momentum": ((-0.1, 1), "in [0, 1)"),
    "mu": ((0,), "greater than 0 and finite"),
    "normalizer": (("none", 3), "one of valid_bins, bins"),
    "reduction": (("average", None), "one of none, mean, sum"),
    "smoothing": ((-1, True, "negatives"), "positives, or 0 or greater and finite"),
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
            with pytest.raises(ValueError, match=f"^{name} must be {re.escape(words)}.* got {value!r}$"):
                loss(**{name: value})


@pytest.mark.parametrize("loss", [losses.GHMC, losses.GHMR])
def test_the_options_stand_in_the_signature_and_others_are_refused(loss: type) -> None:
    options = [name for name, option in inspect.signature(loss).parameters.items() if option.kind == 3]
    assert options == ["statistics", "sync", "bias_correction", "normalizer", "smoothing"]
    with pytest.raises(TypeError, match="smothing"):
        loss(smothing=1.0)


def test_bias_correction_needs_an_average() -> None:
    with pytest.raises(ValueError, match="bias_correction must be False with momentum 0, got True"):
        losses.GHMC(bias_correction=True)
