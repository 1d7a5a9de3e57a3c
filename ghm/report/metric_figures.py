"""Figures of what was measured: differences with intervals, precision and recall, AP so far."""

import pandas as pd
from matplotlib.ticker import MaxNLocator

from ghm.evaluation.bootstrap import METRICS, UNCLEAR
from ghm.params import Params
from ghm.report import names
from ghm.report.comparison import Compared
from ghm.report.inputs import Results
from ghm.report.style import GREY, Plot, colours, draw_seeds, panels
from ghm.report.tables import LEVEL


def differences(compared: Compared, params: Params) -> Plot | None:
    """Draw the difference of every variant to the first one, in AP, AP50 and AP75; None with a single variant."""
    first, *others = params.variants
    if not others:
        return None
    figure, axes = panels([], len(METRICS), height=0.5 + 0.34 * len(others), sharey=True)
    for ax, metric in zip(axes, METRICS, strict=True):
        for y, name in enumerate(others):
            if minus := compared[name, metric][1]:
                colour = colours(params.variants)[name]
                ax.plot([100 * minus.low, 100 * minus.high], [y, y], color=colour, linewidth=2.2)
                inside = "white" if minus.verdict == UNCLEAR else colour
                ax.plot(100 * minus.estimate, y, marker="o", color=colour, markersize=6, markerfacecolor=inside)
        ax.axvline(0, color=GREY, linewidth=1)
        ax.set(title=f"{metric} minus {names.figure(first)}", xlabel="points", ylim=(len(others) - 0.4, -0.6))
        ax.grid(visible=False, axis="y")
    axes[0].set_yticks(range(len(others)), [names.figure(name) for name in others])
    return Plot(
        figure,
        f"Differences to {names.markdown(first)} in AP, AP50 and AP75, with {LEVEL} intervals",
        "Hollow: not distinguishable, corrected for the number of variants; intervals are each for itself.",
    )


def precision_recall(table: pd.DataFrame, params: Params) -> Plot:
    """Draw precision against recall at each IoU, mean over classes and seeds, with intervals.

    Args:
        table: of `comparison.precision_recall`.
    """
    overlaps = sorted(table["iou"].unique())
    figure, axes = panels(params.variants, len(overlaps), height=3.9, sharey=True)
    for ax, overlap in zip(axes, overlaps, strict=True):
        for name, colour in colours(params.variants).items():
            part = table[(table["variant"] == name) & (table["iou"] == overlap)]
            ax.fill_between(part["recall"], part["low"], part["high"], color=colour, alpha=0.18, linewidth=0)
            ax.plot(part["recall"], part["precision"], color=colour)
        ax.set(title=f"IoU {overlap:g}", xlabel="recall", xlim=(0, 1), ylim=(0, 1.02))
    axes[0].set_ylabel("precision, mean over classes")
    return Plot(
        figure,
        f"Precision and recall, mean over classes and seeds, with {LEVEL} intervals",
        "A detection counts from the IoU above the panel.",
    )


def validation_ap(results: Results, params: Params) -> Plot | None:
    """Draw AP on a part of the validation split after each epoch; None where it was not measured."""
    table = results.validation.assign(AP=100 * results.validation["AP"])
    if table.empty:
        return None
    figure, (ax,) = panels(params.variants, height=2.9)
    for name, of_variant in table.groupby("variant"):
        draw_seeds(ax, of_variant, "epoch", "AP", colours(params.variants)[str(name)], marker="o", markersize=4)
    ax.set(title="AP after each epoch", xlabel="epoch", ylabel="AP", ylim=(0, None))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return Plot(
        figure,
        "AP after each epoch, on a part of the validation split",
        "Nothing was chosen by it. Bands: range over seeds.",
    )
