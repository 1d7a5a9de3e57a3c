"""Laws of boxes and their labels on a picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor

from ghm.detect import drawing
from ghm.predict import Detections

BLUE, ORANGE = (ImageColor.getrgb(colour) for colour in drawing.COLOURS[:2])


def drawn(path: Path, *boxes: list[float], labels: list[int]) -> np.ndarray:
    """On a grey image of 200 x 200 pixels."""
    found = Detections(np.array(boxes), np.ones(len(boxes)), np.array(labels))
    drawing.draw(np.full((200, 200, 3), 90, np.uint8), found, ["name 0.50"] * len(boxes), path / "picture.jpg")
    with Image.open(path / "picture.jpg") as picture:
        return np.asarray(picture).astype(int)


def has(pixels: np.ndarray, colour: tuple[int, ...]) -> Any:
    """But for what JPEG rounds."""
    return (np.abs(pixels - colour) < 40).all(axis=-1)


@pytest.mark.parametrize("box", [[30, 60, 90, 140], [-5, 100, 40, 140], [150, 150, 250, 250], [0, 0, 200, 200]])
def test_a_box_shows_its_line_and_its_label_also_at_the_edge_and_the_best_lies_on_top(tmp_path: Path, box: list[float]):
    wider = [box[0] - 9, *box[1:]]
    picture = drawn(tmp_path, box, box, wider, labels=[0, 1, len(drawing.COLOURS)])
    left, top, right, bottom = np.array(box).clip(0, 199).astype(int)
    assert has(picture[bottom, left : right + 1], BLUE).mean() > 0.9
    assert (np.abs(picture[top + 25 : bottom - 5, left + 5 : right - 5] - 90) < 20).all(), "the inside is left alone"
    assert has(picture, BLUE).sum() > 300
    assert not has(picture, ORANGE).any()


def test_black_letters_can_be_read_on_every_colour():
    for colour in drawing.COLOURS:
        linear = [(v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4)
                  for v in np.array(ImageColor.getrgb(colour)) / 255]  # fmt: skip
        assert np.dot([0.2126, 0.7152, 0.0722], linear) / 0.05 + 1 > 4.5, "WCAG 2.1, contrast of text"
