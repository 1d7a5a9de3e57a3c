"""Laws of the figures of gradient norms on runs that are out of the ordinary."""

import dataclasses
import io
from pathlib import Path

import pytest
from matplotlib import rc_context

from ghm.params import Loss
from ghm.report.gradients import gradient_norms, reformulated
from ghm.report.inputs import read
from ghm.report.style import STYLE
from tests.report.artificial_runs import fill


@pytest.mark.parametrize("case", ["no positive anchor", "resumed", "odd unit regions"])
def test_gradient_figures_can_be_drawn(tmp_path: Path, case: str) -> None:
    params = fill(tmp_path, variants=1)
    results = read(params, tmp_path)
    table = results.gradient_norms
    if case == "no positive anchor":
        table.loc[table["kind"] == "box", ["count", "share"]] = 0
    elif case == "resumed":
        results = dataclasses.replace(results, gradient_norms=table.query("epoch > 0"))
    else:
        bins_of = {"ghmc": 1, "ghmr": 7}
        losses = {name: Loss(params.losses[name].type, {"bins": bins}) for name, bins in bins_of.items()}
        params = dataclasses.replace(params, losses=params.losses | losses)
    with rc_context(STYLE):
        for plot in (gradient_norms(results, params), reformulated(results, params)):
            plot.figure.savefig(io.BytesIO())
