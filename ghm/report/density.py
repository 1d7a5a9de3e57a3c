"""The figure of densities over a training: how many examples each unit region holds, and what they weigh."""

from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ghm.params import Params
from ghm.report import names
from ghm.report.harmonise import weights
from ghm.report.inputs import Results
from ghm.report.style import KINDS, Plot, new_figure


def density(results: Results, params: Params) -> Plot | None:
    """Draw the moving averages of the first seed; None where no variant has a loss with one."""
    table = results.density
    own = table.query(f"seed == {params.seeds[0]}")
    rows = [(name, kind) for name in params.variants for kind in KINDS if _has(own, name, kind)]
    if not rows:
        return None
    figure = new_figure(0.3 + 1.75 * len(rows))
    axes = figure.subplots(len(rows), 2, squeeze=False)
    drawn: dict[tuple[str, int], list[tuple[Axes, QuadMesh]]] = defaultdict(list)
    for pair, (name, kind) in zip(axes, rows, strict=True):
        grid = own.query("variant == @name and kind == @kind").pivot(index="low", columns="step", values="density")
        count_KS, smoothing = grid.to_numpy(float), _smoothing(params, name, kind)
        weight_KS = np.stack([weights(count_K, smoothing) for count_K in count_KS.T], axis=1)
        loss = f"{names.figure(name)}, {KINDS[kind]}"
        drawn[kind, 0].append(_map(pair[0], grid.columns, count_KS, f"{loss}: density", "viridis"))
        drawn[kind, 1].append(_map(pair[1], grid.columns, weight_KS, f"{loss}: weight", "magma"))
        pair[0].set_ylabel("gradient norm g")
    for pairs in drawn.values():
        _share_colours(figure, pairs)
    for ax in axes[-1]:
        ax.set_xlabel("step")
    return Plot(
        figure,
        alt="Heat maps over the training steps: density of gradient norms in each unit region, and the weight of an "
        "example there, for every loss that harmonises.",
        caption=f"**Density over the training** (seed {params.seeds[0]}): the moving average of the number of examples "
        "in each unit region, and the weight of an example that follows, both on logarithmic scales, each the same for "
        "all variants. White: no example so far. The average passes from one pyramid level to the next and is read "
        "after the last one.",
    )


def _has(table: pd.DataFrame, name: str, kind: str) -> bool:
    return not table.query("variant == @name and kind == @kind and density > 0").empty


def _smoothing(params: Params, name: str, kind: str) -> float:
    role: Any = kind
    return float(params.loss(name, role).arguments.get("smoothing", 0.0))


def _map(ax: Axes, steps: pd.Index, value_KS: np.ndarray, title: str, colours: str) -> tuple[Axes, QuadMesh]:
    """Draw a grid of unit regions by logged steps."""
    edges = np.concatenate([[0.0], steps.to_numpy(float)])  # an average stands for the steps up to where it was read
    shown_KS = np.ma.masked_invalid(np.where(value_KS > 0, value_KS, np.nan))
    mesh = ax.pcolormesh(edges, np.linspace(0, 1, len(value_KS) + 1), shown_KS, cmap=colours)
    ax.set_title(title)
    ax.grid(visible=False)
    return ax, mesh


def _share_colours(figure: Figure, drawn: list[tuple[Axes, QuadMesh]]) -> None:
    """Give maps one logarithmic scale, and explain it beside each."""
    values = [np.ma.compressed(mesh.get_array()) for _, mesh in drawn]
    low, high = min(each.min() for each in values), max(each.max() for each in values)
    for ax, mesh in drawn:
        mesh.set_norm(LogNorm(low, max(high, 1.001 * low)))
        figure.colorbar(mesh, ax=ax, pad=0.02)
