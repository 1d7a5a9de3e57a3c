"""Pictures of detections next to ground truth: images and boxes are evenly spaced, not hand-picked."""

from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from ghm.params import Params
from ghm.report import names
from ghm.report.inputs import Results
from ghm.report.style import WIDTH, Plot
from ghm.words import count

HEIGHT = 14.0  # inches of the gallery for square images: decides how many images there are
CELLS = 5  # of the gallery side by side at most: more would be too small to see
TITLE, LABEL = 0.25, 13 / 72  # inches
Box = dict[str, Any]


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


def gallery(results: Results, params: Params) -> Plot:
    """Draw ground truth and each variant's detections (first seed), a line or more of cells for each image.

    Raises:
        FileNotFoundError: an image is missing.
    """
    lines = -(-(1 + len(params.variants)) // CELLS)
    columns = -(-(1 + len(params.variants)) // lines)
    width = WIDTH / columns
    images = shown_images(results, int(HEIGHT / (lines * width)))
    ratios = [image["height"] / image["width"] for image in images for _ in range(lines)]
    figure = Figure(figsize=(WIDTH, TITLE * (1 + len(ratios)) + width * sum(ratios)))
    figure.set_layout_engine("constrained", h_pad=0.02, w_pad=0.02, hspace=0, wspace=0)
    axes = figure.subplots(len(ratios), columns, squeeze=False, height_ratios=ratios)
    classes = {category["id"]: names.figure(category["name"]) for category in results.truth["categories"]}
    for ax in axes.ravel():
        ax.set_axis_off()
    for image, cells in zip(images, axes.reshape(len(images), -1), strict=True):
        with Image.open(results.images / image["file_name"]) as picture:
            pixels = picture.convert("RGB")
        for ax, (title, boxes) in zip(cells, marks(results, image["id"]), strict=False):
            ax.imshow(pixels, extent=(0, image["width"], image["height"], 0))
            ax.autoscale(enable=False)
            ax.set_title(names.figure(title), fontsize=9.5, fontweight="normal", pad=3)
            for box, kind in boxes:
                ax.add_patch(Rectangle(box["bbox"][:2], *box["bbox"][2:], **LOOKS[kind].outline()))
                _label(ax, box, kind, classes[box["category_id"]], LABEL * image["width"] / width)
    patches = [Patch(label=look.words, **look.outline()) for kind, look in LOOKS.items() if kind != "truth"]
    figure.legend(handles=patches, loc="outside upper left", ncols=len(patches))
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


def shown_images(results: Results, most: int) -> list[dict[str, Any]]:
    """Evenly spaced images with boxes and without crowds: no detection in a crowd is simply right or wrong."""
    boxes = results.truth["annotations"]
    usable = {box["image_id"] for box in boxes} - {box["image_id"] for box in boxes if box["iscrowd"]}
    images = sorted(
        (image for image in results.truth["images"] if image["id"] in usable), key=lambda image: image["id"]
    )
    return [images[round(place)] for place in np.linspace(0, len(images) - 1, min(most, len(images)))]


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
