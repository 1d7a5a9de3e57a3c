"""Laws of GHM-C alone; those that it shares with GHM-R are in `test_harmonised.py`. Shapes: N examples, C classes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from ghm.losses import host, slots, vectorised
from tests import reference
from tests.losses.kinds import CLASSIFICATION, assert_same_step, run

ghmc, peer = CLASSIFICATION.ours, CLASSIFICATION.peer


@settings(max_examples=80)
@given(
    rows=st.lists(
        st.tuples(
            st.one_of(st.floats(-70, 70, width=32), st.sampled_from([0.0, 60.0, -60.0])),
            st.floats(-70, 70, width=32),
            st.integers(-1, 2),
            st.sampled_from([0.0, 0.5, 1.0, 3.0]),
        ),
        max_size=20,
    ),
    bins=st.integers(1, 40),
    momentum=st.sampled_from((0, 0.7)),
)
def test_any_population_is_that_of_mmdet(rows: list[tuple], bins: int, momentum: float) -> None:
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    step = (table[:, :2], table[:, 2].long(), table[:, 3])
    assert_same_step(ghmc(bins=bins, momentum=momentum), peer(bins=bins, momentum=momentum), step)


def test_one_bin_without_momentum_is_plain_bce() -> None:
    torch.manual_seed(0)
    pred, target = torch.randn(50, 4) * 3, torch.randint(0, 2, (50, 4)).float()
    loss, gradient = run(ghmc(bins=1), pred, target, torch.ones(50, 4))
    plain = pred.clone().requires_grad_()
    expected = functional.binary_cross_entropy_with_logits(plain, target)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, plain.grad)


def test_every_occupied_region_has_the_same_total_weight() -> None:
    torch.manual_seed(0)
    pred, target = torch.randn(400, 3) * 2 - 2, torch.zeros(400, 3)
    module = ghmc(bins=10, reduction="none")
    plain = functional.binary_cross_entropy_with_logits(pred, target, reduction="none")
    weight = module(pred, target, torch.ones(400, 3)) / plain
    region = (pred.sigmoid() * 10).long()
    share = torch.stack([weight[region == k].sum() for k in region.unique()])
    torch.testing.assert_close(share, torch.full_like(share, 1200 / len(share)), rtol=1e-5, atol=0)


def test_labels_and_one_hot_targets_agree(passes: str) -> None:
    torch.manual_seed(0)
    pred, label = torch.randn(30, 3), torch.randint(-2, 5, (30,))
    weight = torch.rand(30) - 0.2
    one_hot = functional.one_hot(torch.where((label >= 0) & (label < 3), label, 3), 4)[:, :3].float()
    by_label = run(ghmc(), pred, label, weight)
    by_target = run(ghmc(), pred, one_hot, weight[:, None].expand(30, 3))
    torch.testing.assert_close(by_label, by_target, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("background", [-100, -1, 3, 80])
def test_labels_outside_the_classes_are_background(passes: str, background: int) -> None:
    pred = torch.linspace(-3, 3, 12).reshape(4, 3)
    loss, _ = run(ghmc(), pred, torch.full((4,), background), torch.ones(4))
    expected, _ = run(ghmc(), pred, torch.zeros(4, 3), torch.ones(4, 3))
    torch.testing.assert_close(loss, expected)


def test_a_rare_region_among_many_examples_does_not_overflow_in_half_precision() -> None:
    """One hard example among 100,000: its weight, 50,000, times the loss is past float16."""
    pred = torch.full((100_000, 1), -5.0, dtype=torch.float16)
    pred[0] = 5.0
    loss = ghmc(reduction="none")(pred, torch.zeros(100_000, 1), torch.ones(100_000, 1))
    assert loss.isfinite().all()
    assert loss.max() > torch.finfo(torch.float16).max


def test_a_confident_positive_keeps_the_digits_that_a_difference_to_one_loses(passes: str) -> None:
    """sigmoid(12) - 1 is 0.9 % off in float32; the slope of a positive is taken as -sigmoid(-12)."""
    _, gradient = run(ghmc(), torch.tensor([[12.0]]), torch.tensor([0]), torch.ones(1))
    expected = reference.ghm_c(np.array([[12.0]]), np.ones((1, 1)), np.ones((1, 1)), regions=10)
    assert gradient.item() == pytest.approx(expected.gradient.item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bins", [1, 10, 20, 30, 126, 127])
@pytest.mark.parametrize("classes", [1, 3, 80])
@pytest.mark.parametrize("compiled", [False, True])
def test_chunks_of_any_length_make_no_difference(
    monkeypatch: pytest.MonkeyPatch, bins: int, classes: int, dtype: torch.dtype, compiled: bool
) -> None:
    if not compiled:
        monkeypatch.setattr(host, "library", lambda: None)
    torch.manual_seed(0)
    pred, label = (torch.randn(997, classes) * 3 - 2).to(dtype), torch.randint(-1, classes + 1, (997,))
    weight = (torch.rand(997) > 0.1).float()
    expected = run(ghmc(bins=bins), pred, label, weight, sizes=[600, 397])
    for chunk in (1, 7, 1000, 4096):
        monkeypatch.setattr(vectorised, "CHUNK", chunk)
        found = run(ghmc(bins=bins), pred, label, weight, sizes=[600, 397])
        torch.testing.assert_close(found, expected, rtol=1e-5 if dtype == torch.float32 else 2**-7, atol=1e-9)


@pytest.mark.parametrize("most", [5.2, 5.3, 5.4, 20.0])
def test_hard_negatives_keep_their_digits(most: float) -> None:
    """Around the probability up to which 1 - p is taken as it is, which a logit of 5.293 has."""
    pred = torch.linspace(most - 0.01, most, 64).reshape(-1, 1)
    loss, gradient = run(ghmc(bins=1), pred, torch.full((64,), 1), torch.ones(64))
    wide = pred.double().requires_grad_()
    expected = functional.softplus(wide).mean()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), wide.grad, rtol=1e-6, atol=0)


def test_more_regions_than_slots_are_counted_too() -> None:
    torch.manual_seed(0)
    step = (torch.randn(50, 3), torch.randint(0, 4, (50,)), torch.ones(50))
    bins = slots.MOST_BINS + 1
    assert ghmc(bins=bins, reduction="none")(*step).sum() / 150 == pytest.approx(ghmc(bins=bins)(*step).item())


def test_24_million_logits_in_one_bin_are_counted_one_by_one() -> None:
    """More than 2^24, where float32 stops counting, in float16, which ends at 65,504."""
    pred = torch.full((300_000, 80), -3.0, dtype=torch.float16, requires_grad=True)
    module = ghmc(bins=30, momentum=0.5)
    count, _ = vectorised.ghm_c_count(pred.detach(), torch.full((300_000,), 80), torch.ones(300_000), [300_000], 30)
    assert count[0, 1] == 24_000_000
    loss = module(pred, torch.full((300_000,), 80), torch.ones(300_000))
    assert module.acc_sum[1] == 12_000_000
    assert loss.item() == pytest.approx(2 * np.log1p(np.exp(-3)), rel=1e-5)


def test_a_grad_scaler_steps_on_float16_logits() -> None:
    torch.manual_seed(0)
    layer, loss = torch.nn.Linear(8, 3), ghmc(bins=10, momentum=0.5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)  # type: ignore[attr-defined]
    features, label = torch.randn(64, 8), torch.randint(0, 4, (64,))
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        values.append(loss(layer(features).half(), label, torch.ones(64)))
        scaler.scale(values[-1]).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**16
    assert values[-1] < values[2]
