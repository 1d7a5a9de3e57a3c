"""Laws of the intervals, most of them on a figure whose spread is known: the mean of one number an image."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ghm.evaluation import bootstrap
from ghm.evaluation.bootstrap import (
    METRICS,
    RESAMPLES,
    UNCLEAR,
    Difference,
    Error,
    Interval,
    Resampled,
    together,
    weights,
)
from ghm.evaluation.matches import CURVE_IOUS, RECALLS_R, weighted
from tests.evaluation.cases import CLASSES, artificial, pycocotools

TRUTH = 0.4


def values(rng: np.random.Generator, *, images: int, seeds: int, of_run: float, of_both: float = 0.1) -> np.ndarray:
    """A mean over images, of each seed under each weighting; it is TRUTH on average over images and runs.

    Args:
        of_run: spread of how well a training run turns out.
        of_both: spread of what an image is to one run alone; 0.1 is what it is to all.
    """
    value_SI = TRUTH + of_run * rng.normal(size=(seeds, 1)) + 0.1 * rng.normal(size=images)
    value_SI = value_SI + of_both * rng.normal(size=(seeds, images))
    weight_BI = weights(images, 250, seed=int(rng.integers(2**32)))
    return value_SI @ weight_BI.T / images


def interval(value_SB: np.ndarray, images: int) -> Interval:
    """Of a figure that is defined."""
    found = bootstrap.interval(value_SB, images)
    assert found
    return found


def difference(own_SB: np.ndarray, other_SB: np.ndarray, images: int) -> Difference:
    """Of figures that are defined."""
    found = bootstrap.difference(own_SB, other_SB, images)
    assert found
    return found


def width(found: Interval) -> float:
    return found.high - found.low


@pytest.mark.parametrize("images", [1, 300])
def test_weights_are_whole_and_sum_to_the_number_of_images_and_the_first_are_ones(images: int):
    weight_BI = weights(images)
    assert weight_BI.shape == (1 + RESAMPLES, images)
    assert np.issubdtype(weight_BI.dtype, np.integer) and weight_BI.min() >= 0
    assert set(weight_BI.sum(axis=1).tolist()) == {images}
    assert set(weight_BI[0].tolist()) == {1}


@pytest.mark.parametrize("images", [10, 100])
def test_the_interval_of_a_mean_is_that_of_the_textbook(images: int):
    value_I = np.random.default_rng(images).normal(TRUTH, 0.1, images)
    found = interval((weights(images, 20_000) @ value_I / images)[None], images)
    half = stats.t.ppf(0.975, images - 1) * value_I.std() / np.sqrt(images)
    assert found.estimate == pytest.approx(value_I.mean())
    assert found.high - found.estimate == pytest.approx(half, rel=0.03)
    assert found.estimate - found.low == pytest.approx(half, rel=0.03)


@pytest.mark.parametrize(("seeds", "of_run", "of_both"), [(1, 0.0, 0.1), (3, 0.02, 0.1), (5, 0.2, 0.0)])
def test_95_of_100_intervals_hold_the_truth(seeds: int, of_run: float, of_both: float):
    held = []
    for number in range(300):
        rng = np.random.default_rng([number, seeds, 7])
        found = interval(values(rng, images=60, seeds=seeds, of_run=of_run, of_both=of_both), 60)
        held.append(found.low <= TRUTH <= found.high)
    assert 0.90 <= np.mean(held) <= 0.99


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.1])
@pytest.mark.parametrize(("common", "own"), [(0.02, 0.01), (0.0, 0.01), (0.02, 0.0)])
def test_a_variance_is_that_between_seeds_and_that_of_the_images_that_they_share(
    spread: float, common: float, own: float
):
    """Seeds that err on different images differ for that; it is not counted twice."""
    seeds, images = 3, 41
    noise_BN = np.random.default_rng(0).normal(size=(100, 1 + seeds))
    apart_BN = np.linalg.qr(noise_BN - noise_BN.mean(axis=0))[0] * np.sqrt(99)  # spread 1, not correlated
    drawn_SB = TRUTH + common * apart_BN[:, 0] + own * apart_BN[:, 1:].T
    point_S1 = TRUTH + spread * np.array([[-1.0], [0.0], [1.0]])
    half = width(interval(np.concatenate([point_S1, drawn_SB], axis=1), images)) / 2
    variance = common**2 + spread**2 / seeds
    many, few = (stats.t.ppf(0.975, number) * np.sqrt(variance) for number in (images - 1, seeds - 1))
    if spread == 0 or common == 0:
        assert half == pytest.approx(many if spread == 0 else few, abs=1e-7)
    else:
        weight = (spread**2 / seeds / variance) ** 2
        assert half**2 == pytest.approx((1 - weight) * many**2 + weight * few**2)


def test_a_difference_on_the_same_images_is_surer_than_on_others():
    rng = np.random.default_rng(0)
    images = 200
    hard_I, weight_BI = rng.normal(TRUTH, 0.2, images), weights(images)
    first_SB, second_SB = (
        ((hard_I + gain + 0.02 * rng.normal(size=images)) @ weight_BI.T / images)[None] for gain in (0.0, 0.02)
    )
    paired = difference(second_SB, first_SB, images)
    apart = np.hypot(width(interval(first_SB, images)), width(interval(second_SB, images)))
    assert width(paired) < apart / 5
    assert paired.verdict == "better"
    assert paired.estimate < apart / 2  # which would not have told them apart


def test_weightings_that_leave_a_figure_undefined_are_left_out_but_not_the_first():
    rng = np.random.default_rng(2)
    value_SB, other_SB = (values(rng, images=30, seeds=2, of_run=0.01) for _ in range(2))
    kept_B = np.ones(value_SB.shape[1], bool)
    kept_B[[3, 8, 40]] = False
    holed_SB = value_SB.copy()
    holed_SB[0, 3] = holed_SB[1, 8] = holed_SB[:, 40] = -1
    assert interval(holed_SB, 30) == interval(value_SB[:, kept_B], 30)
    expected = difference(value_SB[:, kept_B], other_SB[:, kept_B], 30)
    assert difference(holed_SB, other_SB, 30) == expected
    flipped = difference(other_SB, holed_SB, 30)
    assert (flipped.low, flipped.high) == pytest.approx((-expected.high, -expected.low))
    holed_SB[:, 0] = -1  # the split itself
    assert bootstrap.interval(holed_SB, 30) is bootstrap.difference(other_SB, holed_SB, 30) is None


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), seeds=st.integers(1, 4), images=st.integers(1, 30), level=st.floats(0, 1))
def test_an_interval_holds_its_figure_and_nothing_impossible(seed: int, seeds: int, images: int, level: float):
    rng = np.random.default_rng(seed)
    own_SB, other_SB = (np.clip(level + 0.3 * rng.normal(size=(seeds, 20)), 0, 1) for _ in range(2))
    found, minus = interval(own_SB, images), difference(own_SB, other_SB, images)
    assert 0 <= found.low <= found.estimate <= found.high <= 1
    assert -1 <= minus.low <= minus.estimate <= minus.high <= 1


def made(estimate: float, standard: float, of_seeds: float = 0.0, images: int = 50, seeds: int = 1) -> Difference:
    """A difference with this standard error, judged for itself."""
    error = Error(standard, of_seeds, images, seeds)
    half = error.margin(0.05)
    return together({"": Difference(estimate, estimate - half, estimate + half, error)})[""]


def family(number: int, *, images: int, seeds: int, variants: int, effect: float = 0.0) -> dict[int, Difference]:
    """Differences of variants to a reference on the same images, `effect` on average over images and runs."""
    rng = np.random.default_rng([number, images, seeds])
    weight_BI, of_image_I = weights(images, 200, seed=number), 0.1 * rng.normal(size=images)
    own_VSI = of_image_I + 0.02 * rng.normal(size=(1 + variants, seeds, 1)) * (seeds > 1)
    own_VSI = own_VSI + 0.1 * rng.normal(size=(1 + variants, seeds, images))
    value_VSB = 0.4 + own_VSI @ weight_BI.T / images
    return {one: difference(value_VSB[one] + effect, value_VSB[0], images) for one in range(1, 1 + variants)}


def called(found: dict[int, Difference]) -> bool:
    """Whether anything is better or worse."""
    return any(minus.verdict != UNCLEAR for minus in found.values())


DIFFERENCES = st.builds(
    made,
    estimate=st.floats(-0.2, 0.2),
    standard=st.floats(0, 0.1),
    of_seeds=st.floats(0, 1),
    images=st.integers(1, 60),
    seeds=st.integers(1, 5),
)


@given(minus=DIFFERENCES)
def test_a_single_verdict_needs_an_interval_that_has_a_width_and_leaves_0_out(minus: Difference):
    clear = minus.low < minus.high and not minus.low <= 0 <= minus.high
    assert minus.verdict == (UNCLEAR if not clear else "better" if minus.estimate > 0 else "worse")
    assert together({"alone": minus}) == {"alone": minus}, "one comparison needs no correction"


@given(found=st.lists(DIFFERENCES, min_size=1, max_size=6), other=DIFFERENCES)
def test_a_verdict_among_several_is_never_surer_than_alone_and_its_figures_stay(
    found: list[Difference], other: Difference
):
    for one, (alone, judged) in enumerate(zip(found, together(dict(enumerate(found))).values(), strict=True)):
        assert judged.verdict in {UNCLEAR, alone.verdict}
        assert (judged.estimate, judged.low, judged.high) == (alone.estimate, alone.low, alone.high)
        assert judged.comparisons == len(found)
        among_more = together(dict(enumerate([*found, other])))[one]
        assert among_more.verdict == judged.verdict or UNCLEAR in {among_more.verdict, judged.verdict}
        least = [each.detectable or 0 for each in (alone, judged, among_more)]
        assert least == sorted(least)


@given(st.lists(st.tuples(st.floats(-6, 6), st.integers(2, 60)), min_size=1, max_size=8))
def test_verdicts_are_those_of_holms_adjusted_p(found: list[tuple[float, int]]):
    p = np.array([2 * stats.t.sf(abs(estimate), images - 1) for estimate, images in found])
    order, adjusted, largest = np.argsort(p), np.empty(len(p)), 0.0
    for rank, one in enumerate(order):
        largest = max(largest, (len(p) - rank) * p[one])
        adjusted[one] = largest
    judged = together({one: made(estimate, 1.0, images=images) for one, (estimate, images) in enumerate(found)})
    for one, minus in judged.items():
        if abs(adjusted[one] - 0.05) > 1e-9:
            assert (minus.verdict != UNCLEAR) == (adjusted[one] < 0.05)


@pytest.mark.parametrize(("seeds", "variants"), [(1, 3), (3, 3), (3, 8)])
def test_where_nothing_differs_5_of_100_families_call_something_better_or_worse_and_uncorrected_far_more(
    seeds: int, variants: int
):
    families = [family(number, images=60, seeds=seeds, variants=variants) for number in range(400)]
    assert np.mean([called(found) for found in families]) > 0.09
    assert np.mean([called(together(found)) for found in families]) <= 0.08  # 5 % and 3 errors of 400 draws


@pytest.mark.parametrize(("seeds", "variants"), [(1, 1), (1, 3), (5, 1), (5, 3)])
def test_a_detectable_difference_gets_its_verdict_in_about_80_of_100_cases(seeds: int, variants: int):
    shape = {"images": 60, "seeds": seeds, "variants": variants}
    of_each = [minus.detectable for number in range(150) for minus in together(family(number, **shape)).values()]
    effect = float(np.mean([least for least in of_each if least]))
    found = [together(family(1000 + number, **shape, effect=effect)).values() for number in range(150)]
    assert 0.65 <= np.mean([minus.verdict == "better" for of_one in found for minus in of_one]) <= 0.93


def test_more_images_and_more_seeds_make_the_detectable_difference_smaller_and_more_comparisons_larger():
    def least(**shape: int) -> float:
        found = [together(family(number, **shape)).values() for number in range(60)]
        return float(np.mean([minus.detectable or 0 for of_one in found for minus in of_one]))

    assert least(images=30, seeds=1, variants=2) > 1.5 * least(images=120, seeds=1, variants=2)
    of_images = [least(images=images, seeds=3, variants=2) for images in (30, 120, 480)]
    of_seeds = [least(images=60, seeds=seeds, variants=2) for seeds in (2, 3, 5, 10)]
    assert of_images == sorted(of_images, reverse=True)
    assert of_seeds == sorted(of_seeds, reverse=True)
    assert least(images=60, seeds=3, variants=1) < least(images=60, seeds=3, variants=4)


def test_without_an_error_nothing_is_clear_or_detectable():
    same_SB = np.full((2, 20), 0.5)
    minus = difference(same_SB, same_SB / 2, 10)
    assert (minus.estimate, minus.verdict, minus.detectable) == (0.25, UNCLEAR, None)


def test_the_first_weighting_is_what_pycocotools_says_and_what_is_saved_is_loaded(tmp_path: Path):
    scene = artificial(0)
    judged = scene.judged(tmp_path)
    found = Resampled("a checksum", 9, *weighted(judged.matches, weights(9), judged.classes))
    assert list(found.value_B) == [*METRICS, *(f"AP_{CLASSES[number]}" for number in sorted(CLASSES))]
    assert found.curve_BUR.shape == (1 + RESAMPLES, len(CURVE_IOUS), len(RECALLS_R))
    assert [found.value_B[name][0] for name in METRICS] == pytest.approx(pycocotools(scene).stats[:3], abs=1e-12)
    for number, name in enumerate(("AP50", "AP75")):
        assert found.curve_BUR[0, number].mean() == pytest.approx(found.value_B[name][0])
    found.save(tmp_path / "resampled.npz")
    read = Resampled.load(tmp_path / "resampled.npz")
    assert (read.measured_on, read.images) == ("a checksum", 9)
    assert list(read.value_B) == list(found.value_B)
    for name, value_B in found.value_B.items():
        assert value_B.shape == (1 + RESAMPLES,)
        np.testing.assert_array_equal(read.value_B[name], value_B)
    np.testing.assert_array_equal(read.curve_BUR, found.curve_BUR.astype(np.float32))
