"""Laws of boxes and their labels on a picture."""

import numpy as np
import pytest
from PIL import ImageColor

from ghm.detect import drawing
from ghm.predict import Detections


def drawn(image: np.ndarray, *boxes: list[float], labels: list[int]) -> np.ndarray:
    found = Detections(np.array(boxes), np.ones(len(boxes)), np.array(labels))
    return np.asarray(drawing.draw(image, found, ["name 0.50"] * len(boxes)))


@pytest.mark.parametrize("label", range(len(drawing.COLOURS) + 1))
def test_a_box_has_the_colour_of_its_class_and_leaves_the_inside_alone(label: int):
    picture = drawn(np.full((60, 100, 3), 90, np.uint8), [30, 25, 70, 50], labels=[label])
    assert picture.shape == (60, 100, 3)
    assert (picture[27:49, 32:69] == 90).all()
    colour = ImageColor.getrgb(drawing.COLOURS[label % len(drawing.COLOURS)])
    assert tuple(picture[40, 30]) == tuple(picture[40, 70]) == colour


@pytest.mark.parametrize("box", [[-5, 100, 40, 140], [150, 150, 250, 250], [0, 0, 200, 200], [190, 2, 199, 2]])
def test_a_box_at_the_edge_shows_its_line_and_its_label(box: list[float]):
    picture = drawn(np.full((200, 200, 3), 90, np.uint8), box, labels=[0])
    colour = np.array(ImageColor.getrgb(drawing.COLOURS[0]))
    inside = np.array(box).clip(0, 199).astype(int)
    assert (picture[inside[3], inside[0] : inside[2] + 1] == colour).all()
    assert (picture == colour).all(axis=2).sum() > 300


def test_the_best_box_lies_on_top():
    picture = drawn(np.zeros((100, 100, 3), np.uint8), [10, 30, 60, 80], [10, 30, 60, 90], labels=[0, 1])
    assert tuple(picture[50, 10]) == ImageColor.getrgb(drawing.COLOURS[0])
