"""Laws of boxes and their labels on a picture."""

import numpy as np
from PIL import ImageColor

from ghm.detect import drawing


def test_a_box_has_the_colour_of_its_class_and_leaves_the_inside_alone():
    image = np.full((60, 100, 3), 90, np.uint8)
    box = np.array([[30.0, 25.0, 70.0, 50.0]])
    for label in range(len(drawing.COLOURS) + 1):
        picture = np.asarray(drawing.draw(image, box, np.array([label]), ["name 0.50"]))
        assert picture.shape == (60, 100, 3)
        assert (picture[27:49, 32:69] == 90).all()
        colour = ImageColor.getrgb(drawing.COLOURS[label % len(drawing.COLOURS)])
        assert tuple(picture[40, 30]) == tuple(picture[40, 70]) == colour


def test_labels_lie_inside_the_picture_and_do_not_hide_each_other():
    image = np.zeros((200, 200, 3), np.uint8)
    boxes = np.array([[0, 0, 60, 60], [1, 1, 62, 61], [150, 150, 250, 250], [-5, 100, 40, 140]], float)
    taken: list[drawing.Rectangle] = []
    for box in boxes:
        place = drawing._place(drawing._inside(box, 200, 200), (50, 13), taken, (200, 200))
        assert 0 <= place[0] <= place[2] < 200 and 0 <= place[1] <= place[3] < 200
        assert all(drawing._shared(place, other) == 0 for other in taken)
        taken.append(place)
    drawn = np.asarray(drawing.draw(image, boxes, np.arange(4), ["one", "two", "three", "four"]))
    assert (drawn != 0).any()


def test_a_box_at_the_edge_of_a_large_picture_shows_its_whole_line():
    image = np.full((1000, 1500, 3), 90, np.uint8)
    box = np.array([[0.0, 300.0, 1500.0, 700.0]])
    picture = np.asarray(drawing.draw(image, box, np.array([0]), ["name 0.50"]))
    colour = np.array(ImageColor.getrgb(drawing.COLOURS[0]))
    left, right, top = (
        int((edge == colour).all(axis=1).sum()) for edge in (picture[600, :99], picture[600, -99:], picture[:500, 900])
    )
    assert left == right == top > 1
