"""The figure of a study: AP with intervals, a panel for each condition and for each published source."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ghm.evaluation.bootstrap import Interval
from ghm.report import names
from ghm.report.style import GREY, Plot, colours, legend, new_figure
from ghm.report.tables import LEVEL
from ghm.study.comparison import Comparison, Row
from ghm.study.definition import Cell, Published, Study
from ghm.words import label

COLUMNS = 3  # panels beside each other
HEIGHT = 3.1  # of a panel, inches
APART = 0.14  # between the curves at a value, where values are 1 apart


def texts(study: Study) -> list[str]:
    """All that its author named."""
    values = [label(value) for value in study.values]
    return [*study.curves, *study.conditions, *values, *(published.dataset for published in study.published)]


def draw(result: Comparison) -> Plot:
    """Draw AP on the reported split against the values, or of each curve where there are none."""
    study = result.study
    panels = len(study.conditions) + len(study.published)
    columns = min(COLUMNS, panels)
    figure = new_figure(0.6 + HEIGHT * math.ceil(panels / columns))
    axes = figure.subplots(math.ceil(panels / columns), columns, squeeze=False).ravel()
    for ax, condition in zip(axes, study.conditions, strict=False):
        several = len(study.conditions) > 1
        ax.set(
            title=names.figure(condition) if several else result.records[0].dataset, ylabel=f"AP on {result.splits[-1]}"
        )
        _panel(ax, study, {curve: result.of(condition, curve) for curve in study.curves})
    for ax, published in zip(axes[len(study.conditions) :], study.published, strict=False):
        ax.set(title=names.figure(published.dataset), ylabel="published AP", facecolor="#F7F7F7")
        _panel(ax, study, {curve: _published(study, published, curve) for curve in study.curves})
    for ax in axes[panels:]:
        ax.set_axis_off()
    marks: dict[str, Any] = {"color": GREY, "markerfacecolor": "none", "linestyle": "none", "marker": "o"}
    extra = [Line2D([], [], label="not distinguishable", markersize=5, **marks)]
    if study.chooses:
        extra.append(Line2D([], [], label=f"chosen on {result.splits[0]}", markersize=11, **marks))
    legend(figure, study.curves, extra)
    reference, against = names.markdown(study.reference), f" against {study.parameter}" * bool(study.parameter)
    band = f"; the band is that of {reference}" if study.chooses or not study.parameter else ""
    return Plot(
        figure,
        alt=f"AP on {result.splits[-1]} with {LEVEL} intervals{against}, for "
        f"{', '.join(map(names.markdown, study.curves))}. The tables have the numbers.",
        caption=f"**AP on `{result.splits[-1]}`**, mean over seeds with its {LEVEL} interval{band}. Hollow: not "
        f"distinguishable from {reference}. That is judged by the difference on the same images and seeds, whose "
        "interval is narrower: intervals here may overlap and the difference be clear."
        + " Published AP, with a grey ground, has images and a scale of its own."
        * bool(study.published),
    )


def _published(study: Study, published: Published, curve: str) -> list[Row]:
    """Rows without intervals; those whose figure is no number, such as NaN, are left out."""
    rows = []
    for value in study.values if study.curves[curve].swept else (None,):
        ap = published.of(curve, value)
        point = Interval(ap / 100, ap / 100, ap / 100) if isinstance(ap, int | float) else None
        rows.append(Row(Cell("", curve, value, "", {}), {}, {}, intervals={"AP": point}))
    return rows


def _panel(ax: Axes, study: Study, rows: dict[str, list[Row]]) -> None:
    """Points over the values, equally spaced, and a band for a curve without values; or a point for each curve."""
    ticks = [names.figure(label(value)) for value in study.values] or [names.figure(name) for name in study.curves]
    turned: dict[str, Any] = {} if study.parameter else {"rotation": 20, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(range(len(ticks)), ticks, **turned)
    ax.set(xlabel=study.parameter or "", xlim=(-0.5, len(ticks) - 0.5))
    ax.grid(visible=False, axis="x")
    swept = [name for name, curve in study.curves.items() if curve.swept]
    for number, (name, colour) in enumerate(colours(study.curves).items()):
        if name in swept:
            aside = APART * (swept.index(name) - (len(swept) - 1) / 2)
            _points(ax, [place + aside for place in range(len(ticks))], rows[name], colour)
        elif not study.parameter:
            _points(ax, [number], rows[name], colour)
        level = rows[name][0].intervals["AP"]
        if level and name not in swept and (study.parameter or name == study.reference):
            ax.axhspan(100 * level.low, 100 * level.high, color=colour, alpha=0.13, linewidth=0)
            ax.axhline(100 * level.estimate, color=colour)


def _points(ax: Axes, x: Sequence[float], rows: Sequence[Row], colour: str) -> None:
    """Means with their intervals in percent, joined by a line that has a gap where nothing was trained."""
    nothing = Interval(math.nan, math.nan, math.nan)
    intervals = [row.intervals["AP"] or nothing for row in rows]
    middle = [100 * one.estimate for one in intervals]
    below = [100 * (one.estimate - one.low) for one in intervals]
    above = [100 * (one.high - one.estimate) for one in intervals]
    ax.errorbar(x, middle, yerr=[below, above], color=colour, marker="o", markersize=5, capsize=3, elinewidth=1.2)
    for place, ap, row in zip(x, middle, rows, strict=True):
        minus = row.differences["AP"]
        if minus and minus.verdict == "not distinguishable":
            ax.plot(place, ap, "o", color=colour, markersize=5, markerfacecolor="white", zorder=4)
        if row.chosen:
            ax.plot(place, ap, "o", color=colour, markersize=13, markerfacecolor="none", zorder=4)
