"""Laws of the figures of gradient norms on runs that are out of the ordinary."""

import dataclasses
import io
from pathlib import Path

import pytest
from matplotlib import rc_context

from ghm.params import Ghmc
from ghm.report.gradients import gradient_norms, reformulated
from ghm.report.inputs import read
from ghm.report.style import STYLE
from tests.report.artificial_runs import fill


@pytest.mark.parametrize("case", ["no positive anchor", "resumed", "one unit region", "regions that cut bins"])
def test_gradient_figures_can_be_drawn(tmp_path: Path, case: str) -> None:
    params = fill(tmp_path, variants=2)
    results = read(params, tmp_path)
    table = results.gradient_norms
    if case == "no positive anchor":
        table.loc[table["kind"] == "box", ["count", "share"]] = 0
    elif case == "resumed":
        table.drop(table.index[table["epoch"] == 0], inplace=True)
    else:
        bins = 1 if case == "one unit region" else 7
        params = dataclasses.replace(params, losses=params.losses | {"ghmc": Ghmc(bins, 0.75, 1.0)})
    with rc_context(STYLE):
        for plot in (gradient_norms(results, params), reformulated(results, params)):
            plot.figure.savefig(io.BytesIO())
