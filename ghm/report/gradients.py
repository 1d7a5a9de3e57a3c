"""The figures of gradient norms: how they are distributed, and what the losses make of them."""

from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from ghm.errors import InputError
from ghm.params import Focal, Ghmc, Ghmr, Params
from ghm.report.harmonise import Array, focal_gradient, unit_regions, weights
from ghm.report.inputs import Results
from ghm.report.style import GREY, KINDS, Plot, colours, legend, new_figure

SHOWN = 60  # bins of a drawn distribution: half of those counted, or the rare hard examples are a comb
UNUSED = (0, (3, 1.5))

Section = TypeVar("Section", Focal, Ghmc, Ghmr)


def gradient_norms(results: Results, params: Params) -> Plot:
    """Draw the distribution of gradient norms, start and end, and the GHM weight of each unit region."""
    figure = new_figure(6.6)
    axes = figure.subplots(2, 2, sharex=True)
    bins = {"cls": _section(params, "ghmc", Ghmc).bins, "box": _section(params, "ghmr", Ghmr).bins}
    for row, (kind, section) in zip(axes, (("cls", "ghmc"), ("box", "ghmr")), strict=True):
        for name, first, last in _start_and_end(results, params, kind):
            look: dict[str, Any] = {"color": colours(params.variants)[name], "baseline": None}
            for count_B, line in ((first, {"linewidth": 0.8, "color": GREY}), (last, {"linewidth": 1.6})):
                share_K = unit_regions(count_B, SHOWN) / max(1, count_B.sum())
                row[0].stairs(share_K, np.linspace(0, 1, SHOWN + 1), **look | line)
            weight_K = weights(unit_regions(last, bins[kind]))
            used = getattr(params.variants[name], kind) == section
            edges = np.linspace(0, 1, bins[kind] + 1)
            row[1].stairs(weight_K, edges, linewidth=1.8, linestyle="-" if used else UNUSED, **look)
        row[0].set(title=f"{KINDS[kind]}: share of examples", xlim=(0, 1))
        row[1].set(title=f"{KINDS[kind]}: weight by {section}")
        for ax in row:
            _log_scale(ax)
    for ax in axes[1]:
        ax.set_xlabel("gradient norm g")
    start = Line2D([], [], color=GREY, linewidth=0.8, label="at the start")
    unused = Line2D([], [], color=GREY, linestyle=UNUSED, label="trained without these weights")
    legend(figure, params.variants, [start, unused])
    return Plot(
        figure,
        alt="Left: share of examples by gradient norm, before and after training, on a logarithmic scale. Right: the "
        "weight that GHM gives to an example of each unit region.",
        caption=f"**Gradient norms** (the paper's Figure 2) on the same training images for every variant, in {SHOWN} "
        f"bins, and the GHM weights that follow: examples / (examples in the unit region x occupied regions), with "
        f"{bins['cls']} unit regions for classes and {bins['box']} for boxes. Here all images and pyramid levels count "
        f"together; training counts each step and level alone, so its weights are noisier. Gaps: no examples.",
    )


def _log_scale(ax: Axes) -> None:
    """Give what is drawn a logarithmic scale over at least two decades, so that noise does not look like a trend."""
    low, high = ax.dataLim.minposy, ax.dataLim.ymax
    if not low <= high < np.inf:
        # A batch without objects, or a box loss without deltas: there is nothing to scale to.
        ax.text(0.5, 0.5, "no examples", transform=ax.transAxes, ha="center")
        return
    margin = max(1.6, 10 / np.sqrt(high / low))
    ax.set(yscale="log", ylim=(low / margin, high * margin))
    ax.yaxis.set_minor_locator(NullLocator())


def reformulated(results: Results, params: Params) -> Plot:
    """Draw the gradient norm that cross entropy, Focal Loss and GHM-C make of g (the paper's Figure 3)."""
    figure = new_figure(4.6)
    ax = figure.subplots()
    g = np.linspace(0.002, 1, 500)
    gamma = _section(params, "focal", Focal).gamma
    bins = _section(params, "ghmc", Ghmc).bins
    known = [
        ax.plot(g, g, color=GREY, linestyle="--", label="cross entropy")[0],
        ax.plot(g, focal_gradient(g, gamma), color=GREY, linestyle=":", label=f"Focal Loss, gamma {gamma:g}")[0],
    ]
    for name, _, last in _start_and_end(results, params, "cls"):
        weight_K = weights(unit_regions(last, bins))
        centre_K = (np.arange(len(weight_K)) + 0.5) / len(weight_K)
        ax.plot(centre_K, weight_K * centre_K, color=colours(params.variants)[name], marker="o", markersize=3.5)
    ax.set_title("GHM-C with the counts of each variant (colour), losses that need no counts (grey)")
    ax.set(xlabel="gradient norm g of cross entropy", ylabel="gradient norm after reweighting")
    ax.set(xlim=(0, 1), yscale="log", ylim=(1e-4, None))
    ax.yaxis.set_minor_locator(NullLocator())
    legend(figure, params.variants, known)
    return Plot(
        figure,
        alt="Gradient norm after reweighting against the gradient norm of cross entropy, for cross entropy, Focal "
        "Loss and GHM-C with each variant's own statistics.",
        caption="**What the losses make of a gradient** (the paper's Figure 3). Focal Loss is the formula without "
        "alpha, which only scales positive and negative examples; GHM-C uses the counts of each trained variant, at "
        "the centres of its unit regions. The losses are normalised differently: compare shapes, not heights.",
    )


def _start_and_end(results: Results, params: Params, kind: str) -> Iterator[tuple[str, Array, Array]]:
    """Yield every variant with its first and its last histogram; a resumed training has none of epoch 0."""
    table = results.gradient_norms
    for name in params.variants:
        own = table.loc[(table["variant"] == name) & (table["kind"] == kind)]
        counts = [epoch["count"].to_numpy(float) for _, epoch in own.groupby("epoch")]
        yield name, counts[0], counts[-1]


def _section(params: Params, name: str, kind: type[Section]) -> Section:
    loss = params.losses.get(name)
    if not isinstance(loss, kind):
        raise InputError(f"{name} is missing from params.yaml: the report shows what it makes of the gradients")
    return loss
