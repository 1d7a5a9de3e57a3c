"""Figures of the training runs: losses, gradient norms, and what the losses make of them.

Legend: `B` bins of a counted histogram, `K` unit regions, `S` logged steps, `G` points. Gradient norms are in [0, 1].
"""

import inspect
import itertools
from typing import Any

import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from ghm import losses
from ghm.losses import density as of_regions
from ghm.params import Loss, Params, Role
from ghm.report import names
from ghm.report.inputs import Results
from ghm.report.style import GREY, KINDS, Plot, colours, draw_seeds, panels

SHOWN = 60  # bins of a drawn distribution: half of those counted, or the rare hard examples are a comb
MOMENTS = ("start", "middle", "end")
COLUMNS: dict[Role, str] = {"cls": "loss_cls", "box": "loss_bbox"}  # of `runs.LOG`
Array = NDArray[np.floating]


def loss(results: Results, params: Params) -> Plot | None:
    """Draw the training loss, a panel for each loss, since only equal losses share a scale; None after 0 epochs."""
    if results.loss.empty:
        return None
    equal: dict[tuple[Role, str], list[str]] = {}
    for kind, name in itertools.product(KINDS, params.variants):
        equal.setdefault((kind, str(params.loss(name, kind))), []).append(name)
    figure, axes = panels(params.variants, len(equal))
    window = max(1, len(results.loss["step"].unique()) // 25)
    for ax, ((kind, _), variants) in zip(axes, equal.items(), strict=True):
        section = getattr(params.variants[variants[0]], kind)
        overrides = params.variants[variants[0]].overrides.get(section, {})
        title = [f"{KINDS[kind]}: {names.figure(section)}", *(f"{key} {value}" for key, value in overrides.items())]
        shown = results.loss.query("variant in @variants")
        for name, of_variant in shown.groupby("variant"):
            colour = colours(params.variants)[str(name)]
            draw_seeds(ax, of_variant, "step", COLUMNS[kind], colour, window, zorder=3)
        # The first steps can be many times higher than all the rest; they may leave the panel at the top.
        top = 1.15 * np.quantile(shown[COLUMNS[kind]], 0.99)
        ax.set(title="\n".join(title), xlabel="step", xlim=(0, shown["step"].max()), ylim=(0, top if top > 0 else 1))
    return Plot(
        figure,
        "Training loss, a panel for each classification and box loss",
        "Different losses have different scales: compare curves within a panel. Bands: range over seeds.",
    )


def gradient_norms(results: Results, params: Params) -> Plot:
    """Draw the distribution of gradient norms at the start, in the middle and at the end of the training."""
    figure, axes = panels(params.variants, 2 * len(MOMENTS), len(MOMENTS), sharex=True, sharey="row")
    for (kind, (number, moment)), ax in zip(itertools.product(KINDS, enumerate(MOMENTS)), axes, strict=True):
        for name, colour in colours(params.variants).items():
            count_B = _counts(results, name, kind)[number]
            share_K = regrouped(count_B, SHOWN) / max(1, count_B.sum())
            share_K = np.where(share_K > 0, share_K, np.nan)  # nothing to show on a logarithmic scale
            ax.stairs(share_K, np.linspace(0, 1, SHOWN + 1), baseline=None, color=colour, linewidth=1.4)
        ax.set(title=f"{KINDS[kind]}, {moment}", xlim=(0, 1))
    for row in axes[: len(MOMENTS)], axes[len(MOMENTS) :]:
        row[0].set_ylabel("share of examples")
        if any(0 < ax.dataLim.y1 < np.inf for ax in row):  # not where there was no positive anchor
            row[0].set_yscale("log")
            low, high = row[0].get_ylim()
            margin = max(1.0, 10 / np.sqrt(high / low))  # two decades or more, so that noise does not look like a trend
            row[0].set_ylim(low / margin, high * margin)
            row[0].yaxis.set_minor_locator(NullLocator())
    for ax in axes[len(MOMENTS) :]:
        ax.set_xlabel("gradient norm g")
    return Plot(
        figure,
        "Gradient norms at the start, in the middle and at the end of the training",
        f"The paper's Figure 2, on the same training images, all pyramid levels and seeds together, in {SHOWN} bins. "
        "At the start all variants are one network: one line covers the others.",
    )


def reformulated(results: Results, params: Params) -> Plot:
    """Draw the gradient norm that cross entropy, Focal Loss and GHM-C make of g (the paper's Figure 3)."""
    norm_G = np.linspace(0.002, 1, 500)
    gamma, bins = _setting(params, "FocalLoss", "gamma"), _setting(params, "GHMC", "bins")
    known = [
        Line2D(norm_G, norm_G, color=GREY, linestyle="--", label="cross entropy"),
        Line2D(norm_G, focal_gradient(norm_G, gamma), color=GREY, linestyle=":", label=f"Focal Loss, gamma {gamma:g}"),
    ]
    figure, (ax,) = panels(params.variants, height=4.1, extra=known)
    for line in known:
        ax.plot(*line.get_data(), color=GREY, linestyle=line.get_linestyle())
    centre_K = (np.arange(bins) + 0.5) / bins
    rarest = []
    for name, colour in colours(params.variants).items():
        count_K = regrouped(_counts(results, name, "cls")[-1], bins)
        weight_K = weights(count_K)
        rarest.append(f"{names.code(name)} {count_K[count_K > 0].min():g} of weight {np.nanmax(weight_K):,.0f}")
        ax.plot(centre_K, weight_K * centre_K, color=colour, marker="o", markersize=3.5)
    ax.set_title("GHM-C with the counts of each variant (colour), losses that need no counts (grey)")
    ax.set(xlabel="gradient norm g of cross entropy", ylabel="gradient norm after reweighting")
    ax.set(xlim=(0, 1), yscale="log", ylim=(1e-4, None))
    ax.yaxis.set_minor_locator(NullLocator())
    return Plot(
        figure,
        "What the losses make of a gradient",
        "The paper's Figure 3. Focal Loss is the formula without alpha, which only scales positive and negative "
        f"examples; GHM-C uses the counts of each trained variant, in {bins} unit regions, without smoothing. Examples "
        f"in the region with the fewest: {'; '.join(rarest)}. The losses are normalised differently: compare shapes, "
        "not heights.",
    )


def density(results: Results, params: Params) -> Plot | None:
    """Draw the moving averages of the first seed; None where no variant has a loss with one."""
    table = results.density.query(f"seed == {params.seeds[0]}").set_index(["variant", "kind"])
    occupied: set[Any] = set(table[table["density"] > 0].index)
    rows = [pair for pair in itertools.product(params.variants, KINDS) if pair in occupied]
    if not rows:
        return None
    figure, axes = panels([], 2 * len(rows), columns=2, height=1.75)
    meshes: dict[tuple[str, str], list[Any]] = {}
    for place, (name, kind) in enumerate(rows):
        grid = table.loc[[(name, kind)]].pivot(index="low", columns="step", values="density")
        count_KS = grid.to_numpy(float)
        weight_KS = weights(count_KS.T, _pseudo_count(results, params, name, kind)).T
        edges = [0.0, *grid.columns]  # an average stands for the steps up to where it was read
        maps = (("density", count_KS, "viridis"), ("weight", weight_KS, "magma"))
        for ax, (what, value_KS, cmap) in zip(axes[2 * place :], maps, strict=False):
            shown_KS = np.ma.masked_invalid(np.where(value_KS > 0, value_KS, np.nan))
            mesh = ax.pcolormesh(edges, np.linspace(0, 1, len(value_KS) + 1), shown_KS, cmap=cmap)
            ax.set(title=f"{names.figure(name)}, {KINDS[kind]}: {what}", xlabel="step", ylabel="gradient norm g")
            ax.label_outer()
            ax.grid(visible=False)
            meshes.setdefault((kind, what), []).append(mesh)
    for equal in meshes.values():  # one scale for all variants
        lows, highs = zip(*(mesh.get_clim() for mesh in equal), strict=True)
        for mesh in equal:
            mesh.set_norm(LogNorm(min(lows), max(*highs, 1.001 * min(lows))))
            figure.colorbar(mesh, ax=mesh.axes, pad=0.02)
    return Plot(
        figure,
        f"Density of gradient norms over the training, and the weights that follow (seed {params.seeds[0]})",
        "The moving average of the number of examples in each unit region, and the weight that an example gets, on "
        "logarithmic scales that all variants share. White: no example so far. The average passes from one pyramid "
        "level to the next and is read after the last one. Smoothing by `positives` is shown with their mean number.",
    )


def _counts(results: Results, variant: str, kind: Role) -> tuple[Array, Array, Array]:
    """The histograms [B] of a variant at MOMENTS; a resumed run has none of epoch 0."""
    epochs = results.gradient_norms.query("variant == @variant and kind == @kind").groupby("epoch")
    counts = [epoch["count"].to_numpy(float) for _, epoch in epochs]
    return counts[0], counts[len(counts) // 2], counts[-1]


def _argument(loss: Loss, name: str) -> Any:
    """The value of a loss's argument, its default where it is not given, None where the loss has no such argument."""
    built_in = getattr(losses, loss.type.rpartition(".")[2], None)  # mmdet's of the same name have the same defaults
    known = inspect.signature(built_in).parameters if built_in else {}
    return loss.arguments.get(name, known[name].default if name in known else None)


def _pseudo_count(results: Results, params: Params, variant: str, kind: Role) -> float:
    """The smoothing of a loss; the mean over all steps where it follows the number of positives."""
    smoothing = _argument(params.loss(variant, kind), "smoothing") or 0.0
    if smoothing != "positives":
        return smoothing
    return float(results.loss.loc[results.loss["variant"] == variant, "positives"].mean())


def _setting(params: Params, type_: str, name: str) -> Any:
    """The value of an argument in the first variant, or else section, with a loss of this type, or else its default."""
    used = [params.loss(variant, "cls") for variant in params.variants]
    known = (loss for loss in (*used, *params.losses.values()) if loss.type.endswith(f".{type_}"))
    return _argument(next(known, Loss(type_)), name)


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
