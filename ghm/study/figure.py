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
MARK: dict[str, Any] = {"marker": "o", "markersize": 5, "capsize": 3, "elinewidth": 1.2}


def draw(result: Comparison) -> Plot:
    """Draw AP on the reported split against the values; where there are none, of each curve, one below the other."""
    study, split = result.study, result.splits[-1]
    marks: dict[str, Any] = {"color": GREY, "markerfacecolor": "none", "linestyle": "none", "marker": "o"}
    extra = [Line2D([], [], label=UNCLEAR, markersize=5, **marks)]
    if study.chooses:
        extra.append(Line2D([], [], label=f"chosen on {result.splits[0]}", markersize=11, **marks))
    if study.parameter:
        figure, axes = panels(study.curves, len(study.conditions), height=3.1, extra=extra)
    else:  # the axis names the curves
        height = 0.8 + 0.22 * len(study.curves)
        figure, axes = panels((), len(study.conditions), height=height, extra=extra, sharey=True)
        axes[0].set_yticks(range(len(study.curves)), [names.figure(name) for name in study.curves])
        axes[0].set_ylim(len(study.curves) - 0.5, -0.5)
    for ax, condition in zip(axes, study.conditions, strict=True):
        ax.set_title(names.figure(condition))
        if study.parameter:
            ax.set_ylabel(f"AP on {split}")
            _over_values(ax, result, condition)
        else:
            ax.set_xlabel(f"AP on {split}")
            _by_curve(ax, result, condition)
    reference, against = names.markdown(study.reference), f" against {study.parameter}" * bool(study.parameter)
    band = f" The band is that of {reference}." if study.chooses or not study.parameter else ""
    return Plot(
        figure,
        f"AP on {split}{against}, mean over seeds with its {LEVEL} interval",
        f"Hollow: not distinguishable from {reference}.{band} Verdicts are those of the difference on the same images "
        "and seeds, whose interval is narrower: intervals here may overlap and the difference be clear.",
    )


def _over_values(ax: Axes, result: Comparison, condition: str) -> None:
    """Points over the values, equally spaced, and a band for a curve without values."""
    study = result.study
    ticks = [names.figure(label(value)) for value in study.values]
    ax.set_xticks(range(len(ticks)), ticks)
    ax.set(xlabel=study.parameter or "", xlim=(-0.5, len(ticks) - 0.5))
    ax.grid(visible=False, axis="x")
    swept = [name for name, curve in study.curves.items() if curve.swept]
    for name, colour in colours(study.curves).items():
        rows = result.of(condition, name)
        level = rows[0].intervals["AP"]
        if name in swept:
            aside = APART * (swept.index(name) - (len(swept) - 1) / 2)
            places = [place + aside for place in range(len(ticks))]
            middle, ends = _percent(rows)
            ax.errorbar(places, middle, yerr=ends, color=colour, **MARK)
            for place, ap, row in zip(places, middle, rows, strict=True):
                _verdict(ax, place, ap, row, colour)
        elif level:
            ax.axhspan(100 * level.low, 100 * level.high, color=colour, alpha=0.13, linewidth=0)
            ax.axhline(100 * level.estimate, color=colour)


def _by_curve(ax: Axes, result: Comparison, condition: str) -> None:
    """A point for each curve, from top to bottom, and a band for the one that they are compared with."""
    study = result.study
    ax.grid(visible=False, axis="y")
    for number, (name, colour) in enumerate(colours(study.curves).items()):
        rows = result.of(condition, name)
        middle, ends = _percent(rows)
        ax.errorbar(middle, [number], xerr=ends, color=colour, **MARK)
        _verdict(ax, middle[0], number, rows[0], colour)
        level = rows[0].intervals["AP"]
        if level and name == study.reference:
            ax.axvspan(100 * level.low, 100 * level.high, color=colour, alpha=0.13, linewidth=0)
            ax.axvline(100 * level.estimate, color=colour)


def _percent(rows: Sequence[Row]) -> tuple[list[float], np.ndarray]:
    """Means, and the lengths of their intervals to either side; NaN where nothing was trained, a gap in a line."""
    intervals = [row.intervals["AP"] or Interval(math.nan, math.nan, math.nan) for row in rows]
    ends = [(100 * (one.estimate - one.low), 100 * (one.high - one.estimate)) for one in intervals]
    return [100 * one.estimate for one in intervals], np.transpose(ends)


def _verdict(ax: Axes, x: float, y: float, row: Row, colour: str) -> None:
    """Make a point hollow that is not distinguishable, and ring the one that was chosen."""
    minus = row.differences["AP"]
    if minus and minus.verdict == UNCLEAR:
        ax.plot(x, y, "o", color=colour, markersize=5, markerfacecolor="white", zorder=4)
    if row.chosen:
        ax.plot(x, y, "o", color=colour, markersize=13, markerfacecolor="none", zorder=4)
