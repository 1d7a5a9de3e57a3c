"""Laws of OHEM: cross entropy of the hardest anchors, and no gradient for the others. Shapes: N examples, C classes."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ghm.losses import OHEMLoss


def examples(size: int = 40, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    logit = (3 * torch.randn(size, classes)).requires_grad_()
    return logit, torch.randint(0, classes + 1, (size,)), torch.ones(size)


def cross_entropy(logit: Tensor, label: Tensor) -> Tensor:
    """Of each anchor, summed over classes, [N]."""
    hit = functional.one_hot(label, logit.shape[1] + 1)[:, :-1].float()
    return functional.binary_cross_entropy_with_logits(logit, hit, reduction="none").sum(-1)


@pytest.mark.parametrize("keep", [1, 7, 40, 1000])
def test_the_loss_is_the_mean_cross_entropy_of_the_hardest_anchors(keep: int) -> None:
    logit, label, weight = examples()
    each = cross_entropy(logit, label)
    hardest = each.sort(descending=True).values[:keep]
    torch.testing.assert_close(OHEMLoss(keep)(logit, label, weight, avg_factor=7.0), hardest.mean())


def test_anchors_that_are_not_among_the_hardest_get_no_gradient() -> None:
    logit, label, weight = examples()
    (gradient,) = torch.autograd.grad(OHEMLoss(5)(logit, label, weight), logit)
    moved = gradient.abs().sum(-1) > 0
    assert set(moved.nonzero().flatten().tolist()) == set(cross_entropy(logit, label).topk(5).indices.tolist())


def test_ignored_anchors_neither_count_nor_get_a_gradient() -> None:
    logit, label, weight = examples()
    weight[cross_entropy(logit, label).topk(3).indices] = 0.0
    loss = OHEMLoss(5)(logit, label, weight)
    (gradient,) = torch.autograd.grad(loss, logit)
    assert not gradient[weight == 0].any()
    left = cross_entropy(logit, label)[weight > 0].sort(descending=True).values[:5]
    torch.testing.assert_close(loss, left.mean())


def test_no_valid_anchor_gives_a_loss_of_zero_with_a_gradient() -> None:
    for size in (0, 4):
        logit, label, weight = examples(size)
        loss = OHEMLoss()(logit, label, 0 * weight)
        loss.backward()
        assert loss.item() == 0 and logit.grad is not None and not logit.grad.any()


def test_shapes_that_do_not_fit_are_refused() -> None:
    logit, label, weight = examples()
    with pytest.raises(ValueError, match="must be of shape"):
        OHEMLoss()(logit, label[:-1], weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_a_float32_loss_and_a_gradient_of_their_dtype(dtype: torch.dtype) -> None:
    logit, label, weight = examples()
    half = logit.detach().to(dtype).requires_grad_()
    loss = OHEMLoss(5)(half, label, weight)
    (gradient,) = torch.autograd.grad(loss, half)
    assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(loss, OHEMLoss(5)(half.float(), label, weight))
