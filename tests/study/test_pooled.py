"""Laws of pooling: each data set weighs the same, and what they say together is known better than by one of them."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghm.evaluation import bootstrap
from ghm.evaluation.bootstrap import Difference, Error
from ghm.study.pooled import pool

ESTIMATES = st.floats(-0.2, 0.2)
IMAGES = st.integers(20, 5000)
ERRORS = st.builds(Error, st.floats(1e-4, 0.1), st.floats(0, 1), IMAGES, st.integers(2, 5))
ERRORS |= st.builds(Error, st.floats(1e-4, 0.1), st.just(0.0), IMAGES, st.just(1))


def of(estimate: float, error: Error) -> Difference:
    half = error.margin(1 - bootstrap.LEVEL)
    minus = Difference(estimate, max(-1, estimate - half), min(1, estimate + half), error)
    return bootstrap.together({"": minus})[""]


DIFFERENCES = st.builds(of, ESTIMATES, ERRORS)


@given(DIFFERENCES)
def test_one_data_set_pooled_is_that_data_set(minus: Difference):
    pooled = pool([minus])
    for name in ("estimate", "low", "high", "detectable"):
        assert getattr(pooled, name) == pytest.approx(getattr(minus, name))
    assert pooled.verdict == minus.verdict
    assert (pooled.error.images, pooled.error.seeds) == (minus.error.images, minus.error.seeds)


@given(DIFFERENCES, st.integers(2, 9))
def test_equal_data_sets_pooled_are_each_of_them_with_an_error_smaller_by_the_root_of_their_number(
    minus: Difference, number: int
):
    pooled = pool([minus] * number)
    assert pooled.estimate == pytest.approx(minus.estimate)
    assert pooled.error.standard == pytest.approx(minus.error.standard / number**0.5)
    assert pooled.error.of_seeds == pytest.approx(minus.error.of_seeds)
    assert pooled.error.seeds - 1 == number * (minus.error.seeds - 1)
    assert pooled.error.images - 1 == number * (minus.error.images - 1)


@given(st.lists(DIFFERENCES, min_size=2, max_size=6))
def test_each_data_set_weighs_the_same_however_well_it_is_known_and_in_any_order(differences: list[Difference]):
    pooled = pool(differences)
    assert pooled.estimate == pytest.approx(np.mean([each.estimate for each in differences]))
    variances = [each.error.standard**2 for each in differences]
    assert pooled.error.standard == pytest.approx(sum(variances) ** 0.5 / len(differences))
    again = pool(differences[::-1])
    assert (again.low, again.high) == (pytest.approx(pooled.low), pytest.approx(pooled.high))


def test_a_data_set_known_exactly_adds_nothing_to_the_error():
    known, exact = of(0.1, Error(0.01, 0.5, 100, 3)), of(0.0, Error(0.0, 0.0, 100, 3))
    pooled = pool([known, exact])
    assert pooled.error == replace(known.error, standard=pytest.approx(0.005))
    assert pool([exact, exact]).detectable is None


@pytest.mark.parametrize("spreads", [[1, 1, 1, 1, 1], [5, 1, 1, 1, 1], [3, 2, 1, 1, 0.5]])
def test_intervals_hold_the_truth_about_as_often_as_they_say(spreads: list[float]):
    rng, held, seeds, of_images = np.random.default_rng(0), [], 3, 0.01  # 1,000 trials: to 0.7 %
    for _ in range(1000):
        differences = []
        for spread in spreads:
            value_S = rng.normal(0, of_images) + rng.normal(0, 0.01 * spread, seeds)
            variance = value_S.var(ddof=1) / seeds
            whole = variance + of_images**2
            error = Error(whole**0.5, variance / whole, 500, seeds)
            differences.append(Difference(float(value_S.mean()), -1, 1, error))
        pooled = pool(differences)
        held.append(pooled.low <= 0 <= pooled.high)
    assert 0.93 < np.mean(held) < 0.985


def test_more_data_sets_give_a_shorter_interval():
    minus = of(0.02, Error(0.01, 0.6, 400, 3))
    lengths = [pooled.high - pooled.low for pooled in (pool([minus] * number) for number in (1, 2, 5, 9))]
    assert all(longer > shorter for longer, shorter in pairwise(lengths))
