"""Laws of random numbers: a state that is kept goes on where it was, and a block leaves the others alone."""

import io
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ghm.training import randomness

WHOLE = st.integers(0, 2**40)


def draw() -> list[float]:
    """One number of each kind. A normal number comes with a second one, which its generator keeps for later."""
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.random(),
        np.random.standard_normal(),
        torch.rand((), dtype=torch.float64).item(),
        torch.randn((), dtype=torch.float64).item(),
    ]


@given(WHOLE, st.integers(0, 5))
def test_a_state_goes_on_with_the_same_numbers_and_a_block_leaves_no_trace(number: int, before: int):
    randomness.seed(number)
    for _ in range(before):
        draw()
    file = io.BytesIO()  # as a checkpoint is written and read
    torch.save(randomness.capture(), file)
    expected = [draw() for _ in range(3)]
    randomness.seed(number + 1)
    draw()
    file.seek(0)
    randomness.restore(torch.load(file, weights_only=True))
    with pytest.raises(KeyError), randomness.undisturbed():
        randomness.seed(number + 1)
        raise KeyError
    assert [draw() for _ in range(3)] == expected


def test_neighbours_do_not_share_numbers():
    """Seed 1 in epoch 0 is not seed 0 in epoch 1, and image 1 not image 0 of the next epoch."""
    numbers = set()
    for seed in range(3):
        for epoch in range(3):
            for index in range(30):
                randomness.seed(seed, epoch, index)
                numbers.add((random.random(), np.random.random(), torch.rand((), dtype=torch.float64).item()))
    for column in zip(*numbers, strict=True):
        assert len(set(column)) == 3 * 3 * 30
