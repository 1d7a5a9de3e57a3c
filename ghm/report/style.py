"""One look for all figures: sizes, colours, legend."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ghm import fonts
from ghm.params import Params, Role
from ghm.report import names

WIDTH = 9.0  # inches: about 900 px on a code host's page, where 9 pt are then 12 px
DPI = 160  # more than the page shows, for dense screens

# Okabe and Ito's colours for colour-blind readers, without their yellow, which is too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
GREY = "#666666"

KINDS: dict[Role, str] = {"cls": "classification", "box": "box regression"}

STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "lines.linewidth": 1.8,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.wspace": 0.04,
    "savefig.facecolor": "white",
}


@dataclass(frozen=True)
class Plot:
    """A figure with the words that go with it on the page."""

    figure: Figure
    alt: str
    caption: str
    format: str = "png"  # jpg for photographs


@contextmanager
def look(texts: Iterable[str]) -> Iterator[None]:
    """Draw and save figures in this look, with fonts that have the letters of `texts`: all names that occur."""
    family = [entry.name for entry in fonts.covering(texts)]
    with rc_context({**STYLE, "font.family": family}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # `fonts` has said it once
        yield


def colours(variants: Iterable[str]) -> dict[str, str]:
    """Return a colour for each variant, by its place in `params.yaml`; the ninth starts again."""
    return {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(variants)}


def new_figure(height: float) -> Figure:
    """Return an empty figure of page width, `height` in inches."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def legend(figure: Figure, variants: Iterable[str], extra: Iterable[Artist] = ()) -> None:
    """Put one legend for the whole figure above its panels: the variants, then `extra` handles."""
    lines = [
        Line2D([], [], color=colour, linewidth=3, label=names.figure(name))
        for name, colour in colours(variants).items()
    ]
    handles = [*lines, *extra]
    columns = len(handles) if len(handles) <= 5 else (len(handles) + 1) // 2
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, columnspacing=1.6)


def draw_seeds(ax: Axes, table: pd.DataFrame, x: str, y: str, colour: str, window: int = 1, **line: Any) -> None:
    """Draw column `y` against `x`, the mean over seeds in a running window, and a band over their range."""
    runs = table.pivot(index=x, columns="seed", values=y)
    values: pd.DataFrame = runs.rolling(window, center=True, min_periods=1).mean()  # type: ignore[assignment]
    ax.fill_between(values.index, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.2, linewidth=0)
    ax.plot(values.index, values.mean(axis=1), color=colour, **line)


def of_seeds(params: Params, words: str = " Band: from the lowest to the highest seed.") -> str:
    """What a caption says only where there are several seeds."""
    return words if len(params.seeds) > 1 else ""
