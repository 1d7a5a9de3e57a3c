"""The figures of gradient norms: how they are distributed, and what the losses make of them."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from ghm.errors import InputError
from ghm.params import Params
from ghm.report.harmonise import Array, focal_gradient, unit_regions, weights
from ghm.report.inputs import Results
from ghm.report.style import GREY, KINDS, Plot, colours, legend, new_figure

SHOWN = 60  # bins of a drawn distribution: half of those counted, or the rare hard examples are a comb
UNUSED = (0, (3, 1.5))
MOMENTS = ("start", "middle", "end")


def gradient_norms(results: Results, params: Params) -> Plot:
    """Draw the distribution of gradient norms at the start, in the middle and at the end of the training."""
    figure = new_figure(5.4)
    axes = figure.subplots(2, len(MOMENTS), sharex=True, sharey="row")
    for row, kind in zip(axes, KINDS, strict=True):
        for name, moments in _moments(results, params, kind):
            for ax, (moment, count_B) in zip(row, moments.items(), strict=True):
                share_K = unit_regions(count_B, SHOWN) / max(1, count_B.sum())
                colour = colours(params.variants)[name]
                ax.stairs(share_K, np.linspace(0, 1, SHOWN + 1), color=colour, baseline=None, linewidth=1.4)
                ax.set(title=f"{KINDS[kind]}, {moment}", xlim=(0, 1))
        _log_scale(row)
        row[0].set_ylabel("share of examples")
    for ax in axes[1]:
        ax.set_xlabel("gradient norm g")
    legend(figure, params.variants)
    return Plot(
        figure,
        alt="Share of examples by gradient norm, for classes and for boxes, at the start, in the middle and at the end "
        "of the training, on a logarithmic scale.",
        caption=f"**Gradient norms** (the paper's Figure 2) on the same training images for every variant, all pyramid "
        f"levels and seeds together, in {SHOWN} bins. At the start all variants are one network: the last line covers "
        f"the others. Gaps: no examples.",
    )


def region_weights(results: Results, params: Params) -> Plot:
    """Draw the GHM weight of each unit region after the training."""
    figure = new_figure(3.4)
    axes = figure.subplots(1, 2)
    bins_of = {"cls": _argument(params, "ghmc", "bins"), "box": _argument(params, "ghmr", "bins")}
    for ax, (kind, bins), section in zip(axes, bins_of.items(), ("ghmc", "ghmr"), strict=True):
        for name, moments in _moments(results, params, kind):
            weight_K = weights(unit_regions(moments["end"], bins))
            line = "-" if getattr(params.variants[name], kind) == section else UNUSED
            edges = np.linspace(0, 1, bins + 1)
            colour = colours(params.variants)[name]
            ax.stairs(weight_K, edges, color=colour, baseline=None, linewidth=1.8, linestyle=line)
        ax.set(title=f"{KINDS[kind]}: weight by {section}", xlim=(0, 1), xlabel="gradient norm g")
        _log_scale([ax])
    unused = Line2D([], [], color=GREY, linestyle=UNUSED, label="trained without these weights")
    legend(figure, params.variants, [unused])
    return Plot(
        figure,
        alt="The weight that GHM gives to an example of each unit region, for classes and for boxes, on a logarithmic "
        "scale.",
        caption=f"**Weights** that follow at the end: examples / (examples in the unit region x occupied regions), "
        f"with {bins_of['cls']} unit regions for classes and {bins_of['box']} for boxes. Here all images and pyramid "
        f"levels count together; training counts each step and level alone, so its weights are noisier.",
    )


def _log_scale(axes: Sequence[Axes]) -> None:
    """Give what is drawn one logarithmic scale over two decades or more, so that noise does not look like a trend."""
    drawn = [ax for ax in axes if ax.dataLim.minposy <= ax.dataLim.ymax < np.inf]
    for ax in axes:
        if ax not in drawn:
            # A batch without objects, or a box loss without deltas: there is nothing to scale to.
            ax.text(0.5, 0.5, "no examples", transform=ax.transAxes, ha="center")
    if drawn:
        low, high = min(ax.dataLim.minposy for ax in drawn), max(ax.dataLim.ymax for ax in drawn)
        margin = max(1.6, 10 / np.sqrt(high / low))
        for ax in axes:
            ax.set(yscale="log", ylim=(low / margin, high * margin))
            ax.yaxis.set_minor_locator(NullLocator())


def reformulated(results: Results, params: Params) -> Plot:
    """Draw the gradient norm that cross entropy, Focal Loss and GHM-C make of g (the paper's Figure 3)."""
    figure = new_figure(4.6)
    ax = figure.subplots()
    g = np.linspace(0.002, 1, 500)
    gamma = _argument(params, "focal", "gamma")
    bins = _argument(params, "ghmc", "bins")
    known = [
        ax.plot(g, g, color=GREY, linestyle="--", label="cross entropy")[0],
        ax.plot(g, focal_gradient(g, gamma), color=GREY, linestyle=":", label=f"Focal Loss, gamma {gamma:g}")[0],
    ]
    for name, moments in _moments(results, params, "cls"):
        weight_K = weights(unit_regions(moments["end"], bins))
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


def _moments(results: Results, params: Params, kind: str) -> Iterator[tuple[str, dict[str, Array]]]:
    """Yield every variant with its histograms at three epochs; a resumed training has none of epoch 0."""
    table = results.gradient_norms
    for name in params.variants:
        own = table.loc[(table["variant"] == name) & (table["kind"] == kind)]
        counts = [epoch["count"].to_numpy(float) for _, epoch in own.groupby("epoch")]
        yield name, dict(zip(MOMENTS, (counts[0], counts[len(counts) // 2], counts[-1]), strict=True))


def _argument(params: Params, section: str, name: str) -> Any:
    loss = params.losses.get(section)
    if loss is None or name not in loss.arguments:
        raise InputError(f"{section} is missing from params.yaml, or has no {name}: the report draws it")
    return loss.arguments[name]
