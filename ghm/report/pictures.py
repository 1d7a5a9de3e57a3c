"""Pictures of detections next to ground truth: images and boxes are evenly spaced, not hand-picked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from ghm.params import Params
from ghm.report import names
from ghm.report.inputs import Results, existing
from ghm.report.style import DPI, WIDTH, Plot
from ghm.words import count

HEIGHT = 14.0  # inches of the gallery for square images: decides how many images there are
CELLS = 5  # of the gallery side by side at most: more would be too small to see
CROPS = 8  # side by side
CONTEXT = 2.4  # side of a crop by the longer side of its box
MIN_SIDE = 40  # pixels of the image in a crop
LEGEND, TITLE, GAP, LABEL = 0.32, 0.25, 0.09, 13 / 72  # inches
Item = TypeVar("Item")
Box = dict[str, Any]
Part = tuple[int, int, int, int]  # left, upper, right and lower edge in an image, pixels


class Look(NamedTuple):
    """How boxes of one kind are drawn. Colour and dashes both tell the kinds apart."""

    words: str
    colour: str
    dashes: str | tuple[int, tuple[float, ...]]
    ink: str

    def outline(self) -> dict[str, Any]:
        """What a patch needs: a line on a dark halo, which shows on light and dark photos."""
        halo = [withStroke(linewidth=3.2, foreground="black")]
        style = {"fill": False, "edgecolor": self.colour, "linewidth": 1.8, "linestyle": self.dashes}
        return style | {"path_effects": halo}


LOOKS = {
    "truth": Look("ground truth", "white", "-", "black"),
    "found": Look("found", "#56B4E9", "-", "black"),
    "wrong": Look("false alarm or wrong class", "#D55E00", (0, (3.5, 1.5)), "white"),
    "missed": Look("missed", "#F0E442", (0, (1, 1)), "black"),
}


def gallery(results: Results, params: Params, root: Path) -> Plot:
    """Draw ground truth and each variant's detections (first seed), a line or more of cells for each image.

    Raises:
        InputError: an image is missing.
    """
    lines = -(-(1 + len(params.variants)) // CELLS)
    columns = -(-(1 + len(params.variants)) // lines)
    width = (WIDTH + GAP) / columns - GAP
    images = evenly_spaced(usable_images(results), int(HEIGHT / (lines * width)))
    heights = [width * image["height"] / image["width"] for image in images]
    figure = Figure(figsize=(WIDTH, LEGEND + lines * sum(TITLE + height for height in heights)))
    classes = {category["id"]: names.figure(category["name"]) for category in results.truth["categories"]}
    top = LEGEND
    for image, height in zip(images, heights, strict=True):
        path, part = existing(results.images / image["file_name"], root), (0, 0, image["width"], image["height"])
        label = LABEL * image["width"] / width
        for number, (title, boxes) in enumerate(marks(results, image["id"])):
            line, column = divmod(number, columns)
            bounds = (column * (width + GAP), top + TITLE + line * (TITLE + height), width, height)
            ax = _cell(figure, bounds, path, part)
            ax.set_title(names.figure(title), fontsize=9.5, fontweight="normal", pad=3)
            for box, kind in boxes:
                _outline(ax, box, kind)
                _label(ax, box, kind, classes[box["category_id"]], label)
        top += lines * (TITLE + height)
    patches = [Patch(label=look.words, **look.outline()) for kind, look in LOOKS.items() if kind != "truth"]
    figure.legend(handles=patches, loc="upper left", ncols=len(patches), borderaxespad=0.2)
    from_score = (
        f"{names.code(name)} " + (f"from score {boxes[-1]['score']:.2f}" if boxes else "has none")
        for name, boxes in results.detections.items()
    )
    return Plot(
        figure,
        f"Detections next to ground truth on {count(len(images), 'image')} (seed {params.seeds[0]})",
        "Blue matches a true box of its class at IoU 0.5, best score first; red dashes match none; yellow dots are "
        "true boxes that nothing matched. Losses differ in how high they score, so each variant shows its best "
        f"detections, as many as the split has true boxes: {', '.join(from_score)}. The images are evenly spaced in "
        "the list of those with boxes, not hand-picked.",
        format="jpg",
    )


def disagreements(results: Results, params: Params, root: Path) -> Plot | None:
    """Draw, for every variant, boxes that it finds and the first one misses, and the other way round.

    None with a single variant, or where all agree.

    Raises:
        InputError: an image is missing.
    """
    first, *others = params.variants
    crowded = _crowded(results)
    found = {
        name: {box["hit"]: box for box in boxes if box["hit"] and box["image_id"] not in crowded}
        for name, boxes in results.detections.items()
    }
    pairs = [pair for other in others for pair in ((other, first), (first, other))]
    rows = [(*pair, only) for pair in pairs if (only := sorted(found[pair[0]].keys() - found[pair[1]].keys()))]
    if not rows:
        return None
    boxes, images, classes = (
        {entry["id"]: entry for entry in results.truth[kind]} for kind in ("annotations", "images", "categories")
    )
    gap, title = 0.08, 0.3  # inches
    side = (WIDTH + gap) / CROPS - gap
    figure = Figure(figsize=(WIDTH, len(rows) * (title + side)))
    for row, (finder, other, only) in enumerate(rows):
        top = row * (title + side)
        share = f"{len(only):,} of {count(len(boxes), 'box|boxes')}"
        words = f"{names.figure(finder)} finds, {names.figure(other)} misses: {share}"
        figure.text(0, 1 - (top + 0.75 * title) / figure.get_figheight(), words, fontsize=10)
        for column, truth in enumerate(boxes[number] for number in evenly_spaced(only, CROPS)):
            image = images[truth["image_id"]]
            part = _square(truth["bbox"], image["width"], image["height"])
            path = existing(results.images / image["file_name"], root)
            ax = _cell(figure, (column * (side + gap), top + title, side, side), path, part)
            _outline(ax, truth, "truth")
            _outline(ax, found[finder][truth["id"]], "found")
            tag = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
            name = names.figure(classes[truth["category_id"]]["name"])
            ax.text(part[0], part[1], name, fontsize=9, va="top", bbox=tag, clip_on=True)
    return Plot(
        figure,
        f"Boxes that one variant finds and the other misses (seed {params.seeds[0]})",
        "True boxes (white) that one variant finds (blue) at IoU 0.5 and the other misses, each with its best "
        "detections, as many as there are true boxes; evenly spaced in the list of boxes.",
        format="jpg",
    )


def evenly_spaced(items: Sequence[Item], number: int) -> list[Item]:
    """Return `number` of the items, from the first to the last, or all where there are fewer."""
    return [items[round(place)] for place in np.linspace(0, len(items) - 1, min(number, len(items)))]


def _crowded(results: Results) -> set[int]:
    """Images with crowd regions, left out: whether a detection in a crowd is right has no yes-or-no answer."""
    return {box["image_id"] for box in results.truth["annotations"] if box["iscrowd"]}


def usable_images(results: Results) -> list[dict[str, Any]]:
    """Images with boxes and without crowds, by id."""
    with_boxes = {box["image_id"] for box in results.truth["annotations"]} - _crowded(results)
    usable = [image for image in results.truth["images"] if image["id"] in with_boxes]
    return sorted(usable, key=lambda image: image["id"])


def marks(results: Results, image: int) -> list[tuple[str, list[tuple[Box, str]]]]:
    """The title of each copy of an image, and the boxes to draw on it, with the name of their look."""
    truth = [box for box in results.truth["annotations"] if box["image_id"] == image]
    cells = [("ground truth", [(box, "truth") for box in truth])]
    for name, detections in results.detections.items():
        found = [box for box in detections if box["image_id"] == image]
        hits = {box["hit"] for box in found}
        missed = [(box, "missed") for box in truth if box["id"] not in hits]
        cells.append((name, missed + [(box, "found" if box["hit"] else "wrong") for box in found]))
    return cells


def _cell(figure: Figure, bounds: tuple[float, ...], path: Path, part: Part) -> Axes:
    """Show a part of an image, in its own pixels; at the resolution of the figure, so that drawing does not blur it.

    Args:
        bounds: distance from the left and from the top of the figure, width and height, inches.
    """
    left, top, width, height = bounds
    page_width, page = figure.get_size_inches()
    ax = figure.add_axes((left / page_width, 1 - (top + height) / page, width / page_width, height / page))
    with Image.open(path) as picture:
        piece = picture.convert("RGB").crop(part)
    pixels = (round(width * DPI), round(height * DPI))
    ax.imshow(piece.resize(pixels, Image.Resampling.LANCZOS), extent=(part[0], part[2], part[3], part[1]))
    ax.set_axis_off()
    ax.autoscale(enable=False)
    return ax


def _square(bbox: list[float], width: int, height: int) -> Part:
    """The piece of the image around a box, inside the image."""
    x, y, box_width, box_height = bbox
    side = round(min(max(MIN_SIDE, CONTEXT * max(box_width, box_height)), width, height))
    left = min(max(0, round(x + box_width / 2 - side / 2)), width - side)
    upper = min(max(0, round(y + box_height / 2 - side / 2)), height - side)
    return left, upper, left + side, upper + side


def _outline(ax: Axes, box: Box, kind: str) -> None:
    x, y, width, height = box["bbox"]
    ax.add_patch(Rectangle((x, y), width, height, **LOOKS[kind].outline()))


def _label(ax: Axes, box: Box, kind: str, name: str, size: float) -> None:
    """Write the class of a box; `size` is the height of the text in pixels of the image."""
    x, y, width, height = box["bbox"]
    # Labels lie outside the box, where they hide no small object, but inside the image. Boxes of different kinds often
    # cover each other: each kind has its own corner.
    side = "right" if kind in ("missed", "wrong") else "left"
    x = min(x + width, ax.get_xlim()[1]) if side == "right" else max(x, 0)
    y = min(y + height, ax.get_ylim()[0] - size) if kind == "missed" else max(y, size)
    tag = {"facecolor": LOOKS[kind].colour, "edgecolor": "none", "pad": 1.0}
    up = "top" if kind == "missed" else "bottom"
    ax.text(x, y, name, color=LOOKS[kind].ink, fontsize=9, ha=side, va=up, clip_on=True, bbox=tag)
