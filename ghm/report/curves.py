"""The figures of training and detection: loss curves, precision and recall."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ghm.params import Params
from ghm.report import names as written
from ghm.report.inputs import Results
from ghm.report.style import KINDS, Plot, colours, legend, new_figure
from ghm.report.tables import LEVEL


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
            ax.set_title(f"{KINDS[role]}: {written.figure(section)}")
        for ax in places[role][len(sections) :]:
            ax.set_axis_off()
    legend(figure, params.variants)
    return Plot(
        figure,
        alt="Training loss against optimiser steps, a panel for each classification and box loss.",
        caption="**Training loss**. A panel for each loss, because different losses have different scales: compare "
        "curves within a panel, not between panels." + _bands(params),
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
        window = max(1, len(runs) // 25)
        smooth = runs.rolling(window, center=True, min_periods=1).mean()
        ax.fill_between(runs.index, smooth.min(axis=1), smooth.max(axis=1), color=colour, alpha=0.2, linewidth=0)
        ax.plot(runs.index, smooth.mean(axis=1), color=colour, zorder=3)
    # The first steps can be many times higher than all the rest; they may leave the panel at the top.
    top = 1.15 * np.quantile(shown[column], 0.99)
    ax.set(xlim=(0, np.max(shown["step"])), ylim=(0, top if top > 0 else 1))


def validation_ap(results: Results, params: Params) -> Plot | None:
    """Draw AP on a part of the validation split after each epoch; None where it was not measured."""
    table = results.validation
    if table.empty:
        return None
    figure = new_figure(3.4)
    ax = figure.subplots()
    for name, colour in colours(params.variants).items():
        runs = 100 * table[table["variant"] == name].pivot(index="epoch", columns="seed", values="AP")
        ax.fill_between(runs.index, runs.min(axis=1), runs.max(axis=1), color=colour, alpha=0.2, linewidth=0)
        ax.plot(runs.index, runs.mean(axis=1), color=colour, marker="o", markersize=4)
    ax.set(title="AP after each epoch", xlabel="epoch", ylabel="AP", ylim=(0, None))
    ax.set_xticks(sorted(table["epoch"].unique()), minor=False)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(figure, params.variants)
    return Plot(
        figure,
        alt="AP on a part of the validation split after each epoch, for every variant.",
        caption="**AP so far**, on a part of the validation split; nothing was chosen by it." + _bands(params),
    )


def precision_recall(table: pd.DataFrame, params: Params) -> Plot:
    """Draw precision against recall at each IoU, mean over classes and seeds, with intervals.

    Args:
        table: of `comparison.precision_recall`.
    """
    overlaps = sorted(table["iou"].unique())
    figure = new_figure(4.4)
    axes = figure.subplots(1, len(overlaps), sharey=True, squeeze=False)[0]
    for ax, overlap in zip(axes, overlaps, strict=True):
        for name, colour in colours(params.variants).items():
            part = table[(table["variant"] == name) & (table["iou"] == overlap)]
            ax.fill_between(part["recall"], part["low"], part["high"], color=colour, alpha=0.18, linewidth=0)
            ax.plot(part["recall"], part["precision"], color=colour)
        ax.set(title=f"IoU {overlap:g}", xlabel="recall", xlim=(0, 1), ylim=(0, 1.02))
    axes[0].set_ylabel("precision, mean over classes")
    legend(figure, params.variants)
    return Plot(
        figure,
        alt="Precision against recall for every variant, at IoU 0.5 and at IoU 0.75, with intervals.",
        caption="**Precision and recall** on the reported split, mean over classes"
        + (" and seeds" if len(params.seeds) > 1 else "")
        + f", with {LEVEL} intervals; a detection counts from the IoU above the panel.",
    )


def _bands(params: Params) -> str:
    return " Band: from the lowest to the highest seed." if len(params.seeds) > 1 else ""
