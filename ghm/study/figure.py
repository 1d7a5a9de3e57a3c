"""The figure of a study: AP with intervals, a panel for each condition."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ghm.evaluation.bootstrap import UNCLEAR, Interval
from ghm.report import names
from ghm.report.style import GREY, Plot, colours, panels
from ghm.report.tables import LEVEL
from ghm.study.comparison import Comparison, Row
from ghm.words import label

APART = 0.14  # between the curves at a value, where values are 1 apart


def draw(result: Comparison) -> Plot:
    """Draw AP on the reported split against the values, or of each curve where there are none."""
    study, split = result.study, result.splits[-1]
    marks: dict[str, Any] = {"color": GREY, "markerfacecolor": "none", "linestyle": "none", "marker": "o"}
    extra = [Line2D([], [], label=UNCLEAR, markersize=5, **marks)]
    if study.chooses:
        extra.append(Line2D([], [], label=f"chosen on {result.splits[0]}", markersize=11, **marks))
    in_legend = study.curves if study.parameter else ()  # or else the axis names them
    figure, axes = panels(in_legend, len(study.conditions), height=3.1, extra=extra)
    for ax, condition in zip(axes, study.conditions, strict=True):
        ax.set(title=names.figure(condition), ylabel=f"AP on {split}")
        _panel(ax, result, condition)
    reference, against = names.markdown(study.reference), f" against {study.parameter}" * bool(study.parameter)
    band = f" The band is that of {reference}." if study.chooses or not study.parameter else ""
    return Plot(
        figure,
        f"AP on {split}{against}, mean over seeds with its {LEVEL} interval",
        f"Hollow: not distinguishable from {reference}.{band} Verdicts are those of the difference on the same images "
        "and seeds, whose interval is narrower: intervals here may overlap and the difference be clear.",
    )


def _panel(ax: Axes, result: Comparison, condition: str) -> None:
    """Points over the values, equally spaced, and a band for a curve without values; or a point for each curve."""
    study = result.study
    ticks = [names.figure(label(value)) for value in study.values] or [names.figure(name) for name in study.curves]
    turned: dict[str, Any] = {} if study.parameter else {"rotation": 20, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(range(len(ticks)), ticks, **turned)
    ax.set(xlabel=study.parameter or "", xlim=(-0.5, len(ticks) - 0.5))
    ax.grid(visible=False, axis="x")
    swept = [name for name, curve in study.curves.items() if curve.swept]
    for number, (name, colour) in enumerate(colours(study.curves).items()):
        rows = result.of(condition, name)
        if name in swept:
            aside = APART * (swept.index(name) - (len(swept) - 1) / 2)
            _points(ax, [place + aside for place in range(len(ticks))], rows, colour)
        elif not study.parameter:
            _points(ax, [number], rows, colour)
        level = rows[0].intervals["AP"]
        if level and name not in swept and (study.parameter or name == study.reference):
            ax.axhspan(100 * level.low, 100 * level.high, color=colour, alpha=0.13, linewidth=0)
            ax.axhline(100 * level.estimate, color=colour)


def _points(ax: Axes, x: Sequence[float], rows: Sequence[Row], colour: str) -> None:
    """Means with their intervals in percent, joined by a line that has a gap where nothing was trained."""
    intervals = [row.intervals["AP"] or Interval(math.nan, math.nan, math.nan) for row in rows]
    middle = [100 * one.estimate for one in intervals]
    ends = [(100 * (one.estimate - one.low), 100 * (one.high - one.estimate)) for one in intervals]
    ax.errorbar(x, middle, yerr=np.transpose(ends), color=colour, marker="o", markersize=5, capsize=3, elinewidth=1.2)
    for place, ap, row in zip(x, middle, rows, strict=True):
        minus = row.differences["AP"]
        if minus and minus.verdict == UNCLEAR:
            ax.plot(place, ap, "o", color=colour, markersize=5, markerfacecolor="white", zorder=4)
        if row.chosen:
            ax.plot(place, ap, "o", color=colour, markersize=13, markerfacecolor="none", zorder=4)
