"""Detections next to ground truth, on a few images of the reported split that nobody picked."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from ghm.params import Params
from ghm.report import names as written
from ghm.report.inputs import Results, existing
from ghm.report.matching import MIN_IOU, Kind, Mark, choose, compare
from ghm.report.style import DPI, WIDTH, Plot
from ghm.words import count

CELLS = 5  # side by side at most: more would be too small to see
HEIGHT = 14.0  # inches for square images: decides how many images there are

# Inches around the cells.
LEGEND = 0.32
TITLE = 0.25
GAP = 0.09
LABEL = 13 / 72


@dataclass(frozen=True)
class Look:
    """How boxes of one kind are drawn. Colour and dashes both tell the kinds apart."""

    words: str
    colour: str
    dashes: str | tuple[int, tuple[float, ...]]
    ink: str

    def outline(self) -> dict[str, Any]:
        """Return what a patch needs: a line on a dark halo, which shows on light and dark photos."""
        halo = [withStroke(linewidth=3.2, foreground="black")]
        return {"fill": False, "edgecolor": self.colour, "linewidth": 1.8, "linestyle": self.dashes,
                "path_effects": halo}  # fmt: skip


LOOKS: dict[Kind, Look] = {
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
    images = choose(results.truth["images"], results.truth["annotations"], int(HEIGHT / (lines * width)))
    pictures = [_picture(existing(results.images / image["file_name"], root), width) for image in images]
    heights = [width * picture.height / picture.width for picture in pictures]
    figure = Figure(figsize=(WIDTH, LEGEND + lines * sum(TITLE + height for height in heights)))
    names = {category["id"]: written.figure(category["name"]) for category in results.truth["categories"]}
    top = figure.get_figheight() - LEGEND
    for image, picture, height in zip(images, pictures, heights, strict=True):
        for place, (title, content) in enumerate(_cells(results, image["id"])):
            line, column = divmod(place, columns)
            bottom = top - (line + 1) * (TITLE + height)
            total = figure.get_figheight()
            ax = figure.add_axes((column * (width + GAP) / WIDTH, bottom / total, width / WIDTH, height / total))
            ax.set_axis_off()
            ax.imshow(picture, extent=(0, image["width"], image["height"], 0))
            ax.set_title(written.figure(title), fontsize=9.5, fontweight="normal", pad=3)
            for mark in content:
                _draw(ax, mark, names[mark.box["category_id"]], label=LABEL * image["width"] / width)
        top -= lines * (TITLE + height)
    patches = [Patch(label=look.words, **look.outline()) for kind, look in LOOKS.items() if kind != "truth"]
    figure.legend(handles=patches, loc="upper left", ncols=len(patches), borderaxespad=0.2)
    return Plot(
        figure,
        alt=f"{count(len(images), 'image')} with their true boxes and with the boxes that each variant found.",
        caption=f"**Detections** next to ground truth (seed {params.seeds[0]}). Blue matches a true box of its class "
        f"at IoU {MIN_IOU:g}, best score first; red dashes match none; yellow dots are true boxes that nothing "
        f"matched. Losses differ in how high they score, so each variant shows its best detections, as many as the "
        f"split has true boxes: {_from_score(results)}. Nobody picked the images: they are {len(images)} at even "
        f"distances in the list of images with boxes.",
        format="jpg",
    )


def _from_score(results: Results) -> str:
    """Say from which score on each variant's detections are shown."""
    shown = (
        f"{written.code(name)} " + (f"from score {min(box['score'] for box in found):.2f}" if found else "has none")
        for name, found in results.detections.items()
    )
    return ", ".join(shown)


def _cells(results: Results, image: int) -> list[tuple[str, list[Mark]]]:
    """Return the title of each copy of an image and what to draw on it."""
    truth = [box for box in results.truth["annotations"] if box["image_id"] == image]
    compared = [
        (name, compare(truth, [box for box in found if box["image_id"] == image]))
        for name, found in results.detections.items()
    ]
    return [("ground truth", [Mark(box, "truth") for box in truth]), *compared]


def _picture(path: Path, width: float) -> Image.Image:
    """Load an image at the resolution of its cell, `width` inches wide, so that drawing does not blur it."""
    with Image.open(path) as image:
        pixels = round(width * DPI)
        size = (pixels, round(pixels * image.height / image.width))
        return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _draw(ax: Axes, mark: Mark, name: str, label: float) -> None:
    """Draw a box and its class; `label` is the height of the text in pixels of the image."""
    x, y, width, height = mark.box["bbox"]
    look = LOOKS[mark.kind]
    ax.add_patch(Rectangle((x, y), width, height, **look.outline()))
    tag = {"facecolor": look.colour, "edgecolor": "none", "pad": 1.0}
    text = partial(ax.text, s=name, color=look.ink, fontsize=9, clip_on=True, bbox=tag)
    # Labels lie outside the box, where they hide no small object, but inside the image. Boxes of different kinds often
    # cover each other: each kind has its own corner.
    right, bottom = ax.get_xlim()[1], ax.get_ylim()[0]
    if mark.kind == "missed":
        text(min(x + width, right), min(y + height, bottom - label), ha="right", va="top")
    elif mark.kind == "wrong":
        text(min(x + width, right), max(y, label), ha="right", va="bottom")
    else:
        text(max(x, 0), max(y, label), ha="left", va="bottom")
