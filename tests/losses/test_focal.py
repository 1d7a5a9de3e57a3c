"""Laws of Focal Loss and Smooth L1: they are mmdet's and torchvision's. Shapes: N examples, C classes."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from ghm.losses import FocalLoss, SmoothL1Loss
from ghm.registry import MODELS
from tests.losses.kinds import run


def labelled(seed: int, size: int = 40, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    weight = torch.tensor([0.0, 1.0, 0.3, 2.5])[torch.randint(0, 4, (size,))]
    return torch.randn(size, classes) * (seed + 1), torch.randint(0, classes + 1, (size,)), weight


def peer(kind: str, **arguments: Any) -> Any:
    return MODELS.build({"type": f"mmdet.{kind}", **arguments})


def one_hot(label: Tensor, classes: int) -> Tensor:
    return functional.one_hot(label, classes + 1)[:, :classes].float()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.0])
@pytest.mark.parametrize("size", [0, 1, 40])
def test_focal_loss_is_that_of_mmdet(passes: str, gamma: float, size: int) -> None:
    arguments: dict[str, Any] = {"gamma": gamma, "alpha": 0.3, "loss_weight": 1.7}
    for seed in range(3):
        pred, label, weight = labelled(seed, size)
        for options in ({"avg_factor": 7.0}, {"avg_factor": torch.tensor(7.0)}, {"reduction_override": "sum"}, {}):
            if not size and not options:
                continue  # mmdet's mean of nothing is NaN, ours 0
            theirs = run(peer("FocalLoss", use_sigmoid=True, **arguments), pred, label, weight, **options)
            torch.testing.assert_close(run(FocalLoss(**arguments), pred, label, weight, **options), theirs)


@pytest.mark.parametrize("chunk", [5, 160_000])
def test_focal_loss_is_that_of_torchvision(monkeypatch: pytest.MonkeyPatch, passes: str, chunk: int) -> None:
    monkeypatch.setattr("ghm.losses.vectorised.CHUNK", chunk)
    pred, label, _ = labelled(2)
    plain = pred.clone().requires_grad_()
    expected = sigmoid_focal_loss(plain, one_hot(label, 3), reduction="sum")
    (gradient,) = torch.autograd.grad(expected, plain)
    loss, ours = run(FocalLoss(reduction="sum"), pred, label)
    torch.testing.assert_close((loss, ours), (expected.detach(), gradient))


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
@pytest.mark.parametrize("soft", [False, True])
def test_focal_loss_of_each_logit_is_that_of_torchvision(gamma: float, soft: bool) -> None:
    pred, label, _ = labelled(3)
    target = torch.rand(pred.shape) if soft else one_hot(label, 3)
    plain = pred.clone().requires_grad_()
    expected = sigmoid_focal_loss(plain, target, alpha=0.3, gamma=gamma)
    (gradient,) = torch.autograd.grad(expected.sum(), plain)
    found = run(FocalLoss(gamma=gamma, alpha=0.3, reduction="none"), pred, target)
    torch.testing.assert_close(found, (expected.detach(), gradient))


def test_focal_loss_of_a_confident_positive_keeps_its_digits(passes: str) -> None:
    pred = torch.tensor([[14.0, -3.0]])
    _, gradient = run(FocalLoss(gamma=1.0), pred, torch.tensor([0]))
    wide = pred.double().requires_grad_()
    (expected,) = torch.autograd.grad(sigmoid_focal_loss(wide, torch.eye(2)[:1].double(), gamma=1.0).mean(), wide)
    torch.testing.assert_close(gradient, expected.float(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_labels_one_hot_targets_and_weights_of_each_logit_agree(passes: str, reduction: Any) -> None:
    pred, label, weight = labelled(1)
    loss = FocalLoss(reduction=reduction, loss_weight=2.0)
    by_label = run(loss, pred, label, weight)
    by_target = run(loss, pred, one_hot(label, 3), weight)
    by_logit = run(loss, pred, label, weight[:, None].expand(-1, 3))
    torch.testing.assert_close(by_target, by_label)
    torch.testing.assert_close(by_logit, by_label)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_focal_arithmetic_is_float32_and_the_gradient_has_the_dtype_of_the_logits(dtype: torch.dtype) -> None:
    pred, label, weight = labelled(1)
    loss, gradient = run(FocalLoss(), pred.to(dtype), label, weight)
    expected, wide = run(FocalLoss(), pred.to(dtype).float(), label, weight)
    assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
    torch.testing.assert_close((loss, gradient), (expected, wide.to(dtype)), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"avg_factor": 7.0},
        {"avg_factor": torch.tensor(7.0)},
        {"reduction_override": "sum"},
        {"reduction_override": "none"},
    ],
)
@pytest.mark.parametrize("weighted", [1.0, 0.5, 0.02, None])
def test_smooth_l1_is_that_of_mmdet(options: dict, weighted: float | None) -> None:
    torch.manual_seed(0)
    pred, target = torch.randn(50, 4), torch.randn(50, 4)
    weight = None if weighted is None else (torch.rand(50, 4) < weighted).float() * torch.randn(50, 4)
    arguments: dict[str, Any] = {"beta": 0.11, "loss_weight": 1.5}
    theirs = run(peer("SmoothL1Loss", **arguments), pred, target, weight, **options)
    torch.testing.assert_close(run(SmoothL1Loss(**arguments), pred, target, weight, **options), theirs)


def test_smooth_l1_without_weights_is_zero_with_a_graph() -> None:
    for size in (0, 5):
        loss, gradient = run(SmoothL1Loss(), torch.ones(size, 4), torch.zeros(size, 4), torch.zeros(size, 4))
        assert loss == 0 and torch.equal(gradient, torch.zeros(size, 4))


@pytest.mark.parametrize("few", [True, False])
def test_a_prediction_that_is_not_finite_shows_in_smooth_l1_whatever_its_weight(few: bool) -> None:
    weight = torch.eye(50)[:, :4] if few else torch.ones(50, 4)
    weight[7] = 0
    for value in (float("nan"), float("inf")):
        pred = torch.zeros(50, 4)
        pred[7] = value
        assert SmoothL1Loss()(pred, torch.zeros(50, 4), weight).isnan()


def test_wrong_calls_are_refused() -> None:
    pred, label, weight = labelled(0)
    with pytest.raises(ValueError, match="target must be of shape"):
        FocalLoss()(pred, label[:-1], weight)
    with pytest.raises(ValueError, match="weight must be of shape"):
        FocalLoss()(pred, label, weight[:-1])
    with pytest.raises(ValueError, match="weight must be of shape"):
        SmoothL1Loss()(pred, pred, weight)
    for loss, target in ((FocalLoss(), label), (SmoothL1Loss(), pred)):
        with pytest.raises(ValueError, match="avg_factor must be None with reduction sum, got 3.0"):
            loss(pred, target, avg_factor=3.0, reduction_override="sum")
