"""Laws of counts in sentences."""

import pytest

from ghm.words import count


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [(0, "image", "0 images"), (118_287, "image", "118,287 images"), (1, "box has|boxes have", "1 box has")],
)
def test_one_is_singular_and_every_other_number_plural(number: int, noun: str, text: str):
    assert count(number, noun) == text
