"""Which classes were found as which: counts, and the figure of them."""

from typing import Any

import numpy as np
import pandas as pd

from ghm.drawing import short
from ghm.evaluation.matches import Array
from ghm.params import Params
from ghm.report import names
from ghm.report.inputs import Results
from ghm.report.style import GREY, WIDTH, Plot, panels

SHOWN = 25  # classes of the figure
FEW = {4: 3, 13: 2}  # rows of a matrix, up to so many -> matrices side by side
LONGEST = 18  # letters of a class in the figure
MISSED, ALARM = "missed", "false alarm"  # the column and the row of background


def table(results: Results) -> pd.DataFrame:
    """How often each class was found as each, all seeds together: variant, true, found, count; None is background."""
    classes = [*results.manifest["classes"], None]
    rows = [
        (variant, classes[true], classes[found], count_KK[true, found])
        for variant, count_KK in _counts(results).items()
        for true, found in np.argwhere(count_KK)
    ]
    return pd.DataFrame(rows, columns=["variant", "true", "found", "count"])


def figure(results: Results, params: Params) -> Plot:
    """Draw the confusion matrix of every variant; of many classes that of the first and of the best variant."""
    classes, counts = results.manifest["classes"], _counts(results)
    wrong_KK = np.sum([*counts.values()], axis=0)[:-1, :-1] * ~np.eye(len(classes), dtype=bool)
    shown = np.sort(np.argsort(-wrong_KK.sum(axis=0) - wrong_KK.sum(axis=1), kind="stable")[:SHOWN])
    columns = next((columns for rows, columns in FEW.items() if len(shown) < rows), 1)
    best = max(params.variants, key=lambda name: results.metrics[name]["AP"])
    drawn = [name for name in params.variants if columns > 1 or name in (next(iter(params.variants)), best)]
    side = WIDTH / min(columns, len(drawn))
    figure, axes = panels([], len(drawn), columns, height=min(0.9 * side, 0.25 * len(shown) + 2.4))
    labels = [names.figure(short(classes[k], LONGEST)) for k in shown]
    rest = [f"{len(classes) - len(shown)} others"] if len(shown) < len(classes) else []
    for ax, name in zip(axes, drawn, strict=True):
        _draw(ax, counts[name], shown)
        ax.set_xticks(range(len(shown) + len(rest) + 1), [*labels, *rest, MISSED])
        ax.set_yticks(range(len(shown) + 1), [*labels, ALARM])
        turned = max(map(len, [*labels, *rest, MISSED])) * 0.09 > 0.75 * side / (len(shown) + 3)  # inches
        ax.tick_params("x", rotation=90 * turned)
        ax.tick_params(length=0, labelsize=8.5)
        ax.set(title=names.figure(name), xlabel="found as", ylabel="true class")
        ax.grid(visible=False)
    limited = f" Of {len(classes)} classes, the {SHOWN} that are most often taken for another one." * bool(rest)
    limited += " The first variant and the one with the highest AP." * (len(drawn) < len(params.variants))
    return Plot(
        figure,
        "What the boxes of each class were found as",
        "In percent of the boxes of a class, of the detections from the score above on, all seeds together. A "
        "detection is of a box that it overlaps with IoU 0.5 or more, of its own class first. Blue: right. Last row: "
        "false alarms, in percent of what was found as this class; a second detection of a box is one, too."
        f"{limited} All counts: `plots/confusion.csv`.",
    )


def _counts(results: Results) -> dict[str, Array]:
    """Of each variant, all seeds together, in the order of the manifest, with background in the end."""
    place = {name: k for k, name in enumerate([*results.manifest["classes"], None])}
    counts = {variant: np.zeros((len(place), len(place)), int) for variant in results.outcomes}
    for variant, seeds in results.outcomes.items():
        for true, found, count in (row for seed in seeds for row in seed["confusion"]):
            counts[variant][place[true], place[found]] += count
    return counts


def _draw(ax: Any, count_KK: Array, shown: Array) -> None:
    rows, rest = [*shown, len(count_KK) - 1], np.setdiff1d(np.arange(len(count_KK) - 1), shown)
    others = [count_KK[:, rest].sum(axis=1)] if len(rest) else []
    count_KC = np.column_stack([count_KK[:, shown], *others, count_KK[:, -1]])
    share_RC = count_KC[rows] / np.maximum(1, count_KC[rows].sum(axis=1, keepdims=True))
    share_RC[-1] = count_KC[-1] / np.maximum(1, count_KC.sum(axis=0))  # background has no number of boxes
    right_RC = np.eye(*share_RC.shape, dtype=bool)
    right_RC[-1] = False
    for part_RC, colours in ((right_RC, "Blues"), (~right_RC, "Oranges")):
        ax.imshow(
            np.ma.masked_where(~part_RC | (share_RC == 0), share_RC), cmap=colours, vmin=0, vmax=1.2, aspect="auto"
        )
    size = min(9.0, 150 / len(rows))
    for (row, column), share in np.ndenumerate(share_RC):
        if share >= 0.005:
            ink = "white" if share > 0.75 else "black"
            ax.text(column, row, f"{100 * share:.0f}", color=ink, ha="center", va="center", fontsize=size)
    ax.axhline(len(rows) - 1.5, color=GREY, linewidth=0.8)
    ax.axvline(share_RC.shape[1] - 1.5, color=GREY, linewidth=0.8)
