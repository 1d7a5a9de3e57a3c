"""Boxes that one variant finds and another misses, cut out of their images; nobody picked them."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from ghm.params import Params
from ghm.report import names
from ghm.report.gallery import LOOKS
from ghm.report.inputs import Record, Results, existing
from ghm.report.matching import MIN_IOU, compare
from ghm.report.style import DPI, WIDTH, Plot
from ghm.words import count

CROPS = 8  # side by side
CONTEXT = 2.4  # side of a crop by the longer side of its box
MIN_SIDE = 40  # pixels
TITLE, GAP = 0.3, 0.08  # inches


@dataclass(frozen=True)
class Found:
    """A true box, and the detection of the variant that found it."""

    truth: Record
    detection: Record


def disagreements(results: Results, params: Params, root: Path) -> Plot | None:
    """Draw, for every variant, boxes that it finds and the first one misses, and the other way round.

    None with a single variant, or where all agree.

    Raises:
        InputError: an image is missing.
    """
    first, *others = params.variants
    found = {name: _found(results, name) for name in params.variants}
    rows = [(a, b, _only(found[a], found[b])) for other in others for a, b in ((other, first), (first, other))]
    rows = [row for row in rows if row[2]]
    if not rows:
        return None
    side = (WIDTH + GAP) / CROPS - GAP
    figure = Figure(figsize=(WIDTH, len(rows) * (side + TITLE)))
    height = figure.get_figheight()
    for number, (finder, misser, only) in enumerate(rows):
        top = height - number * (side + TITLE)
        share = f"{len(only):,} of {count(len(results.truth['annotations']), 'box|boxes')}"
        words = f"{names.figure(finder)} finds, {names.figure(misser)} misses: {share}"
        figure.text(0, (top - 0.75 * TITLE) / height, words, fontsize=10)
        chosen = np.unique(np.linspace(0, len(only) - 1, min(CROPS, len(only))).round().astype(int))
        for column, place in enumerate(chosen):
            corner = (column * (side + GAP) / WIDTH, (top - TITLE - side) / height)
            ax = figure.add_axes((*corner, side / WIDTH, side / height))
            _draw(ax, only[place], results, root, side)
    return Plot(
        figure,
        alt="Boxes cut out of their images that one variant finds and the other misses, a row for each pair and "
        "direction.",
        caption=f"**Who finds what** (seed {params.seeds[0]}): true boxes (white) that one variant finds (blue) at IoU "
        f"{MIN_IOU:g} and the other misses, each with its best detections, as many as there are true boxes. Up to "
        f"{CROPS} of each kind, at even distances in the list of boxes.",
        format="jpg",
    )


def _draw(ax: Axes, item: Found, results: Results, root: Path, inches: float) -> None:
    image = next(image for image in results.truth["images"] if image["id"] == item.truth["image_id"])
    classes = {category["id"]: category["name"] for category in results.truth["categories"]}
    left, upper, length = _square(item.truth["bbox"], image["width"], image["height"])
    path = existing(results.images / image["file_name"], root)
    ax.imshow(_crop(path, (left, upper, length), round(inches * DPI)), extent=(0, length, length, 0))
    ax.set_axis_off()
    ax.autoscale(enable=False)
    for box, look in ((item.truth, LOOKS["truth"]), (item.detection, LOOKS["found"])):
        x, y, width, height = box["bbox"]
        ax.add_patch(Rectangle((x - left, y - upper), width, height, **look.outline()))
    tag = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    name = names.figure(classes[item.truth["category_id"]])
    ax.text(0, 0, name, fontsize=9, va="top", bbox=tag, clip_on=True)


def _found(results: Results, variant: str) -> dict[int, Found]:
    """Id of each true box that the variant finds; images with crowds are left out, as in the gallery."""
    truth, detections = defaultdict(list), defaultdict(list)
    crowded = {box["image_id"] for box in results.truth["annotations"] if box.get("iscrowd")}
    for box in results.truth["annotations"]:
        if box["image_id"] not in crowded:
            truth[box["image_id"]].append(box)
    for box in results.detections[variant]:
        detections[box["image_id"]].append(box)
    return {
        mark.truth["id"]: Found(mark.truth, mark.box)
        for image, boxes in truth.items()
        for mark in compare(boxes, detections[image])
        if mark.kind == "found" and mark.truth
    }


def _only(finder: dict[int, Found], misser: dict[int, Found]) -> list[Found]:
    return [finder[box] for box in sorted(finder.keys() - misser.keys())]


def _square(bbox: list[float], width: int, height: int) -> tuple[int, int, int]:
    """Left, top and side of the piece of the image around a box, in pixels, inside the image."""
    x, y, box_width, box_height = bbox
    side = round(min(max(MIN_SIDE, CONTEXT * max(box_width, box_height)), width, height))
    left = min(max(0, round(x + box_width / 2 - side / 2)), width - side)
    upper = min(max(0, round(y + box_height / 2 - side / 2)), height - side)
    return left, upper, side


def _crop(path: Path, place: tuple[int, int, int], pixels: int) -> Image.Image:
    """Cut out a square and scale it to `pixels`."""
    left, upper, side = place
    with Image.open(path) as image:
        piece = image.convert("RGB").crop((left, upper, left + side, upper + side))
    return piece.resize((pixels, pixels), Image.Resampling.LANCZOS)
