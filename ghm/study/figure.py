"""The figure of a study: AP with intervals, a panel for each condition and for each published source."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import Transform

from ghm.evaluation.bootstrap import Interval
from ghm.report import names
from ghm.report.style import GREY, Plot, colours, new_figure
from ghm.report.tables import LEVEL
from ghm.study.comparison import Comparison, Row
from ghm.study.definition import Published, Study, label

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
COLUMNS = 3  # panels beside each other
LINE = 115  # letters of a legend that fit into the width, 7 for each mark
GROUND = {"boxstyle": "square,pad=0.1", "facecolor": "white", "alpha": 0.75, "linewidth": 0}  # of small words
APART = 0.14  # between the curves at a value, where values are 1 apart


def texts(study: Study) -> list[str]:
    """All that its author named."""
    values = [label(value) for value in study.values]
    return [*study.curves, *study.conditions, *values, *(each.dataset for each in study.published)]


def draw(found: Comparison) -> Plot:
    """Draw AP on the reported split against the values, or a row a curve where there are none."""
    study = found.study
    panels: list[str | Published] = [*study.conditions, *study.published]
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    height = 3.1 if study.parameter else 0.9 + 0.42 * len(study.curves)
    figure = new_figure(0.6 + height * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for place, (ax, panel) in enumerate(zip(axes, panels, strict=False)):
        if isinstance(panel, Published):
            ax.set_title(names.figure(panel.dataset))
            ax.set_facecolor("#F7F7F7")
            (ax.set_ylim if study.parameter else ax.set_xlim)(*_limits(study.published))
        else:
            ax.set_title(names.figure(panel) if len(study.conditions) > 1 else found.contexts[0]["dataset"])
        (_values if study.parameter else _curves)(ax, found, panel, first=place % columns == 0)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    if study.parameter:
        _legend(figure, found)
    return Plot(figure, _alt(found), _caption(found))


def _alt(found: Comparison) -> str:
    study = found.study
    against = f" against {study.parameter}" if study.parameter else " of each curve"
    beside = f" Beside it published AP on {' and '.join(names.markdown(each.dataset) for each in study.published)}."
    return (
        f"AP on {found.splits[-1]} with {LEVEL} intervals{against}, for {', '.join(map(names.markdown, study.curves))}."
        f"{beside if study.published else ''} The tables have the numbers."
    )


def _caption(found: Comparison) -> str:
    study, reference = found.study, names.markdown(found.study.reference)
    words = (
        f"**AP on `{found.splits[-1]}`** of `{found.contexts[0]['dataset']}`, mean over seeds with its {LEVEL} interval"
    )
    if study.chooses or not study.parameter:
        words += f"; the band is that of {reference}"
    words += (
        f". Hollow: not distinguishable from {reference}. That is judged by the difference on the same images "
        "and seeds, whose interval is narrower: intervals here may overlap and the difference be clear."
    )
    if any(row.lacking for row in found.rows):
        words += f" Small figures: how many of the {len(study.seeds)} seeds there are, where not all."
    if study.published:
        words += " Published AP, with a grey ground, has images and a scale of its own."
    return words


def _limits(published: Sequence[Published]) -> tuple[float, float]:
    """Room for all published figures, the same in each panel."""
    found = [ap for each in published for own in each.ap.values() for ap in (own.values() if _is_swept(own) else [own])]
    numbers = [ap for ap in found if isinstance(ap, int | float)] or [0.0, 100.0]
    room = 0.15 * (max(numbers) - min(numbers)) or 1.0
    return min(numbers) - room, max(numbers) + room


def _is_swept(ap: object) -> TypeGuard[Mapping[object, object]]:
    return isinstance(ap, Mapping)


def _values(ax: Axes, found: Comparison, panel: str | Published, *, first: bool) -> None:
    """A line a curve over the values, equally spaced; a band for what has no value."""
    study = found.study
    ax.set_xticks(range(len(study.values)), [names.figure(label(value)) for value in study.values])
    ax.set(xlabel=study.parameter, xlim=(-0.5, len(study.values) - 0.5))
    if isinstance(panel, Published):
        ax.set_ylabel("published AP")
    elif first:
        ax.set_ylabel(f"AP on {found.splits[-1]}")
    ax.grid(visible=False, axis="x")
    swept = [name for name, curve in study.curves.items() if curve.swept]
    for number, (name, colour) in enumerate(colours(study.curves).items()):
        aside = APART * (swept.index(name) - (len(swept) - 1) / 2) if name in swept else 0.0
        style = {"color": colour, "marker": MARKERS[number % len(MARKERS)], "markersize": 5}
        if isinstance(panel, Published):
            _published_line(ax, found, panel, name, aside, style)
        elif name in swept:
            _line(ax, found.of(panel, name), aside, style)
        else:
            _band(ax, found.of(panel, name), colour, vertical=False)
    if not isinstance(panel, Published):
        _say_lacking(ax, found, panel, swept)


def _line(ax: Axes, rows: Sequence[Row], aside: float, style: dict[str, Any]) -> None:
    x = [place + aside for place in range(len(rows))]
    middle, sizes = _bars(rows)
    ax.errorbar(x, middle, yerr=sizes, capsize=3, elinewidth=1.2, zorder=3, **style)
    for place, row, y in zip(x, rows, middle, strict=True):
        if _is_unclear(row):
            ax.plot(place, y, markerfacecolor="white", zorder=4, **style)
        if row.chosen:
            ax.plot(place, y, "o", markersize=13, markerfacecolor="none", markeredgecolor=style["color"], zorder=4)


def _say_lacking(ax: Axes, found: Comparison, condition: str, swept: Sequence[str]) -> None:
    """Write how many of the seeds there are, where there are not all, a line a curve above the values."""
    short = [name for name in swept if any(row.lacking for row in found.of(condition, name))]
    low, high = np.clip(ax.get_ylim(), 0, 100)
    ax.set_ylim(low - 0.08 * len(short) * (high - low), high)
    for line, name in enumerate(short):
        for place, row in enumerate(found.of(condition, name)):
            if row.lacking:
                words, colour = f"{len(row.chosen_on)}/{len(found.study.seeds)}", colours(found.study.curves)[name]
                _say(ax, words, (place, 0.02 + 0.07 * line), ax.get_xaxis_transform(), ha="center", color=colour)


def _say(ax: Axes, words: str, place: tuple[float, float], transform: Transform, **style: Any) -> None:
    ax.annotate(words, place, xycoords=transform, fontsize=8.5, bbox=GROUND, zorder=5, **style)


def _published_line(
    ax: Axes, found: Comparison, published: Published, name: str, aside: float, style: dict[str, Any]
) -> None:
    study = found.study
    if not study.curves[name].swept:
        ap = published.of(name, None)
        if isinstance(ap, int | float):
            ax.axhline(ap, color=style["color"])
        return
    known = [(place, published.of(name, value)) for place, value in enumerate(study.values)]
    places = [place + aside for place, _ in known]
    ax.plot(places, [ap if isinstance(ap, int | float) else math.nan for _, ap in known], **style)
    for place, ap in known:
        if isinstance(ap, str):
            _say(ax, names.figure(ap), (place, 0.02), ax.get_xaxis_transform(), ha="center", color=style["color"])


def _curves(ax: Axes, found: Comparison, panel: str | Published, *, first: bool) -> None:
    """A dot a curve, from top to bottom."""
    study = found.study
    ax.set_yticks(range(len(study.curves)), [names.figure(name) if first else "" for name in study.curves])
    ax.set_ylim(len(study.curves) - 0.5, -0.5)
    ax.set_xlabel("published AP" if isinstance(panel, Published) else f"AP on {found.splits[-1]}")
    ax.grid(visible=False, axis="y")
    for number, (name, colour) in enumerate(colours(study.curves).items()):
        style = {"color": colour, "marker": MARKERS[number % len(MARKERS)], "markersize": 6}
        if isinstance(panel, Published):
            ap = panel.of(name, None)
            if isinstance(ap, int | float):
                ax.plot(ap, number, **style)
                _number(ax, ap, number)
            elif ap is not None:
                _say(ax, names.figure(str(ap)), (0.5, number), ax.get_yaxis_transform(), ha="center", va="center")
            continue
        (row,) = found.of(panel, name)
        if row.lacking:
            words = f"{len(row.chosen_on)}/{len(study.seeds)} seeds"
            _say(ax, words, (0.99, number + 0.3), ax.get_yaxis_transform(), ha="right", va="center", color=colour)
        if name == study.reference:
            _band(ax, [row], colour, vertical=True)
        middle, sizes = _bars([row])
        face = "white" if _is_unclear(row) else colour
        ax.errorbar(middle, [number] * len(middle), xerr=sizes, capsize=3, zorder=3, markerfacecolor=face, **style)
        if row.chosen_on:
            _number(ax, middle[0], number)
    if not isinstance(panel, Published):
        ax.margins(x=0.15)


def _number(ax: Axes, ap: float, place: float) -> None:
    """Write the AP above its mark."""
    ax.annotate(
        f"{ap:.1f}", (ap, place), (0, 7), textcoords="offset points", ha="center", fontsize=8.5, bbox=GROUND, zorder=5
    )


def _band(ax: Axes, rows: Sequence[Row], colour: str, *, vertical: bool) -> None:
    for low, middle, high in _intervals([row for row in rows if row.chosen_on]):
        (ax.axvspan if vertical else ax.axhspan)(low, high, color=colour, alpha=0.13, linewidth=0)
        (ax.axvline if vertical else ax.axhline)(middle, color=colour, linewidth=1.2 if vertical else 1.8)


def _bars(rows: Sequence[Row]) -> tuple[list[float], list[list[float]]]:
    """Means in percent, and how far their intervals reach below and above."""
    found = list(_intervals(rows))
    below, above = [middle - low for low, middle, _ in found], [high - middle for _, middle, high in found]
    return [middle for _, middle, _ in found], [below, above]


def _intervals(rows: Sequence[Row]) -> Iterator[tuple[float, float, float]]:
    """Low, mean and high in percent; nan, which leaves a gap, where no training is there."""
    for row in rows:
        interval = row.interval() or Interval(math.nan, math.nan, math.nan)
        yield 100 * interval.low, 100 * interval.estimate, 100 * interval.high


def _is_unclear(row: Row) -> bool:
    difference = row.difference()
    return difference is not None and difference.verdict == "not distinguishable"


def _legend(figure: Figure, found: Comparison) -> None:
    """One legend above the panels: the curves, and what the marks mean."""
    study = found.study
    marks: dict[str, Any] = {"color": GREY, "markerfacecolor": "none", "linestyle": "none"}
    handles: list[Artist] = []
    for number, (name, colour) in enumerate(colours(study.curves).items()):
        marker = MARKERS[number % len(MARKERS)] if study.curves[name].swept else ""
        handles.append(
            Line2D([], [], color=colour, linewidth=2.4, marker=marker, markersize=5.5, label=names.figure(name))
        )
    if study.chooses:
        handles.append(Patch(color=GREY, alpha=0.25, label=f"{LEVEL} interval"))
        handles.append(Line2D([], [], label=f"chosen on {found.splits[0]}", marker="o", markersize=11, **marks))
    else:
        handles.append(Line2D([], [], label=f"{LEVEL} interval", marker="|", markersize=11, **marks))
    handles.append(Line2D([], [], label="not distinguishable", marker="s", markersize=5, **marks))
    length = sum(len(str(handle.get_label())) + 7 for handle in handles)
    columns = len(handles) if length <= LINE else (len(handles) + 1) // 2
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, columnspacing=1.6)
