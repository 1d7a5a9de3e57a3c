"""Boxes on a picture, with labels of which none lies on another."""

import itertools
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from ghm import fonts

# Okabe and Ito's colours for colour-blind readers that black letters can be read on, and white.
COLOURS = ("#56B4E9", "#E69F00", "#F0E442", "#009E73", "#CC79A7", "#D55E00", "#FFFFFF")
LIGHTEST, DARKEST = 97, 50  # CIELAB's L of further colours: black letters have WCAG's contrast of 4.5 from 50 on
TEXT = 0.019  # height of the letters as a share of the side of a square of as many pixels
SMALLER = (1.0, 0.8, 0.65, 0.5)  # that height times so much, where labels have no room
SMALLEST = 10  # pixels: smaller letters cannot be read
LONGEST = 20  # letters of a name
HIDDEN = 0.7  # of boxes, in shares of their areas: a label that would hide more is left out
Dash = tuple[int, int]  # on and off, in widths of the line
Spot = tuple[int, int, int, int]  # left, top, right, bottom: the last two are outside


def draw(
    picture: Image.Image,
    box_N4: np.ndarray,
    names: Sequence[str],
    colours: Sequence[str],
    scores: Sequence[float] | None = None,
    *,
    dashes: Sequence[Dash | None] | None = None,
    size: int | None = None,
) -> None:
    """Draw boxes and their labels, the first on top, into a picture.

    A label stands beside its box, inside where there is no room, and is left out, the line of its box thinner, where it
    would lie on another one or hide other boxes.

    Args:
        picture: in RGB.
        box_N4: corners in pixels: left, top, right, bottom.
        names: of each box, shortened by `short`; with "" the label is the score alone, or there is none.
        colours: of each box, see `palette`.
        scores: of each box.
        dashes: of each box; None: a solid line.
        size: height of the letters in pixels; by default it follows the size of the picture and the room for labels.
    """
    corner_N4 = np.asarray(box_N4, float).reshape(-1, 4).clip(0, np.tile(picture.size, 2) - 1).round().astype(int)
    ends = [""] * len(names) if scores is None else [f" {score:.2f}" for score in scores]
    texts = [(short(name) + end).strip() for name, end in zip(names, ends, strict=True)]
    largest = size or max(SMALLEST, round(TEXT * (picture.width * picture.height) ** 0.5))
    file = fonts.most_of("".join(sorted({*"".join(texts)})))
    font, spots = ImageFont.truetype(file, largest), list[Spot | None]()
    for height in [largest] if size else [max(SMALLEST, round(share * largest)) for share in SMALLER]:
        font = ImageFont.truetype(file, height)
        widths = [min(round(font.getlength(text)) + height // 4, picture.width) if text else 0 for text in texts]
        spots = place(corner_N4, np.array([[width, round(1.3 * height)] for width in widths]), picture.size)
        if all(spot or not text for spot, text in zip(spots, texts, strict=True)):
            break
    canvas, line = ImageDraw.Draw(picture), max(1, largest // 6)
    for n in reversed(range(len(texts))):
        width = max(1, line // 2) if texts[n] and not spots[n] else line
        _outline(canvas, corner_N4[n].tolist(), colours[n], width, dashes[n] if dashes else None)
    for spot, text, colour in zip(spots, texts, colours, strict=True):
        if spot:
            canvas.rectangle((*spot[:2], spot[2] - 1, spot[3] - 1), fill=colour)
            while len(text) > 1 and font.getlength(text) > spot[2] - spot[0]:
                text = short(text, len(text) - 1)
            canvas.text(((spot[0] + spot[2]) / 2, (spot[1] + spot[3]) / 2), text, "black", font, anchor="mm")


def place(corner_N4: np.ndarray, size_N2: np.ndarray, within: tuple[int, int]) -> list[Spot | None]:
    """Where labels of these widths and heights go in a picture of this width and height, first come, first served.

    No two rectangles [left, right) x [top, bottom) meet. Of the free places around and inside its box a label takes the
    one that hides least of the boxes, in shares of their areas. None: it has no size, no place is free, or it would
    hide more than HIDDEN.
    """
    taken, spots = np.empty((0, 4), int), list[Spot | None]()
    area_N = np.maximum(1, np.prod(corner_N4[:, 2:] - corner_N4[:, :2] + 1, axis=1))
    box_N4 = corner_N4 + np.array([0, 0, 1, 1])
    for (left, top, right, bottom), (width, height) in zip(box_N4.tolist(), size_N2.tolist(), strict=True):
        columns = (left, right - width, (left + right - width) // 2)
        places = [
            *itertools.product(columns, (top - height, bottom)),
            *itertools.product((right, left - width), (top, bottom - height)),
            *itertools.product(columns, (top, bottom - height)),
        ]
        corner_P2 = np.clip(places, 0, np.maximum(0, np.array(within) - [width, height]))
        spot_P4 = np.concatenate([corner_P2, corner_P2 + np.array([width, height])], axis=1)
        hidden_P = (_common(spot_P4, box_N4) / area_N).sum(axis=1) + 0.02 * np.arange(len(places))
        hidden_P[_common(spot_P4, taken).any(axis=1)] = np.inf
        best = int(hidden_P.argmin())
        free = hidden_P[best] < HIDDEN and 0 < width <= within[0] and 0 < height <= within[1]
        spots.append(tuple(spot_P4[best].tolist()) if free else None)
        taken = np.concatenate([taken, spot_P4[[best]]]) if free else taken
    return spots


def short(name: str, most: int = LONGEST) -> str:
    """A name of so many letters at most: of a longer one its ends, which often tell names apart."""
    name = " ".join(name.split())
    return name if len(name) <= most else f"{name[: (most + 1) // 2 - 1]}…{name[len(name) - most // 2 :]}"


def palette(number: int) -> list[str]:
    """So many colours for classes, each as far from those before it as can be, in CIELAB."""
    steps = np.linspace(0, 1, 18, dtype=np.float32)
    rgb_M3 = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    chosen = [np.array(ImageColor.getrgb(colour), np.float32) / 255 for colour in COLOURS[:number]]
    lab_M3, lab_C3 = (cv2.cvtColor(colours[None], cv2.COLOR_RGB2LAB)[0] for colours in (rgb_M3, np.stack(chosen)))
    usable_M = (lab_M3[:, 0] >= DARKEST) & (lab_M3[:, 0] <= LIGHTEST)
    rgb_M3, lab_M3 = rgb_M3[usable_M], lab_M3[usable_M]
    apart_M = np.linalg.norm(lab_M3[:, None] - lab_C3, axis=2).min(axis=1)
    while len(chosen) < number:
        farthest = int(apart_M.argmax())
        chosen.append(rgb_M3[farthest])
        apart_M = np.minimum(apart_M, np.linalg.norm(lab_M3 - lab_M3[farthest], axis=1))
    return ["#" + bytes((255 * colour).round().astype(np.uint8)).hex().upper() for colour in chosen]


def _common(one_P4: np.ndarray, other_N4: np.ndarray) -> np.ndarray:
    """The area that each of some rectangles has in common with each of others, [P, N]."""
    low = np.maximum(one_P4[:, None, :2], other_N4[:, :2])
    return (np.minimum(one_P4[:, None, 2:], other_N4[:, 2:]) - low).clip(0).prod(axis=2)


def _outline(canvas: ImageDraw.ImageDraw, corners: Sequence[int], colour: str, line: int, dash: Dash | None) -> None:
    """A box, on a dark halo, which shows on light and dark photographs."""
    left, top, right, bottom = corners
    canvas.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="black", width=line + 2)
    if dash is None:
        canvas.rectangle((left, top, right, bottom), outline=colour, width=line)
        return
    for start in range(0, max(right - left, bottom - top) + 1, line * sum(dash)):
        stop = start + line * dash[0] - 1
        sides = [(left + start, y, min(left + stop, right), y + line - 1) for y in (top, bottom - line + 1)]
        sides += [(x, top + start, x + line - 1, min(top + stop, bottom)) for x in (left, right - line + 1)]
        for side in sides:
            if side[0] <= min(side[2], right) and side[1] <= min(side[3], bottom):
                canvas.rectangle(side, fill=colour)
