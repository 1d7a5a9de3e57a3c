"""Laws of the weights and gradients that the report draws."""

import numpy as np
import pytest
import torch

from ghm.report.harmonise import focal_gradient, unit_regions, weights

COUNT = np.random.default_rng(0).poisson(50, 120).astype(float)


@pytest.mark.parametrize("regions", [5, 10, 30, 40])
def test_unit_regions_add_up_whole_bins(regions: int) -> None:
    np.testing.assert_allclose(unit_regions(COUNT, regions), COUNT.reshape(regions, -1).sum(1))


def test_unit_regions_that_cut_bins_lose_no_example() -> None:
    assert unit_regions(COUNT, 7).sum() == pytest.approx(COUNT.sum())


def test_every_occupied_region_gets_the_same_total_weight_and_the_mean_weight_is_one() -> None:
    count_K = np.array([900.0, 0.0, 90.0, 10.0])
    weight_K = weights(count_K)
    np.testing.assert_allclose((weight_K * count_K)[count_K > 0], 1000 / 3)
    assert np.isnan(weight_K[1])


def test_no_examples_give_no_weights() -> None:
    assert np.isnan(weights(np.zeros(4))).all()


def test_gamma_zero_is_cross_entropy() -> None:
    norm_G = np.linspace(0, 1, 11)
    np.testing.assert_allclose(focal_gradient(norm_G, 0.0), norm_G, atol=1e-12)


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_focal_gradient_is_the_derivative_of_focal_loss(target: float) -> None:
    logit = torch.linspace(-6, 6, 25, dtype=torch.float64, requires_grad=True)
    probability = logit.sigmoid()
    right = probability if target else 1 - probability
    (gradient,) = torch.autograd.grad((-((1 - right) ** 2) * right.log()).sum(), logit)
    norm_G = (probability - target).abs().detach().numpy()
    np.testing.assert_allclose(focal_gradient(norm_G, 2.0), gradient.abs().numpy(), atol=1e-9)
