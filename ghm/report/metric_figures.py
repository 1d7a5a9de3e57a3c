"""Figures of what was measured: differences with intervals, errors, precision and recall, AP so far."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ghm.evaluation.bootstrap import METRICS
from ghm.evaluation.errors import KINDS
from ghm.params import Params
from ghm.report import comparison, names
from ghm.report.inputs import Results
from ghm.report.style import GREY, Plot, colours, draw_seeds, legend, new_figure, of_seeds
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
        for y, name in enumerate(others):
            row = comparison.row(compared, name, metric)
            draw_interval(ax, row, y, colours(params.variants)[name], size=6)
        _against_zero(ax, max(1, len(others)))
        ax.set_title(f"{metric} minus {names.figure(first)}")
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
    classes = [f"AP_{name}" for name in results.manifest["classes"]]
    table = compared.query("metric in @classes and variant != @first")
    width = np.maximum(1e-9, table["difference_high"] - table["difference_low"])
    clear = (table["difference"] / width).abs().groupby(table["metric"]).max().sort_values(ascending=False)
    shown = [metric for metric in classes if metric in clear.index[:CLASSES]]
    figure = new_figure(1.0 + ROW * max(0.8, 0.45 * len(others)) * len(shown))
    ax = figure.subplots()
    for number, name in enumerate(others):
        shift = (number - (len(others) - 1) / 2) * 0.8 / max(1, len(others))
        for y, metric in enumerate(shown):
            row = comparison.row(table, name, metric)
            draw_interval(ax, row, y + shift, colours(params.variants)[name], size=4)
    _against_zero(ax, len(shown))
    ax.set_title(f"AP of each class minus that of {names.figure(first)}")
    ax.set_yticks(range(len(shown)), [names.figure(metric.removeprefix("AP_")) for metric in shown])
    for edge in np.arange(len(shown) - 1) + 0.5:
        ax.axhline(edge, color="#EEEEEE", linewidth=0.7, zorder=0)
    legend(figure, params.variants)
    rest, without = len(clear) - len(shown), len(classes) - len(clear)
    return Plot(
        figure,
        alt=f"Difference of each variant to {names.markdown(first)} in AP of each class, with its {LEVEL} interval.",
        caption=f"**Classes**: difference to {names.code(first)} in AP of each, with {LEVEL} intervals. Of so many "
        f"intervals {ONE_IN} misses the truth."
        + (f" The {len(shown)} clearest; {rest} more in the table." if rest else "")
        + (f" Not shown: {without} of {len(classes)} classes, of which the split has no box." if without else ""),
    )


def draw_interval(ax: Axes, row: dict[str, float], y: float, colour: str, size: float) -> None:
    """Draw a difference, of `comparison.row`, with its interval, in points."""
    ax.plot([100 * row["difference_low"], 100 * row["difference_high"]], [y, y], color=colour, linewidth=2.2)
    ax.plot(100 * row["difference"], y, marker="o", color=colour, markersize=size)


def _against_zero(ax: Axes, rows: int) -> None:
    ax.axvline(0, color=GREY, linewidth=1)
    ax.set(xlabel="points", ylim=(rows - 0.4, -0.6))
    ax.grid(visible=False, axis="y")


def errors(results: Results, params: Params) -> Plot:
    """Draw how much AP50 each kind of error costs, mean over seeds, with the range over seeds."""
    figure = new_figure(4.3)
    ax = figure.subplots()
    width = 0.8 / len(params.variants)
    for number, (name, colour) in enumerate(colours(params.variants).items()):
        cost_SK = 100 * np.array([[seed[kind] for kind in KINDS] for seed in results.errors[name]])
        x_K = np.arange(len(KINDS)) + (number - (len(params.variants) - 1) / 2) * width
        ax.bar(x_K, cost_SK.mean(axis=0), width * 0.9, color=colour)
        if len(cost_SK) > 1:
            ax.vlines(x_K, cost_SK.min(axis=0), cost_SK.max(axis=0), color="black", linewidth=1)
    ax.set_xticks(range(len(KINDS)), KINDS)
    ax.set(title="AP50 that each kind of error costs", ylabel="points")
    ax.grid(visible=False, axis="x")
    legend(figure, params.variants)
    return Plot(
        figure,
        alt="Points of AP50 that classification, localisation, duplicate, background and missed errors cost a variant.",
        caption="**Errors** by kind, as TIDE ([arXiv 2008.08115](https://arxiv.org/abs/2008.08115)): a cost is what "
        "AP50 would gain if this kind alone were mended; costs do not add up. *Classification*: IoU 0.5 or more with a "
        "box of another class; *localisation*: IoU 0.1 to 0.5 with one of its own; *both*: 0.1 to 0.5 with one of "
        "another; *duplicate*: a better detection has the box; *background*: no box; *missed*: a box that nothing was "
        "meant for." + of_seeds(params, " Lines: range over seeds."),
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
        caption=f"**Precision and recall** on the reported split, mean over classes{of_seeds(params, ' and seeds')}, "
        f"with {LEVEL} intervals; a detection counts from the IoU above the panel.",
    )


def validation_ap(results: Results, params: Params) -> Plot | None:
    """Draw AP on a part of the validation split after each epoch; None where it was not measured."""
    table = results.validation.assign(AP=100 * results.validation["AP"])
    if table.empty:
        return None
    figure = new_figure(3.4)
    ax = figure.subplots()
    for name in params.variants:
        own, colour = table.query("variant == @name"), colours(params.variants)[name]
        draw_seeds(ax, own, "epoch", "AP", colour, marker="o", markersize=4)
    ax.set(title="AP after each epoch", xlabel="epoch", ylabel="AP", ylim=(0, None))
    ax.set_xticks(sorted(table["epoch"].unique()), minor=False)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(figure, params.variants)
    return Plot(
        figure,
        alt="AP on a part of the validation split after each epoch, for every variant.",
        caption="**AP so far**, on a part of the validation split; nothing was chosen by it." + of_seeds(params),
    )
