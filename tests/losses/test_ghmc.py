"""Laws of GHM-C alone; those that it shares with GHM-R are in `test_harmonised.py`. Shapes: N examples, C classes."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from ghm.losses import vectorised
from tests import reference
from tests.losses.kinds import CLASSIFICATION, run

ghmc = CLASSIFICATION.ours


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


def test_a_confident_positive_keeps_the_digits_that_a_difference_to_one_loses(passes: str) -> None:
    """sigmoid(12) - 1 is 0.9 % off in float32; the slope of a positive is taken as -sigmoid(-12)."""
    _, gradient = run(ghmc(), torch.tensor([[12.0]]), torch.tensor([0]), torch.ones(1))
    expected = reference.ghm_c(np.array([[12.0]]), np.ones((1, 1)), np.ones((1, 1)), regions=10)
    assert gradient.item() == pytest.approx(expected.gradient.item(), rel=1e-5)


@pytest.mark.parametrize("bins", [1, 10, 20, 30, 126, 127])
@pytest.mark.parametrize("classes", [1, 3, 80])
def test_chunks_of_any_length_make_no_difference(monkeypatch: pytest.MonkeyPatch, bins: int, classes: int) -> None:
    """Long and odd chunks, one or two slots at a time, are what one chunk is."""
    torch.manual_seed(0)
    pred, label = torch.randn(997, classes) * 3 - 2, torch.randint(-1, classes + 1, (997,))
    weight = (torch.rand(997) > 0.1).float()
    expected = run(ghmc(bins=bins), pred, label, weight, sizes=[600, 397])
    for chunk in (1, 7, 1000, 4096):
        monkeypatch.setattr(vectorised, "CHUNK", chunk)
        found = run(ghmc(bins=bins), pred, label, weight, sizes=[600, 397])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


def test_24_million_logits_in_one_bin_are_counted_one_by_one() -> None:
    """More than 2^24, where float32 stops counting, in float16, which ends at 65,504."""
    pred = torch.full((300_000, 80), -3.0, dtype=torch.float16, requires_grad=True)
    module = ghmc(bins=30, momentum=0.5)
    count, _ = vectorised.ghm_c_count(pred.detach(), torch.full((300_000,), 80), torch.ones(300_000), [300_000], 30)
    assert count[0, 1] == 24_000_000
    loss = module(pred, torch.full((300_000,), 80), torch.ones(300_000))
    assert module.acc_sum[1] == 12_000_000
    assert loss.item() == pytest.approx(2 * np.log1p(np.exp(-3)), rel=1e-5)


def test_a_loss_scale_reaches_the_gradient_before_it_is_rounded(passes: str) -> None:
    """One positive among 65,536: without a scale its neighbours' gradients, 1e-10, are zero in float16."""
    pred = torch.full((512, 128), -9.0, dtype=torch.float16, requires_grad=True)
    label = torch.full((512,), 128)
    label[0] = 5
    loss = ghmc()(pred, label, torch.ones(512))
    (plain,) = torch.autograd.grad(loss, pred, retain_graph=True)
    (scaled,) = torch.autograd.grad(loss * 2.0**16, pred)
    assert plain[1, 1] == 0
    assert scaled[1, 1].item() == pytest.approx(2.0**16 * 1.234e-4 / 2 / 65535, rel=0.02)
