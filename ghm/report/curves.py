"""The figures of training and detection: loss curves, precision and recall."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ghm.params import Params
from ghm.report.inputs import Results
from ghm.report.style import KINDS, Plot, colours, legend, new_figure


def loss(results: Results, params: Params) -> Plot:
    """Draw the training loss, a panel for each loss section, since only equal losses share a scale."""
    panels = {
        role: list(dict.fromkeys(getattr(variant, role) for variant in params.variants.values())) for role in KINDS
    }
    columns = min(3, max(map(len, panels.values())))
    rows = {role: -(-len(sections) // columns) for role, sections in panels.items()}
    figure = new_figure(0.5 + 2.4 * sum(rows.values()))
    axes = figure.subplots(sum(rows.values()), columns, squeeze=False)
    places = {"cls": axes[: rows["cls"]].ravel(), "box": axes[rows["cls"] :].ravel()}
    for role, sections in panels.items():
        for ax, section in zip(places[role], sections, strict=False):
            names = [name for name, variant in params.variants.items() if getattr(variant, role) == section]
            _loss_panel(ax, results.loss, names, f"loss_{'cls' if role == 'cls' else 'bbox'}", params)
            ax.set_title(f"{KINDS[role]}: {section}")
        for ax in places[role][len(sections) :]:
            ax.set_axis_off()
    legend(figure, params.variants)
    return Plot(
        figure,
        alt="Training loss against optimiser steps, a panel for each classification and box loss.",
        caption="**Training loss** (faint: as logged; bold: running mean). A panel for each loss, because different "
        "losses have different scales: compare curves within a panel, not between panels.",
    )


def _loss_panel(ax: Axes, table: pd.DataFrame, names: list[str], column: str, params: Params) -> None:
    ax.set(xlabel="step")
    shown = table[table["variant"].isin(names)]
    if shown.empty:
        ax.text(0.5, 0.5, "0 epochs", transform=ax.transAxes, ha="center")
        return
    for name in names:
        runs = table[table["variant"] == name].pivot(index="step", columns="seed", values=column)
        colour = colours(params.variants)[name]
        ax.plot(runs.index, runs, color=colour, alpha=0.25, linewidth=0.6)
        window = max(1, len(runs) // 25)
        smooth = runs.rolling(window, center=True, min_periods=1).mean().mean(axis=1)
        ax.plot(runs.index, smooth, color=colour, zorder=3)
    # The first steps can be many times higher than all the rest; they may leave the panel at the top.
    top = 1.15 * np.quantile(shown[column], 0.99)
    ax.set(xlim=(0, np.max(shown["step"])), ylim=(0, top if top > 0 else 1))


def precision_recall(results: Results, params: Params) -> Plot:
    """Draw precision against recall at each IoU, mean over classes and seeds, and each seed thinly."""
    table = results.precision_recall
    overlaps = sorted(table["iou"].unique())
    figure = new_figure(4.4)
    axes = figure.subplots(1, len(overlaps), sharey=True, squeeze=False)[0]
    for ax, overlap in zip(axes, overlaps, strict=True):
        for name, colour in colours(params.variants).items():
            part = table[(table["variant"] == name) & (table["iou"] == overlap)]
            runs = part.pivot(index="recall", columns="seed", values="precision")
            if len(params.seeds) > 1:
                ax.plot(runs.index, runs, color=colour, alpha=0.35, linewidth=0.7)
            ax.plot(runs.index, runs.mean(axis=1), color=colour)
        ax.set(title=f"IoU {overlap:g}", xlabel="recall", xlim=(0, 1), ylim=(0, 1.02))
    axes[0].set_ylabel("precision, mean over classes")
    legend(figure, params.variants)
    return Plot(
        figure,
        alt="Precision against recall for every variant, at IoU 0.5 and at IoU 0.75.",
        caption="**Precision and recall** on the reported split, mean over classes"
        + (" and seeds (thin: each seed)" if len(params.seeds) > 1 else "")
        + "; a detection counts from the IoU above the panel.",
    )
