"""Laws of counts in sentences."""

from ghm.words import count


def test_one_is_singular_and_every_other_number_plural():
    assert [count(number, "image") for number in (0, 1, 118_287)] == ["0 images", "1 image", "118,287 images"]
    assert [count(number, "box has|boxes have") for number in (1, 3)] == ["1 box has", "3 boxes have"]
