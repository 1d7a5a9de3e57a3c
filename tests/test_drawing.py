"""Laws of boxes and their labels on a picture."""

import itertools
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor

from ghm import drawing

GREY = (90, 90, 90)
BLUE, ORANGE = drawing.COLOURS[:2]


def drawn(*boxes: Sequence[float], colours: list[str], **more: Any) -> np.ndarray:
    """On a grey picture of 200 x 200 pixels."""
    picture = Image.new("RGB", (200, 200), GREY)
    names = more.pop("names", ["name"] * len(boxes))
    drawing.draw(picture, np.array(boxes), names, colours, **more)
    return np.asarray(picture).astype(int)


def has(pixels: np.ndarray, colour: str | tuple[int, ...]) -> Any:
    return (pixels == (ImageColor.getrgb(colour) if isinstance(colour, str) else colour)).all(axis=-1)


@pytest.mark.parametrize("box", [[30, 60, 90, 140], [-5, 100, 40, 140], [150, 150, 250, 250], [0, 0, 200, 200]])
def test_a_box_shows_its_line_and_its_label_also_at_the_edge_and_the_first_lies_on_top(box: list[float]):
    picture = drawn(box, box, colours=[BLUE, ORANGE], names=["name", ""])
    left, top, right, bottom = np.array(box).clip(0, 199).astype(int)
    assert has(picture[bottom, left : right + 1], BLUE).mean() > 0.9
    assert has(picture[top + 25 : bottom - 5, left + 5 : right - 5], GREY).all(), "the inside is left alone"
    assert has(picture, BLUE).sum() > 250
    assert not has(picture[bottom, left : right + 1], ORANGE).any()


SIDE = st.integers(1, 120)
SCENES = st.lists(st.tuples(st.integers(-20, 380), st.integers(-20, 280), SIDE, SIDE, SIDE, SIDE), max_size=60)


@settings(max_examples=150)
@given(SCENES)
def test_no_label_lies_on_another_or_outside_the_picture_and_each_is_at_its_box(rows: list[tuple[int, ...]]):
    within = (400, 300)
    row_N6 = np.array(rows, int).reshape(-1, 6)
    corner_N4 = np.concatenate([row_N6[:, :2], row_N6[:, :2] + row_N6[:, 2:4]], axis=1).clip(0, np.tile(within, 2) - 1)
    spots = drawing.place(corner_N4, row_N6[:, 4:], within)
    for n in range(len(rows)):
        assert drawing.place(corner_N4[[n]], row_N6[[n], 4:], within)[0], "a label alone has room"
    for left, top, right, bottom in filter(None, spots):
        assert 0 <= left < right <= 400 and 0 <= top < bottom <= 300
    for spot, (left, top, right, bottom), (width, height) in zip(spots, corner_N4, row_N6[:, 4:], strict=True):
        if spot:
            assert (spot[2] - spot[0], spot[3] - spot[1]) == (width, height)
            assert spot[0] <= right + 1 and spot[2] >= left and spot[1] <= bottom + 1 and spot[3] >= top
    for one, other in itertools.combinations(filter(None, spots), 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_a_label_without_room_is_left_out_and_the_line_of_its_box_is_thinner():
    box = [90, 90, 110, 110]
    usual, bare = (has(drawn(box, colours=[BLUE], names=[name], size=30), BLUE) for name in ("n", ""))
    around = [[x, y, x + 10, y + 10] for y in range(0, 200, 10) for x in range(0, 200, 10)]
    colours = [ORANGE] * len(around)
    crowded = has(drawn(box, *around, colours=[BLUE, *colours], names=["n"] * (len(around) + 1), size=30), BLUE)
    assert usual.sum() > bare.sum() > 1.5 * crowded.sum() > 0


def test_no_name_and_no_score_is_no_label_and_dashes_leave_gaps():
    picture = Image.new("RGB", (200, 200), GREY)
    drawing.draw(picture, np.array([[50, 50, 150, 150]]), [""], [BLUE], dashes=[(2, 2)])
    pixels = np.asarray(picture)
    outside = np.ones((200, 200), bool)
    outside[49:152, 49:152] = False
    assert has(pixels, GREY)[outside].all()
    assert 0.3 < has(pixels[50, 50:151], BLUE).mean() < 0.7


def test_names_that_differ_at_the_end_alone_differ_when_they_are_short():
    names = [f"a long name that all of these have {number:05}" for number in range(3)]
    assert len({drawing.short(name) for name in names}) == 3
    for most in range(1, 45):
        assert len(drawing.short(names[0], most)) == min(most, len(names[0]))
    assert drawing.short("pawn") == "pawn"


def test_eighty_classes_have_colours_that_can_be_told_apart_and_written_on_in_black():
    colours = drawing.palette(80)
    assert colours[:10] == drawing.palette(10) and colours[:7] == list(drawing.COLOURS)
    rgb_C3 = np.array([ImageColor.getrgb(colour) for colour in colours], np.float32) / 255
    lab_C3 = cv2.cvtColor(rgb_C3[None], cv2.COLOR_RGB2LAB)[0]
    apart_CC = np.linalg.norm(lab_C3[:, None] - lab_C3, axis=2) + 1000 * np.eye(80)
    assert apart_CC.min() > 15, "a difference of 2.3 in CIELAB can just be seen"
    linear_C3 = np.where(rgb_C3 <= 0.04045, rgb_C3 / 12.92, ((rgb_C3 + 0.055) / 1.055) ** 2.4)
    assert (linear_C3 @ [0.2126, 0.7152, 0.0722] / 0.05 + 1).min() > 4.5, "WCAG 2.1, contrast of text"
