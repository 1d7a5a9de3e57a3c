"""Laws of the measures behind `docs/why.md`, and that the page shows what was measured."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import why, why_arms, why_coco, why_measures, why_page
from ghm.head import Examples
from ghm.losses import GHMC

ROOT = Path(__file__).parents[1]
SIZES = [60, 20, 5]


def examples(seed: int = 0, classes: int = 3) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    rows = sum(SIZES)
    logit_NC = (3 * torch.randn(rows, classes, generator=generator)).requires_grad_()
    label_N = torch.randint(0, classes + 1, (rows,), generator=generator)
    weight_N = (torch.rand(rows, generator=generator) > 0.1).float()
    box_N4 = torch.zeros(rows, 4)
    return Examples(SIZES, logit_NC, label_N, weight_N, box_N4, box_N4, box_N4)


@pytest.mark.parametrize(("number", "size"), [(1, 1e-6), (7, 1.0), (1000, 1e6)])
def test_equal_examples_count_in_full_and_a_dominant_one_alone(number: int, size: float) -> None:
    assert why_measures.effective_number(torch.full((number,), size)) == pytest.approx(number)
    lone_N = torch.tensor([1.0, *[1e-9] * number])
    assert why_measures.effective_number(lone_N) == pytest.approx(1.0, rel=1e-4)
    assert why_measures.effective_number(torch.zeros(number)) == 0.0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e3, width=32), st.integers(0, 2)), min_size=1, max_size=30))
def test_shares_of_a_partition_sum_to_one(entries: list[tuple[float, int]]) -> None:
    size_N, part_N = torch.tensor([size for size, _ in entries]), torch.tensor([part for _, part in entries])
    total = sum(why_measures.share(size_N, part_N == part) for part in range(3))
    assert total == pytest.approx(1.0 if bool(size_N.any()) else 0.0)


@pytest.mark.parametrize(("noise", "expected"), [(0.0, 1.0), (1.0, 0.5), (1e6, 0.0)])
def test_signal_is_the_squared_mean_in_the_mean_square(noise: float, expected: float) -> None:
    generator = torch.Generator().manual_seed(0)
    gradient_TW = 1 + noise * torch.randn(50, 20_000, generator=generator)
    found = why_measures.signal(gradient_TW.sum(0), float(gradient_TW.double().square().sum()), 50)
    assert found == pytest.approx(expected, abs=0.01)


def test_poisson_counts_vary_by_the_root_of_their_mean_and_rare_ones_are_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    mean_LK = torch.tensor([[4.0, 25.0, 400.0, 0.1]])
    count_TLK = torch.poisson(mean_LK.expand(20_000, -1, -1), generator=generator)
    found_LK = why_measures.variation(count_TLK, count_TLK)
    assert found_LK[0, 1:3].tolist() == pytest.approx([1 / 5, 1 / 20], rel=0.03)
    assert bool(found_LK[0, 3].isnan())


@pytest.mark.parametrize("smoothing", [0.0, 7.0])
def test_weights_of_regions_are_those_of_the_loss(smoothing: float) -> None:
    batch = examples()
    regions = why_measures.Regions(batch)
    count_LK = regions.counts()
    weight_LK = why_measures.weights(count_LK, count_LK, smoothing)
    GHMC(bins=why.BINS, smoothing=smoothing)(
        batch.logit_NC, batch.label_N, batch.label_weight_N, sizes=SIZES
    ).sum().backward()
    padded_LE = torch.nn.functional.pad(weight_LK, (0, 1))
    parts = zip(padded_LE, regions.index_NC.split(SIZES), strict=True)
    expected_NC = torch.cat([weight_E[index_NC] for weight_E, index_NC in parts]) * regions.norm_NC
    torch.testing.assert_close(batch.logit_NC.grad.abs(), expected_NC)  # type: ignore[union-attr]
    if not smoothing:  # every population weighs 1
        torch.testing.assert_close((weight_LK * count_LK).sum(1), torch.ones(len(SIZES)))


def test_rare_logits_are_those_that_share_their_region_with_few() -> None:
    regions = why_measures.Regions(examples())
    rare_NC = regions.rare()
    for index_NC, level_NC in zip(regions.index_NC.split(SIZES), rare_NC.split(SIZES), strict=True):
        for index, rare in zip(index_NC.flatten().tolist(), level_NC.flatten().tolist(), strict=True):
            assert rare == (index < why.BINS and int((index_NC == index).sum()) < why_measures.RARE)
    assert regions.counts().sum(1).tolist() == [
        int((index_NC < why.BINS).sum()) for index_NC in regions.index_NC.split(SIZES)
    ]


def test_an_average_of_its_own_is_the_unbiased_one_where_there_is_one_level() -> None:
    own, shared = why_arms.OwnAverage(10, 0.75), GHMC(10, 0.75, bias_correction=True)
    for seed in range(3):
        batch = examples(seed)
        values = [loss(batch.logit_NC, batch.label_N, batch.label_weight_N) for loss in (own, shared)]
        torch.testing.assert_close(*values)


def test_an_average_of_its_own_does_not_depend_on_other_levels() -> None:
    alone, together = why_arms.OwnAverage(10, 0.75), why_arms.OwnAverage(10, 0.75)
    for seed in range(3):
        batch = examples(seed)
        arguments = (batch.logit_NC, batch.label_N, batch.label_weight_N)
        all_L = together(*arguments, sizes=SIZES)
        torch.testing.assert_close(all_L[0], alone(*(each[: SIZES[0]] for each in arguments)))


def test_with_a_mirrored_density_positives_and_negatives_of_a_score_weigh_the_same() -> None:
    logit_N1 = torch.tensor([-1.2, -1.2, *[-3.1] * 9, 0.4])[:, None].requires_grad_()
    label_N = torch.tensor([0, *[1] * 11])
    why_arms.Mirrored(10, 0.75)(logit_N1, label_N, torch.ones(12)).backward()
    positive, negative = logit_N1.grad[:2].abs().flatten().tolist()  # type: ignore[index]
    score = float(torch.tensor(-1.2).sigmoid())
    assert positive / negative == pytest.approx((1 - score) / score, rel=1e-5)


def test_without_rare_regions_their_examples_have_no_gradient_and_others_keep_theirs() -> None:
    batch = examples()
    gradients = []
    for loss in (GHMC(why.BINS), why_arms.WithoutRare(why.BINS)):
        value = loss(batch.logit_NC, batch.label_N, batch.label_weight_N, sizes=SIZES).sum()
        gradients.append(torch.autograd.grad(value, batch.logit_NC, retain_graph=True)[0])
    rare_NC = why_measures.Regions(batch).rare()
    assert bool(rare_NC.any()) and not bool(rare_NC.all())
    torch.testing.assert_close(gradients[1], gradients[0].where(~rare_NC, 0.0))


@pytest.mark.parametrize("extreme", why_coco.EXTREMES)
def test_a_simulated_level_has_its_logits(extreme: str) -> None:
    histogram = {"positive": [5.0, 10.0, 5.0], "negative": [900.0, 90.0, 10.0]}
    mean_LK = why_coco.expected(torch.tensor([1e6, 1e4]), torch.tensor([30.0, 2.0]), histogram, extreme)
    assert mean_LK.sum(1).tolist() == pytest.approx([1e6, 1e4])
    assert bool((mean_LK >= 0).all())


def test_pseudo_counts_take_half_where_they_are_as_many_as_examples_and_nothing_is_rare_where_all_are_many() -> None:
    mean_LK, norm_K = torch.full((2, 5), 1e6).double(), torch.ones(5).double()
    found = why_coco.judged(mean_LK, norm_K, {"as many": 1e6, "few": 1.0})
    assert found["rare"] == [0.0] * 3
    assert found["as many"] == pytest.approx([0.5] * 3, rel=1e-2)
    assert found["few"] == pytest.approx([1.0] * 3, rel=1e-2)
    assert why_coco.judged(mean_LK / 1e6, norm_K, {})["rare"] == pytest.approx([1.0] * 3)


def test_a_score_is_balanced_where_it_is_calibrated_if_all_regions_hold_as_many() -> None:
    score_K = (np.arange(why.BINS) + 0.5) / why.BINS
    assert why_page.balanced(np.full(why.BINS, 7.0)) == pytest.approx(score_K)
    count_K = np.geomspace(1e5, 1, why.BINS)
    assert why_page.balanced(count_K, 1e12) == pytest.approx(score_K)
    assert bool((why_page.balanced(count_K)[: why.BINS // 2] < score_K[: why.BINS // 2]).all())


def test_the_balance_is_where_positives_and_negatives_of_a_score_pull_alike() -> None:
    count_K, score = np.array([500.0, *[10] * 5, 90, *[10] * 16, 30, *[10] * 6]), 6.5 / why.BINS
    positives, negatives = 20, 80  # of this score: their norms are in regions 23 and 6
    others = np.repeat((np.arange(why.BINS) + 0.5) / why.BINS, count_K.astype(int))
    others = np.delete(others, np.flatnonzero(np.isclose(others, score))[:negatives])
    others = np.delete(others, np.flatnonzero(np.isclose(others, 1 - score))[:positives])
    logit_N1 = torch.logit(torch.tensor([*[score] * (positives + negatives), *others]))[:, None].requires_grad_()
    label_N = torch.tensor([*[0] * positives, *[1] * (len(logit_N1) - positives)])
    GHMC(why.BINS)(logit_N1, label_N, torch.ones(len(logit_N1))).backward()
    pull_N = logit_N1.grad.abs().squeeze(1)  # type: ignore[union-attr]
    ratio = float(pull_N[:positives].sum() / pull_N[positives : positives + negatives].sum())
    share = why_page.balanced(count_K)[6]
    assert ratio == pytest.approx((positives / negatives) / (share / (1 - share)), rel=1e-3)


def test_the_page_shows_the_tables_that_the_command_prints() -> None:
    result = json.loads(why.RESULT.read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "why.md").read_text(encoding="utf-8")
    tables = r"<!-- (\w+) -->\n\n(.+?)\n\n<!-- end of \1 -->"
    printed, shown = (dict(re.findall(tables, text, re.DOTALL)) for text in (why_page.tables(result), page))
    assert len(shown.keys() & printed.keys()) >= 6
    assert {name: shown[name] for name in shown if name in printed} == {
        name: printed[name] for name in printed if name in shown
    }
