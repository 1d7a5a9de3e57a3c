"""Detections drawn on a photograph, at its own resolution."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ghm import fonts
from ghm.predict import Detections

# Okabe and Ito's colours for colour-blind readers that black letters can be read on, and white.
COLOURS = ("#56B4E9", "#E69F00", "#F0E442", "#009E73", "#CC79A7", "#D55E00", "#FFFFFF")
TEXT = 0.022  # height of the letters as a share of the side of a square of as many pixels
SMALLEST = 10  # pixels: smaller letters cannot be read
LONGEST = 65_500  # pixels of a side that Pillow writes as JPEG


def draw(image: np.ndarray, found: Detections, texts: Sequence[str], path: Path) -> None:
    """Draw boxes with their texts, each class in its colour, the best on top, and write a JPEG.

    Args:
        image: uint8 [height, width, 3] in B, G, R. What is too long for a JPEG is made smaller.
        texts: one per box.
    """
    picture = Image.fromarray(np.ascontiguousarray(image[..., ::-1]))
    canvas = ImageDraw.Draw(picture)
    size = max(SMALLEST, round(TEXT * (picture.width * picture.height) ** 0.5))
    line, height = max(1, size // 8), round(1.3 * size)
    corner_N4 = found.box_N4.clip(0, np.tile(picture.size, 2) - 1).round().astype(int).tolist()
    font = ImageFont.truetype(fonts.most_of("".join(texts)), size)
    for corners, label, text in reversed(list(zip(corner_N4, found.label_N, texts, strict=True))):
        colour = COLOURS[label % len(COLOURS)]
        canvas.rectangle(corners, outline=colour, width=line)
        # Above its box, where it hides no small object, if there is room.
        width = round(font.getlength(text)) + line
        left, top = max(0, min(corners[0], picture.width - width)), corners[1] - height
        top = top if top >= 0 else min(corners[1], max(0, picture.height - height))
        canvas.rectangle((left, top, left + width - 1, top + height - 1), fill=colour)
        canvas.text((left + line, top + height / 2), text, "black", font, anchor="lm")
    if max(picture.size) > LONGEST:
        picture.thumbnail((LONGEST, LONGEST))
    picture.save(path, "JPEG", quality=95, subsampling=0)  # so that thin coloured lines stay sharp
