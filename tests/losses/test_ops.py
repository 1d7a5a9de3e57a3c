"""Laws of the operators: what PyTorch asks of a custom one (schema, derivative, shapes without data), by its own check.

Shapes: N examples, C classes, L populations, K unit regions.
"""

from typing import Any

import pytest
import torch

from ghm.losses import ops

SIZES, BINS = [6, 0, 4], 5


def arguments() -> dict[str, tuple[Any, tuple]]:
    """Each operator with inputs: name -> (operator, arguments)."""
    torch.manual_seed(0)
    logit, label, weight = torch.randn(10, 3), torch.randint(0, 4, (10,)), torch.ones(10)
    box = (torch.randn(10, 4), torch.randn(10, 4), torch.ones(10, 4))
    factor_LK, factor = torch.rand(3, BINS), torch.tensor(0.5)
    slot = ops.ghm_c_count(logit, label, weight, SIZES, BINS)[1]
    wanted, coordinate = logit.clone().requires_grad_(), box[0].clone().requires_grad_()
    return {
        "ghm_c_count": (ops.ghm_c_count, (logit, label, weight, SIZES, BINS)),
        "ghm_c_loss": (ops.ghm_c_loss, (wanted, label, weight, slot, SIZES, factor_LK)),
        "ghm_c_gradient": (ops.ghm_c_gradient, (logit, label, weight, slot, SIZES, factor_LK)),
        "focal_loss": (ops.focal_loss, (wanted, label, weight, 2.0, 0.25, factor)),
        "focal_gradient": (ops.focal_gradient, (logit, label, weight, 2.0, 0.25, factor)),
        "ghm_r_count": (ops.ghm_r_count, (*box, SIZES, BINS, 0.02)),
        "ghm_r_loss": (ops.ghm_r_loss, (coordinate, *box[1:], SIZES, factor_LK, 0.02)),
        "ghm_r_gradient": (ops.ghm_r_gradient, (*box, SIZES, factor_LK, 0.02)),
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, which torch itself still imports
@pytest.mark.parametrize("name", arguments())
def test_pytorchs_own_check_of_an_operator_passes(passes: str, name: str) -> None:
    operator, inputs = arguments()[name]
    results = torch.library.opcheck(operator, inputs)
    assert set(results.values()) == {"SUCCESS"}


def test_kernels_are_for_cuda_alone() -> None:
    assert not ops.uses_kernels(torch.zeros(1))
