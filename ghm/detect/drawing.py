"""Detections drawn on a photograph, at its own resolution. Shapes: N boxes."""

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from ghm import fonts

# Okabe and Ito's colours for colour-blind readers, white for their black: lines lie on a dark halo. The ninth class
# begins again; the label says which it is.
COLOURS = ("#56B4E9", "#E69F00", "#F0E442", "#009E73", "#CC79A7", "#D55E00", "#FFFFFF", "#0072B2")
TEXT = 0.022  # height of the letters as a share of the image's side, the side of a square of as many pixels
SMALLEST = 10  # pixels: smaller letters cannot be read
LINE = 1 / 8  # width of a line as a share of the letters
QUALITY = 95
LONGEST = 65_500  # pixels of a side that Pillow writes as JPEG

Rectangle = tuple[int, int, int, int]  # left, top, right, bottom in pixels


def draw(image: np.ndarray, box_N4: np.ndarray, label_N: np.ndarray, texts: Sequence[str]) -> Image.Image:
    """Draw boxes with their texts, each class in its colour.

    Args:
        image: uint8 [height, width, 3] in B, G, R.
        box_N4: corners in pixels, best first: these lie on top, and their labels get the best places.
        label_N: numbers of the classes.
        texts: one a box.
    """
    picture = Image.fromarray(np.ascontiguousarray(image[..., ::-1]))
    canvas = ImageDraw.Draw(picture)
    size = max(SMALLEST, round(TEXT * (picture.width * picture.height) ** 0.5))
    line = max(1, round(LINE * size))
    boxes = [_inside(box, picture.width, picture.height) for box in box_N4]
    colours = [COLOURS[label % len(COLOURS)] for label in label_N]
    for box, colour in reversed(list(zip(boxes, colours, strict=True))):
        _outline(canvas, box, colour, line, picture.size)
    taken: list[Rectangle] = []
    tags = []
    for box, colour, text in zip(boxes, colours, texts, strict=True):
        place = _place(box, _extent(text, size), taken, picture.size)
        taken.append(place)
        tags.append((place, colour, text))
    for place, colour, text in reversed(tags):
        canvas.rectangle(place, fill=colour)
        ink = "black" if _luminance(colour) > 0.4 else "white"
        canvas.text(
            (place[0] + _margin(size), (place[1] + place[3] + 1) / 2), text, ink, _font(text, size), anchor="lm"
        )
    return picture


def save(picture: Image.Image, path: Path) -> None:
    """Write a JPEG whose thin coloured lines stay sharp; what is too long for one is made smaller."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if max(picture.size) > LONGEST:
        picture.thumbnail((LONGEST, LONGEST))
    picture.save(path, "JPEG", quality=QUALITY, subsampling=0)


def _inside(box: np.ndarray, width: int, height: int) -> Rectangle:
    left, top, right, bottom = (round(float(value)) for value in box)
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return left, top, max(left, min(right, width - 1)), max(top, min(bottom, height - 1))


def _outline(canvas: ImageDraw.ImageDraw, box: Rectangle, colour: str, line: int, size: tuple[int, int]) -> None:
    """A line around a box on a darker one, which shows on light and dark photographs."""
    left, top, right, bottom = box
    halo = max(1, line // 2)
    for distance, width, ink in ((halo, line + 2 * halo, "black"), (0, line, colour)):
        # Outwards, but for a part of the halo, so that a small object is not hidden.
        grown = distance + line - 1
        start = max(left - grown, 0), max(top - grown, 0)
        end = min(right + grown, size[0] - 1), min(bottom + grown, size[1] - 1)
        canvas.rectangle((start, end), outline=ink, width=width)


def _place(box: Rectangle, extent: tuple[int, int], taken: Iterable[Rectangle], size: tuple[int, int]) -> Rectangle:
    """Where a label hides the least of the labels before it: outside its box at a corner, else inside."""
    (left, top, right, bottom), (width, height) = box, extent
    corners = [
        (left, top - height),
        (left, bottom + 1),
        (right - width + 1, top - height),
        (right - width + 1, bottom + 1),
        (right + 1, top),
        (left - width, top),
        (left, top),
        (left, bottom - height + 1),
    ]
    places = []
    for x, y in corners:
        x0, y0 = max(0, min(x, size[0] - width)), max(0, min(y, size[1] - height))
        place = (x0, y0, x0 + width - 1, y0 + height - 1)
        moved = abs(x - x0) + abs(y - y0)
        places.append((sum(_shared(place, other) for other in taken), moved, place))
    return min(places, key=lambda each: (each[0], each[1] > 0, each[1]))[2]


def _shared(one: Rectangle, other: Rectangle) -> int:
    """Pixels that two rectangles have in common."""
    sides = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) + 1 for i in (0, 1))
    width, height = (max(0, side) for side in sides)
    return width * height


def _extent(text: str, size: int) -> tuple[int, int]:
    return round(_font(text, size).getlength(text)) + 2 * _margin(size), round(1.3 * size)


def _margin(size: int) -> int:
    return max(1, size // 6)


@cache
def _font(text: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(fonts.most_of(text), size)


def _luminance(colour: str) -> float:
    """Relative luminance by Rec. 709, without the curve of sRGB: 0 to 1."""
    red, green, blue = ImageColor.getrgb(colour)[:3]
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255
