"""Laws of the figures of training runs: the weights and gradients that they draw, and runs out of the ordinary."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import rc_context

from ghm.params import Loss, Params
from ghm.report import training_figures
from ghm.report.inputs import Results, read
from ghm.report.style import STYLE, Plot
from ghm.report.training_figures import focal_gradient, regrouped, weights
from tests.report.conftest import fill

COUNT = np.random.default_rng(0).poisson(50, 120).astype(float)


def drawn(results: Results, params: Params) -> dict[str, Any]:
    """All figures, drawn."""
    names = ("loss", "gradient_norms", "reformulated", "density")
    with rc_context(STYLE):
        plots = {name: getattr(training_figures, name)(results, params) for name in names}
        for plot in plots.values():
            if plot:
                plot.figure.savefig(io.BytesIO())
    return plots


def lines(plot: Plot) -> list[Any]:
    return [line.get_xydata().tolist() for ax in plot.figure.axes for line in ax.lines]  # type: ignore[union-attr]


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
    drawn(results, params)


def test_figures_do_not_depend_on_the_names_of_sections_and_variants(tmp_path: Path) -> None:
    params = fill(tmp_path)
    results = read(params, tmp_path)
    renamed = dataclasses.replace(
        params,
        losses={f"my_{name}": loss for name, loss in params.losses.items()},
        variants={
            name: dataclasses.replace(variant, cls=f"my_{variant.cls}", box=f"my_{variant.box}")
            for name, variant in params.variants.items()
        },
    )
    before, after = drawn(results, params), drawn(results, renamed)
    for name, plot in before.items():
        assert plot.caption == after[name].caption
        assert lines(plot) == lines(after[name]), name


@pytest.mark.parametrize("regions", [5, 10, 30, 40])
def test_unit_regions_add_up_whole_bins(regions: int) -> None:
    np.testing.assert_allclose(regrouped(COUNT, regions), COUNT.reshape(regions, -1).sum(1))


def test_unit_regions_that_cut_bins_lose_no_example() -> None:
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
