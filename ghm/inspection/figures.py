"""The figure of box sizes against the anchors."""

import numpy as np
from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FormatStrFormatter

from ghm.inspection.anchors import POSITIVE, Boxes, Setting, best_iou, iou
from ghm.inspection.search import percent
from ghm.report.style import COLOURS, Plot, panels

SHOWN = 2_000  # boxes that are drawn
POINTS = 240  # a side, of the grid that the area which the anchors reach is drawn on
BLUE, ORANGE, REACHED = *COLOURS[:2], "#E3EDF4"


def sizes(boxes: Boxes, settings: dict[str, Setting]) -> Plot:
    """Draw width and height of boxes and of anchors, a panel for each setting."""
    drawn = boxes.sample(SHOWN)
    kinds = {"box": (BLUE, "o"), f"box with no IoU of {POSITIVE}": (ORANGE, "o"), "anchor": ("black", "s")}
    handles: list[Artist] = [Line2D([], [], color=colour, marker=marker, ls="", ms=4, label=name)
               for name, (colour, marker) in kinds.items()]  # fmt: skip
    handles.append(Patch(color=REACHED, label="reach of the anchors"))
    figure, axes = panels([], len(settings), columns=2, height=4.0, extra=handles, sharex=True, sharey=True)
    panel = [(drawn.resized(each.image_scale).size_N2, np.array([*each.shapes()])[:, 1:]) for each in settings.values()]
    sides = np.concatenate([np.concatenate(pair).ravel() for pair in panel])
    low, high = max(1.0, sides.min() / 1.2), sides.max() * 1.2
    edge_E = np.geomspace(low, high, POINTS)
    grid_M2 = np.stack(np.meshgrid(edge_E, edge_E), axis=-1).reshape(-1, 2)
    for ax, (name, setting), (size_N2, anchor_A2) in zip(axes, settings.items(), panel, strict=True):
        best_M = np.max([iou(grid_M2, np.zeros_like(grid_M2), *shape) for shape in anchor_A2], axis=0)
        ax.contourf(edge_E, edge_E, best_M.reshape(POINTS, POINTS), levels=[POSITIVE, 1.01], colors=[REACHED])
        is_good_N = best_iou(drawn, setting) >= POSITIVE
        for chosen_N, colour in ((is_good_N, BLUE), (~is_good_N, ORANGE)):
            ax.plot(*size_N2[chosen_N].clip(low).T, "o", color=colour, markersize=3, alpha=0.5, markeredgewidth=0)
        ax.plot(*anchor_A2.T, "s", color="black", markersize=4)
        ax.set_title(
            f"{name}: {percent(np.mean(best_iou(boxes, setting) < POSITIVE))} of the boxes are below {POSITIVE}"
        )
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        ax.set(xlim=(low, high), ylim=(low, high), xlabel="width, pixels")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(FormatStrFormatter("%g"))
    axes[0].set_ylabel("height, pixels")
    return Plot(
        figure,
        "Training boxes after resizing, and the shapes of the anchors",
        f"{'All boxes' if len(boxes) <= SHOWN else f'A sample of {SHOWN:,} boxes'}. The reach is what has an IoU of "
        f"{POSITIVE} with an anchor of the same centre; what is orange inside it lies between the anchors' positions.",
    )
