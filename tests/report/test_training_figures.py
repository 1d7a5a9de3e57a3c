"""Laws of the figures of training runs: the weights and gradients that they draw, and runs out of the ordinary."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import rc_context

from ghm.params import Loss
from ghm.report import training_figures
from ghm.report.inputs import read
from ghm.report.style import STYLE
from ghm.report.training_figures import focal_gradient, regrouped, weights
from tests.report.conftest import fill

COUNT = np.random.default_rng(0).poisson(50, 120).astype(float)


@pytest.mark.parametrize("case", ["no positive anchor", "resumed", "odd unit regions"])
def test_runs_out_of_the_ordinary_can_be_drawn(tmp_path: Path, case: str) -> None:
    params = fill(tmp_path, variants=1)
    results = read(params, tmp_path)
    table = results.gradient_norms
    if case == "no positive anchor":
        table.loc[table["kind"] == "box", ["count", "share"]] = 0
    elif case == "resumed":
        results = dataclasses.replace(results, gradient_norms=table.query("epoch > 0"))
    else:
        losses = {"ghmc": Loss("ghm.GHMC", {"bins": 1}), "ghmr": Loss("ghm.GHMR", {"bins": 7})}
        params = dataclasses.replace(params, losses=params.losses | losses)
    with rc_context(STYLE):
        for name in ("loss", "gradient_norms", "reformulated", "density"):
            plot = getattr(training_figures, name)(results, params)
            if plot:
                plot.figure.savefig(io.BytesIO())


def test_weights_by_positives_are_those_of_their_mean_number(tmp_path: Path) -> None:
    params = fill(tmp_path, variants=2)
    results, (name, variant) = read(params, tmp_path), list(params.variants.items())[1]
    assert variant.cls == "ghmc" and training_figures._pseudo_count(results, params, name, "cls") == 0
    by_positives = {"ghmc": Loss("ghm.GHMC", {"smoothing": "positives"})}
    params = dataclasses.replace(params, losses=params.losses | by_positives)
    assert training_figures._pseudo_count(results, params, name, "cls") == 99  # of every step of these runs


@pytest.mark.parametrize("regions", [5, 10, 30, 40])
def test_unit_regions_add_up_whole_bins_and_lose_no_example(regions: int) -> None:
    np.testing.assert_allclose(regrouped(COUNT, regions), COUNT.reshape(regions, -1).sum(1))
    assert regrouped(COUNT, 7).sum() == pytest.approx(COUNT.sum())


def test_every_occupied_region_gets_the_same_total_weight_and_the_mean_weight_is_one() -> None:
    count_K = np.array([900.0, 0.0, 90.0, 10.0])
    weight_K = weights(count_K)
    np.testing.assert_allclose((weight_K * count_K)[count_K > 0], 1000 / 3)
    assert np.isnan(weight_K[1])
    np.testing.assert_array_equal(weights(np.stack([count_K, 0 * count_K])), [weight_K, [np.nan] * 4])


@pytest.mark.parametrize(("target", "gamma"), [(0.0, 2.0), (1.0, 2.0), (1.0, 0.0)])
def test_focal_gradient_is_the_derivative_of_focal_loss(target: float, gamma: float) -> None:
    logit = torch.linspace(-6, 6, 25, dtype=torch.float64, requires_grad=True)
    probability = logit.sigmoid()
    right = probability if target else 1 - probability
    (gradient,) = torch.autograd.grad((-((1 - right) ** gamma) * right.log()).sum(), logit)
    norm_G = (probability - target).abs().detach().numpy()
    np.testing.assert_allclose(focal_gradient(norm_G, gamma), gradient.abs().numpy(), atol=1e-9)
