"""Pictures of detections next to ground truth: images and boxes are evenly spaced, not hand-picked."""

from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from PIL import Image

from ghm import drawing
from ghm.data.images import decode
from ghm.params import Params
from ghm.report import names
from ghm.report.inputs import Results
from ghm.report.style import DPI, WIDTH, Plot
from ghm.words import count

HEIGHT = 14.0  # inches of the gallery for square images: decides how many images there are
CELLS = {4: 5, 10: 4}  # boxes of an image, so many on average -> cells side by side at most
CROWDED = 3  # cells where there are more boxes
TALLEST = 3  # heights of a cell by its width
GAP, TITLE, LETTERS = 6, 42, 19  # pixels of the gallery: between cells, above each, of labels
Box = dict[str, Any]


class Look(NamedTuple):
    """How boxes of one kind are drawn. Colour and dashes both tell the kinds apart."""

    words: str
    colour: str
    dash: drawing.Dash | None


LOOKS = {
    "truth": Look("ground truth", "#FFFFFF", None),
    "found": Look("found", "#56B4E9", None),
    "wrong": Look("false alarm or wrong class", "#FF7F0E", (4, 2)),
    "missed": Look("missed", "#F0E442", (1, 1)),
}


def gallery(results: Results, params: Params) -> Plot:
    """Draw ground truth and each variant's detections (first seed), a line or more of cells for each image.

    Raises:
        FileNotFoundError: an image is missing.
    """
    boxes = len(results.truth["annotations"]) / len({box["image_id"] for box in results.truth["annotations"]})
    most = next((cells for limit, cells in CELLS.items() if boxes <= limit), CROWDED)
    lines = -(-(1 + len(params.variants)) // most)
    columns = -(-(1 + len(params.variants)) // lines)
    page = round(WIDTH * DPI)
    side = (page + GAP) // columns - GAP
    images = shown_images(results, max(2, int(HEIGHT * DPI / (lines * side))))
    scales = [min(side / image["width"], TALLEST * side / image["height"]) for image in images]
    heights = [max(1, round(scale * image["height"])) for scale, image in zip(scales, images, strict=True)]
    whole = TITLE + sum(lines * (TITLE + height) for height in heights)
    figure = Figure(figsize=(WIDTH, whole / DPI), dpi=DPI)
    classes = {category["id"]: names.line(category["name"]) for category in results.truth["categories"]}
    top = TITLE
    for image, height, scale in zip(images, heights, scales, strict=True):
        width = max(1, round(scale * image["width"]))
        decoded = decode((results.images / image["file_name"]).read_bytes())  # turned as its EXIF says
        pixels = Image.fromarray(decoded[..., ::-1].copy()).resize((width, height), Image.Resampling.LANCZOS)
        for place, (title, boxes) in enumerate(marks(results, image["id"])):
            line, column = divmod(place, columns)
            bottom = whole - top - line * (TITLE + height) - TITLE - height
            corners = column * (side + GAP) / page, bottom / whole, width / page, height / whole
            ax = figure.add_axes(corners, frameon=False, xticks=[], yticks=[])
            ax.set_title(names.figure(title), fontsize=9.5, fontweight="normal", pad=3)
            ax.imshow(_drawn(pixels, boxes, classes, scale), aspect="auto", interpolation="none")
        top += lines * (TITLE + height)
    handles = [
        Line2D([], [], color=look.colour, linestyle=(0, look.dash) if look.dash else "-", linewidth=3, label=look.words,
               path_effects=[withStroke(linewidth=5, foreground="black")])
        for kind, look in LOOKS.items() if kind != "truth"
    ]  # fmt: skip
    figure.legend(handles=handles, loc="upper left", ncols=len(handles), borderaxespad=0, handlelength=3)
    from_score = (
        f"{names.code(name)} " + (f"from score {boxes[-1]['score']:.2f}" if boxes else "has none")
        for name, boxes in results.detections.items()
    )
    return Plot(
        figure,
        f"Detections next to ground truth on {count(len(images), 'image')} (seed {params.seeds[0]})",
        "Blue matches a true box of its class at IoU 0.5, best score first; orange dashes match none; yellow dots are "
        "true boxes that nothing matched. Losses differ in how high they score, so each variant shows its best "
        f"detections, as many as the split has true boxes: {', '.join(from_score)}. The images are evenly spaced in "
        "the list of those with boxes, not hand-picked.",
        format="jpg",
    )


def shown_images(results: Results, most: int) -> list[dict[str, Any]]:
    """Evenly spaced images with boxes and without crowds: no detection in a crowd is simply right or wrong."""
    unreadable = {name for metrics in results.metrics.values() for name in metrics["unreadable_images"]}
    boxes = results.truth["annotations"]
    usable = {box["image_id"] for box in boxes} - {box["image_id"] for box in boxes if box["iscrowd"]}
    images = [image for image in results.truth["images"] if image["id"] in usable]
    images = sorted((image for image in images if image["file_name"] not in unreadable), key=lambda image: image["id"])
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


def _drawn(pixels: Image.Image, boxes: list[tuple[Box, str]], classes: dict[int, str], scale: float) -> Image.Image:
    """A copy of an image with boxes on it; of one class alone, they need no names."""
    picture, looks = pixels.copy(), [LOOKS[kind] for _, kind in boxes]
    corner_N4 = np.array([box["bbox"] for box, _ in boxes], float).reshape(-1, 4) * scale
    corner_N4[:, 2:] += corner_N4[:, :2]
    texts = [classes[box["category_id"]] if len(classes) > 1 else "" for box, _ in boxes]
    dashes = [look.dash for look in looks]
    drawing.draw(picture, corner_N4, texts, [look.colour for look in looks], dashes=dashes, size=LETTERS)
    return picture
