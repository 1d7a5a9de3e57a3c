"""The figures of differences: in AP, and in AP of each class, with intervals."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ghm.evaluation.bootstrap import METRICS
from ghm.params import Params
from ghm.report import comparison, names
from ghm.report.inputs import Results
from ghm.report.style import GREY, Plot, colours, legend, new_figure
from ghm.report.tables import LEVEL, ONE_IN

CLASSES = 24  # in the figure at most; the table has all
ROW = 0.26  # inches


def differences(compared: pd.DataFrame, params: Params) -> Plot:
    """Draw the difference of every variant to the first one, in AP, AP50 and AP75.

    Args:
        compared: of `comparison.table`.
    """
    first, *others = params.variants
    figure = new_figure(1.0 + ROW * 1.3 * max(1, len(others)))
    axes = figure.subplots(1, len(METRICS), sharey=True)
    for ax, metric in zip(axes, METRICS, strict=True):
        for place, name in enumerate(others):
            _bar(ax, comparison.row(compared, name, metric), place, colours(params.variants)[name], size=6)
        ax.axvline(0, color=GREY, linewidth=1)
        ax.set(title=f"{metric} minus {names.figure(first)}", xlabel="points", ylim=(max(1, len(others)) - 0.4, -0.6))
        ax.grid(visible=False, axis="y")
    axes[0].set_yticks(range(len(others)), [names.figure(name) for name in others])
    return Plot(
        figure,
        alt=f"Difference of each variant to {names.markdown(first)} in AP, AP50 and AP75, with its {LEVEL} interval.",
        caption=f"**Differences** to {names.code(first)} in points, with {LEVEL} intervals. One that does not touch "
        f"the line at 0 is called better or worse.",
    )


def per_class(compared: pd.DataFrame, results: Results, params: Params) -> Plot:
    """Draw the difference of every variant to the first one in AP of each class that the split has boxes of."""
    first, *others = params.variants
    every = [f"AP_{name}" for name in results.manifest["classes"]]
    table = compared[compared["metric"].isin(every) & (compared["variant"] != first)]
    width = np.maximum(1e-9, table["difference_high"] - table["difference_low"])
    clear = (table["difference"] / width).abs().groupby(table["metric"]).max()
    order = clear.sort_values(ascending=False).index[:CLASSES]
    shown = [metric for metric in every if metric in set(order)]
    figure = new_figure(1.0 + ROW * max(0.8, 0.45 * len(others)) * len(shown))
    ax = figure.subplots()
    for number, name in enumerate(others):
        own = table.query("variant == @name").set_index("metric")
        shift = (number - (len(others) - 1) / 2) * 0.8 / max(1, len(others))
        for place, metric in enumerate(shown):
            _bar(ax, own.loc[metric].to_dict(), place + shift, colours(params.variants)[name], size=4)
    ax.axvline(0, color=GREY, linewidth=1)
    ax.set(
        title=f"AP of each class minus that of {names.figure(first)}", ylim=(len(shown) - 0.4, -0.6), xlabel="points"
    )
    ax.set_yticks(range(len(shown)), [names.figure(metric.removeprefix("AP_")) for metric in shown])
    ax.grid(visible=False, axis="y")
    for edge in np.arange(len(shown) - 1) + 0.5:
        ax.axhline(edge, color="#EEEEEE", linewidth=0.7, zorder=0)
    legend(figure, params.variants)
    rest, without = len(clear) - len(shown), len(every) - len(clear)
    return Plot(
        figure,
        alt=f"Difference of each variant to {names.markdown(first)} in AP of each class, with its {LEVEL} interval.",
        caption=f"**Classes**: difference to {names.code(first)} in AP of each, with {LEVEL} intervals. Of so many "
        f"intervals {ONE_IN} misses the truth."
        + (f" The {len(shown)} clearest; {rest} more in the table." if rest else "")
        + (f" Not shown: {without} of {len(every)} classes, of which the split has no box." if without else ""),
    )


def _bar(ax: Axes, row: dict[str, float], place: float, colour: str, size: float) -> None:
    """Draw an interval, in points, with its estimate."""
    ax.plot([100 * row["difference_low"], 100 * row["difference_high"]], [place, place], color=colour, linewidth=2.2)
    ax.plot(100 * row["difference"], place, marker="o", color=colour, markersize=size)
