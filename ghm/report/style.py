"""One look for all figures: sizes, colours, panels, legend, and the words that go with them."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ghm import fonts
from ghm.params import Role
from ghm.report import names

WIDTH = 9.0  # inches: about 900 px on a code host's page, where 9 pt are then 12 px
DPI = 160  # more than the page shows, for dense screens

# Okabe and Ito's colours for colour-blind readers, without their yellow, which is too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
GREY = "#666666"

KINDS: dict[Role, str] = {"cls": "classification", "box": "box regression"}

STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
}


@dataclass(frozen=True)
class Plot:
    """A figure with its words."""

    figure: Figure
    title: str  # without a full stop; its alternative text, too
    caption: str  # the sentences after it
    format: str = "png"  # jpg for photographs

    def save(self, folder: Path, name: str) -> None:
        # Without matplotlib's version in the file, equal pictures are equal bytes.
        metadata = {"Software": None} if self.format == "png" else None
        self.figure.savefig(folder / f"{name}.{self.format}", dpi=DPI, metadata=metadata)

    def markdown(self, path: str) -> str:
        """The figure on a page; `path` has no suffix."""
        return f"![{self.title}]({path}.{self.format})\n\n**{self.title}**. {self.caption}"


@contextmanager
def look(texts: Iterable[str]) -> Iterator[None]:
    """Draw and save figures in this look, with fonts that have the letters of `texts`: all names that occur."""
    family = [entry.name for entry in fonts.covering(texts)]
    style: Any = {**STYLE, "font.family": family}
    with rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # `fonts` has said it once
        yield


def colours(variants: Iterable[str]) -> dict[str, str]:
    """Return a colour for each variant, by its place in `params.yaml`; the ninth starts again."""
    return {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(variants)}


def panels(
    variants: Iterable[str], number: int = 1, columns: int = 3, height: float = 2.4, extra: Sequence[Artist] = (),
    **shared: Any,
) -> tuple[Figure, list[Axes]]:  # fmt: skip
    """Return a figure of page width with panels, `columns` side by side, `height` inches each.

    One legend stands above them: the variants, then `extra` handles.
    """
    columns = min(columns, number)
    rows = -(-number // columns)
    figure = Figure(figsize=(WIDTH, 0.5 + height * rows), layout="constrained")
    axes: list[Axes] = figure.subplots(rows, columns, squeeze=False, **shared).ravel().tolist()
    for ax in axes[number:]:
        ax.set_axis_off()
    named = colours(variants).items()
    handles = [*(Line2D([], [], color=colour, linewidth=3, label=names.figure(name)) for name, colour in named), *extra]
    lines = 1 if len(handles) <= 5 else 2
    if handles:
        figure.legend(handles=handles, loc="outside upper left", ncols=-(-len(handles) // lines), columnspacing=1.6)
    return figure, axes[:number]


def draw_seeds(ax: Axes, table: pd.DataFrame, x: str, y: str, colour: str, window: int = 1, **line: Any) -> None:
    """Draw column `y` against `x`, the mean over seeds in a running window, and a band over their range."""
    runs = table.pivot(index=x, columns="seed", values=y)
    values: pd.DataFrame = runs.rolling(window, center=True, min_periods=1).mean()  # type: ignore[assignment]
    ax.fill_between(values.index, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.2, linewidth=0)
    ax.plot(values.index, values.mean(axis=1), color=colour, **line)
