"""Laws of the batches that a detector is given: images of one padded size, all of them, and soon."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from ghm import predict
from ghm.predict import by_size
from ghm.training.samples import Unreadable

UNREADABLE = Unreadable(1, "a.png", "broken")
SIDE = st.integers(1, 100)
IMAGE = st.tuples(SIDE, SIDE)


def samples(sizes: Sequence[tuple[int, int] | None]) -> list[Any]:
    """Images of these heights and widths; None stands for one that cannot be read."""
    return [{"inputs": torch.empty(3, *size, device="meta")} if size else UNREADABLE for size in sizes]


def padded(sample: Any, divisor: int) -> tuple[int, ...]:
    return tuple(side + -side % divisor for side in sample["inputs"].shape[-2:])


@given(st.lists(st.one_of(st.none(), IMAGE), max_size=60), st.integers(1, 5), st.sampled_from([1, 32, 64]))
def test_each_image_comes_once_and_beside_none_of_another_padded_size(
    sizes: list[tuple[int, int] | None], most: int, divisor: int
):
    given, taken = samples(sizes), 0

    def taking() -> Iterator[Any]:
        nonlocal taken
        for sample in given:
            taken += 1
            yield sample

    batches, found = by_size(taking(), most, divisor), 0
    seen = []
    for batch in batches:
        if UNREADABLE in batch:
            assert batch == [UNREADABLE] and given[taken - 1] is UNREADABLE, "at once, for it may end the run"
        else:
            assert len({padded(sample, divisor) for sample in batch}) == 1
        assert taken - found <= predict.WAITING * most, "what is held is bounded"
        assert 1 <= len(batch) <= most
        seen += batch
        found += len(batch)
    assert sorted(map(id, seen)) == sorted(map(id, given))


@given(st.lists(IMAGE, max_size=60), st.integers(1, 5))
def test_images_that_are_sorted_by_size_come_in_their_order_and_in_as_few_batches_as_there_can_be(
    sizes: list[tuple[int, int]], most: int
):
    given = sorted(samples(sizes), key=lambda sample: padded(sample, 32))
    kinds = [padded(sample, 32) for sample in given]
    batches = list(by_size(given, most, 32))
    assert len(batches) == sum(-(-kinds.count(kind) // most) for kind in set(kinds))
    for kind in set(kinds):
        found = [sample for batch in batches for sample in batch if padded(sample, 32) == kind]
        assert [id(sample) for sample in found] == [id(each) for each in given if padded(each, 32) == kind]
