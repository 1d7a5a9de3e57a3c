"""Figures of the training runs: losses, gradient norms, and what the losses make of them.

Legend: `B` bins of a counted histogram, `K` unit regions, `S` logged steps, `G` points. Gradient norms are in [0, 1].
"""

import inspect
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from ghm import losses
from ghm.losses import density as of_regions
from ghm.params import Loss, Params, Role
from ghm.report import names
from ghm.report.inputs import Results
from ghm.report.style import GREY, KINDS, Plot, colours, draw_seeds, legend, new_figure, of_seeds

SHOWN = 60  # bins of a drawn distribution: half of those counted, or the rare hard examples are a comb
UNUSED = (0, (3, 1.5))  # dashes
MOMENTS = ("start", "middle", "end")
HARMONISED: dict[Role, str] = {"cls": "GHMC", "box": "GHMR"}
COLUMNS: dict[Role, str] = {"cls": "loss_cls", "box": "loss_bbox"}  # of `runs.LOG`
Array = NDArray[np.floating]


def loss(results: Results, params: Params) -> Plot:
    """Draw the training loss, a panel for each loss, since only equal losses share a scale."""
    panels: dict[Role, dict[str, list[str]]] = {kind: {} for kind in KINDS}
    for kind, name in itertools.product(KINDS, params.variants):
        panels[kind].setdefault(str(params.loss(name, kind)), []).append(name)
    columns = min(3, max(map(len, panels.values())))
    rows: list[tuple[Role, list[list[str]]]] = []
    for kind in KINDS:
        groups = list(panels[kind].values())
        for start in range(0, len(groups), columns):
            rows.append((kind, groups[start : start + columns]))
    figure = new_figure(0.5 + 2.4 * len(rows))
    for axes, (kind, row) in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        for ax, variants in zip(axes, row, strict=False):
            variant = params.variants[variants[0]]
            section = getattr(variant, kind)
            overrides = [f"{key} {value}" for key, value in variant.overrides.get(section, {}).items()]
            ax.set(xlabel="step", title="\n".join([f"{KINDS[kind]}: {names.figure(section)}", *overrides]))
            shown = results.loss.query("variant in @variants")
            if shown.empty:
                ax.text(0.5, 0.5, "0 epochs", transform=ax.transAxes, ha="center")
                continue
            window = max(1, shown["step"].nunique() // 25)
            for name in variants:
                own, colour = shown.query("variant == @name"), colours(params.variants)[name]
                draw_seeds(ax, own, "step", COLUMNS[kind], colour, window, zorder=3)
            # The first steps can be many times higher than all the rest; they may leave the panel at the top.
            top = 1.15 * np.quantile(shown[COLUMNS[kind]], 0.99)
            ax.set(xlim=(0, np.max(shown["step"])), ylim=(0, top if top > 0 else 1))
        for ax in axes[len(row) :]:
            ax.set_axis_off()
    legend(figure, params.variants)
    return Plot(
        figure,
        alt="Training loss against optimiser steps, a panel for each classification and box loss.",
        caption="**Training loss**. A panel for each loss, because different losses have different scales: compare "
        "curves within a panel, not between panels." + of_seeds(params),
    )


def gradient_norms(results: Results, params: Params) -> Plot:
    """Draw the distribution of gradient norms at the start, in the middle and at the end of the training."""
    figure = new_figure(5.4)
    axes = figure.subplots(2, len(MOMENTS), sharex=True, sharey="row")
    for row, kind in zip(axes, KINDS, strict=True):
        for number, (ax, moment) in enumerate(zip(row, MOMENTS, strict=True)):
            for name, colour in colours(params.variants).items():
                count_B = _counts(results, name, kind)[number]
                _stairs(ax, regrouped(count_B, SHOWN) / max(1, count_B.sum()), color=colour, linewidth=1.4)
            ax.set_title(f"{KINDS[kind]}, {moment}")
        _log_scale(row)
        row[0].set_ylabel("share of examples")
    for ax in axes[1]:
        ax.set_xlabel("gradient norm g")
    legend(figure, params.variants)
    return Plot(
        figure,
        alt="Share of examples by gradient norm at the start, in the middle and at the end of the training.",
        caption=f"**Gradient norms** (the paper's Figure 2) on the same training images, all pyramid levels and seeds "
        f"together, in {SHOWN} bins. At the start all variants are one network: one line covers the others.",
    )


def region_weights(results: Results, params: Params) -> Plot:
    """Draw the GHM weight of each unit region after the training."""
    figure = new_figure(3.4)
    bins_of: dict[Role, int] = {kind: _setting(params, kind, HARMONISED[kind], "bins") for kind in KINDS}
    for ax, (kind, bins) in zip(figure.subplots(1, 2), bins_of.items(), strict=True):
        for name, colour in colours(params.variants).items():
            own = params.loss(name, kind)
            is_used = _argument(own, "bins") == bins and not _argument(own, "smoothing")
            weight_K = weights(regrouped(_counts(results, name, kind)[-1], bins))
            _stairs(ax, weight_K, color=colour, linewidth=1.8, linestyle="-" if is_used else UNUSED)
        ax.set(title=f"{KINDS[kind]}: weight by {HARMONISED[kind]}", xlabel="gradient norm g")
        _log_scale([ax])
    unused = Line2D([], [], color=GREY, linestyle=UNUSED, label="trained without these weights")
    legend(figure, params.variants, [unused])
    return Plot(
        figure,
        alt="The weight that GHM gives to an example of each unit region, for classes and for boxes.",
        caption=f"**Weights** that follow at the end: examples / (examples in the unit region x occupied regions), "
        f"with {bins_of['cls']} unit regions for classes and {bins_of['box']} for boxes. Here all images and pyramid "
        f"levels count together; training counts each step and level alone, so its weights are noisier.",
    )


def reformulated(results: Results, params: Params) -> Plot:
    """Draw the gradient norm that cross entropy, Focal Loss and GHM-C make of g (the paper's Figure 3)."""
    figure = new_figure(4.6)
    ax = figure.subplots()
    norm_G = np.linspace(0.002, 1, 500)
    gamma, bins = _setting(params, "cls", "FocalLoss", "gamma"), _setting(params, "cls", "GHMC", "bins")
    focal = f"Focal Loss, gamma {gamma:g}"
    known = [
        *ax.plot(norm_G, norm_G, color=GREY, linestyle="--", label="cross entropy"),
        *ax.plot(norm_G, focal_gradient(norm_G, gamma), color=GREY, linestyle=":", label=focal),
    ]
    centre_K = (np.arange(bins) + 0.5) / bins
    for name, colour in colours(params.variants).items():
        weight_K = weights(regrouped(_counts(results, name, "cls")[-1], bins))
        ax.plot(centre_K, weight_K * centre_K, color=colour, marker="o", markersize=3.5)
    ax.set_title("GHM-C with the counts of each variant (colour), losses that need no counts (grey)")
    ax.set(xlabel="gradient norm g of cross entropy", ylabel="gradient norm after reweighting")
    ax.set(xlim=(0, 1), yscale="log", ylim=(1e-4, None))
    ax.yaxis.set_minor_locator(NullLocator())
    legend(figure, params.variants, known)
    return Plot(
        figure,
        alt="Gradient norm after reweighting by Focal Loss and by GHM-C against that of cross entropy.",
        caption="**What the losses make of a gradient** (the paper's Figure 3). Focal Loss is the formula without "
        "alpha, which only scales positive and negative examples; GHM-C uses the counts of each trained variant, at "
        "the centres of its unit regions. The losses are normalised differently: compare shapes, not heights.",
    )


def density(results: Results, params: Params) -> Plot | None:
    """Draw the moving averages of the first seed; None where no variant has a loss with one."""
    table = results.density.query(f"seed == {params.seeds[0]}").set_index(["variant", "kind"])
    occupied: set[Any] = set(table[table["density"] > 0].index)
    rows = [pair for pair in itertools.product(params.variants, KINDS) if pair in occupied]
    if not rows:
        return None
    figure = new_figure(0.3 + 1.75 * len(rows))
    axes = figure.subplots(len(rows), 2, squeeze=False)
    meshes: dict[tuple[str, str], list[Any]] = {}
    for pair, (name, kind) in zip(axes, rows, strict=True):
        grid = table.loc[[(name, kind)]].pivot(index="low", columns="step", values="density")
        count_KS = grid.to_numpy(float)
        weight_KS = weights(count_KS.T, _argument(params.loss(name, kind), "smoothing") or 0.0).T
        edges = [0.0, *grid.columns]  # an average stands for the steps up to where it was read
        maps = (("density", count_KS, "viridis"), ("weight", weight_KS, "magma"))
        for ax, (what, value_KS, cmap) in zip(pair, maps, strict=True):
            shown_KS = np.ma.masked_invalid(np.where(value_KS > 0, value_KS, np.nan))
            mesh = ax.pcolormesh(edges, np.linspace(0, 1, len(value_KS) + 1), shown_KS, cmap=cmap)
            ax.set_title(f"{names.figure(name)}, {KINDS[kind]}: {what}")
            ax.grid(visible=False)
            meshes.setdefault((kind, what), []).append(mesh)
        pair[0].set_ylabel("gradient norm g")
    for equal in meshes.values():  # one scale for all variants
        lows, highs = zip(*(mesh.get_clim() for mesh in equal), strict=True)
        for mesh in equal:
            mesh.set_norm(LogNorm(min(lows), max(*highs, 1.001 * min(lows))))
            figure.colorbar(mesh, ax=mesh.axes, pad=0.02)
    for ax in axes[-1]:
        ax.set_xlabel("step")
    return Plot(
        figure,
        alt="Heat maps of the density of gradient norms over the training steps, and of the weights that follow.",
        caption=f"**Density over the training** (seed {params.seeds[0]}): the moving average of the number of examples "
        "in each unit region, and the weight of an example that follows, both on logarithmic scales, each the same for "
        "all variants. White: no example so far. The average passes from one pyramid level to the next and is read "
        "after the last one.",
    )


def _counts(results: Results, variant: str, kind: Role) -> tuple[Array, Array, Array]:
    """The histograms [B] of a variant at MOMENTS; a resumed run has none of epoch 0."""
    epochs = results.gradient_norms.query("variant == @variant and kind == @kind").groupby("epoch")
    counts = [epoch["count"].to_numpy(float) for _, epoch in epochs]
    return counts[0], counts[len(counts) // 2], counts[-1]


def _stairs(ax: Axes, value_K: Array, **line: Any) -> None:
    """Draw a value for each of equal parts of [0, 1]."""
    ax.stairs(value_K, np.linspace(0, 1, len(value_K) + 1), baseline=None, **line)
    ax.set_xlim(0, 1)


def _log_scale(axes: Sequence[Axes]) -> None:
    """Give what is drawn one logarithmic scale over two decades or more, so that noise does not look like a trend."""
    drawn = [ax for ax in axes if ax.dataLim.minposy <= ax.dataLim.ymax < np.inf]
    for ax in set(axes) - set(drawn):  # a batch without objects, or a box loss without deltas
        ax.text(0.5, 0.5, "no examples", transform=ax.transAxes, ha="center")
    if drawn:
        low, high = min(ax.dataLim.minposy for ax in drawn), max(ax.dataLim.ymax for ax in drawn)
        margin = max(1.6, 10 / np.sqrt(high / low))
        for ax in axes:
            ax.set(yscale="log", ylim=(low / margin, high * margin))
            ax.yaxis.set_minor_locator(NullLocator())


def _argument(loss: Loss, name: str) -> Any:
    """The value of a loss's argument, its default where it is not given, None where the loss has no such argument."""
    own = getattr(losses, loss.type.rpartition(".")[2], None)  # mmdet's of the same name have the same defaults
    known = inspect.signature(own).parameters if own else {}
    return loss.arguments.get(name, known[name].default if name in known else None)


def _setting(params: Params, kind: Role, type_: str, name: str) -> Any:
    """The value of an argument that a figure shows: that of the first variant whose loss has it.

    Where none has, that of the first section of this type, or else its default.
    """
    used = [params.loss(variant, kind) for variant in params.variants]
    others = [loss for loss in params.losses.values() if loss.type.endswith(f".{type_}")]
    return next(value for loss in (*used, *others, Loss(type_, {})) if (value := _argument(loss, name)) is not None)


def regrouped(count_B: Array, regions: int) -> Array:
    """Regroup a histogram over uniform bins of [0, 1] into `regions` unit regions, [K].

    Exact where `regions` divides the number of bins, which holds for the paper's 5 to 40 of 120; a bin that lies
    across an edge is split in proportion.
    """
    cumulative = np.concatenate([[0.0], np.cumsum(count_B)])
    return np.diff(np.interp(np.linspace(0, 1, regions + 1), np.linspace(0, 1, len(count_B) + 1), cumulative))


def weights(count_K: Array, smoothing: float = 0.0) -> Array:
    """Return the weight that GHM gives to an example of each unit region, [..., K]; nan where there are no examples.

    Without smoothing the weights of all examples have mean 1, and every occupied region gets the same total.
    """
    count = torch.tensor(count_K)
    weight_K = of_regions.region_weights(count, count, count.sum(-1), smoothing=smoothing).numpy()
    return np.where(count_K > 0, weight_K, np.nan)


def focal_gradient(norm_G: Array, gamma: float) -> Array:
    """Return |d FL / d logit| where cross entropy has the gradient norm `norm_G` in [0, 1], without alpha, [G].

    With p_t = 1 - g: g^gamma (g - gamma (1 - g) log(1 - g)), for positive and negative examples alike.
    """
    rest_G = 1 - norm_G
    log_G = np.log(np.where(rest_G > 0, rest_G, 1.0))  # (1 - g) log(1 - g) is 0 at g = 1
    return norm_G**gamma * (norm_G - gamma * rest_G * log_G)
