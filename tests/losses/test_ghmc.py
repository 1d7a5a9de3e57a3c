"""Laws of GHM-C: it is the paper's (oracle) and mmdet's (peer). Shapes: N examples, C classes, K unit regions."""

import functools
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from ghm.losses import GHMC
from ghm.registry import MODELS
from tests import reference

# float32 on both sides; the orders of summation differ.
assert_close = functools.partial(torch.testing.assert_close, rtol=5e-6, atol=1e-9)
MOMENTA = (0, 0.7)


def ghmc(**arguments: Any) -> Any:
    """The module under test, of type Any so that buffers need no assertions on their type."""
    return GHMC(**arguments)


def peer(**arguments: Any) -> Any:
    return MODELS.build({"type": "mmdet.GHMC", **arguments})


def run(module: Any, pred: Tensor, *rest: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Value and gradient by the logits."""
    pred = pred.clone().requires_grad_()
    loss = module(pred, *rest, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), pred)
    return loss.detach(), gradient


def assert_same_step(ours: Any, theirs: Any, pred: Tensor, target: Tensor, weight: Tensor) -> None:
    for mine, other in zip(run(ours, pred, target, weight), run(theirs, pred, target, weight), strict=True):
        assert_close(mine, other)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, buffer in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], buffer, rtol=1e-6, atol=0)


def logit_near(norm: float, target: int) -> float:
    """The float32 logit whose |sigmoid(x) - target| is as near to `norm` in float32 as a search can get it."""
    sign = 1 if target == 0 else -1
    guess = torch.tensor(sign * np.log(norm / (1 - norm)), dtype=torch.float32)
    candidates = [guess]
    for direction in (-float("inf"), float("inf")):
        x = guess
        for _ in range(200):
            x = torch.nextafter(x, torch.tensor(direction))
            candidates.append(x)
    x_M = torch.stack(candidates)
    return float(x_M[((x_M.sigmoid() - target).abs() - norm).abs().argmin()])


def on_edges(bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """One class; logits at every inner edge, one float32 below and above it, for both targets."""
    logits, targets = [], []
    for k in range(1, bins):
        for target in (0, 1):
            x = torch.tensor(logit_near(k / bins, target))
            for logit in (torch.nextafter(x, x - 1), x, torch.nextafter(x, x + 1)):
                logits.append(float(logit))
                targets.append(float(target))
    pred = torch.tensor(logits, dtype=torch.float32).reshape(-1, 1)
    return pred, torch.tensor(targets).reshape(-1, 1), torch.ones_like(pred)


def steps(seed: int, count: int, *, classes: int = 3) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Populations of many sizes and shapes of distribution, labels from -1 to C, weights not only 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(count):
        size = int(torch.randint(0, 40, (), generator=generator))
        spread = (0.1, 1.0, 5.0, 60.0)[step % 4]
        pred = torch.randn(size, classes, generator=generator) * spread - (step % 3)
        label = torch.randint(-1, classes + 1, (size,), generator=generator)
        choice = torch.randint(0, 5, (size,), generator=generator)
        weight = torch.tensor([0.0, 1.0, 1.0, 0.3, 2.5])[choice]
        yield pred, label, weight * (step % 17 != 5)


ADVERSARIAL = {
    "zero_logits_on_the_middle_edge": (torch.zeros(6, 2), torch.tensor([0, 1, 2, 2, 2, 2]), torch.ones(6)),
    "saturated": (torch.tensor([[60.0, -60.0], [-60.0, 60.0]]), torch.tensor([0, 0]), torch.ones(2)),
    "all_ignored": (torch.linspace(-4, 4, 10).reshape(5, 2), torch.tensor([0, 1, 2, 2, -1]), torch.zeros(5)),
    "all_in_one_region": (torch.full((9, 2), -3.0), torch.full((9,), 2), torch.ones(9)),
    "no_positives": (torch.linspace(-4, 4, 20).reshape(10, 2), torch.full((10,), 2), torch.ones(10)),
    "no_anchors": (torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), torch.zeros(0)),
    "one_anchor": (torch.tensor([[0.3, -2.0]]), torch.tensor([1]), torch.ones(1)),
    "uneven_weights": (
        torch.linspace(-4, 4, 12).reshape(6, 2),
        torch.tensor([0, 1, 2, 2, 2, 0]),
        torch.tensor([0.1, 7.0, -1.0, 0.0, 1e-9, 1e9]),
    ),
    "soft_targets": (torch.linspace(-4, 4, 12).reshape(6, 2), torch.linspace(0, 1, 12).reshape(6, 2), torch.ones(6, 2)),
}


@pytest.mark.parametrize(("bins", "momentum"), [(10, 0), (30, 0.7)])
def test_200_steps_are_those_of_mmdet(bins: int, momentum: float) -> None:
    arguments = {"bins": bins, "momentum": momentum, "loss_weight": 1.5}
    ours, theirs = ghmc(**arguments), peer(**arguments)
    for step in steps(bins, 200):
        assert_same_step(ours, theirs, *step)


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("bins", [2, 7, 10])
@pytest.mark.parametrize("case", ADVERSARIAL)
def test_hard_cases_are_those_of_mmdet(case: str, bins: int, momentum: float) -> None:
    ours, theirs = ghmc(bins=bins, momentum=momentum), peer(bins=bins, momentum=momentum)
    for _ in range(2):
        assert_same_step(ours, theirs, *ADVERSARIAL[case])


@pytest.mark.parametrize("bins", [2, 3, 10, 30])
def test_logits_on_the_edges_fall_where_mmdet_puts_them(bins: int) -> None:
    pred, target, weight = on_edges(bins)
    norms = (pred.sigmoid() - target).abs()
    assert torch.isin(norms, ghmc(bins=bins).edges).sum() >= bins // 2, "the search must hit edges exactly"
    assert_same_step(ghmc(bins=bins, momentum=0.5), peer(bins=bins, momentum=0.5), pred, target, weight)


@settings(deadline=None, max_examples=80)
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
    momentum=st.sampled_from(MOMENTA),
)
def test_any_population_is_that_of_mmdet(rows: list[tuple], bins: int, momentum: float) -> None:
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    step = (table[:, :2], table[:, 2].long(), table[:, 3])
    assert_same_step(ghmc(bins=bins, momentum=momentum), peer(bins=bins, momentum=momentum), *step)


def inside_regions(seed: int, *, size: int, classes: int, bins: int) -> tuple[Tensor, Tensor]:
    """Logits and labels with norms well inside their regions, where float32 and float64 agree; easy ones abound."""
    rng = np.random.default_rng(seed)
    label_N = rng.integers(-1, classes + 1, size)
    target_NC = (label_N[:, None] == np.arange(classes)).astype(np.float64)
    region_NC = np.minimum(rng.geometric(0.3, (size, classes)) - 1, bins - 1)
    norm_NC = (region_NC + rng.uniform(0.05, 0.95, (size, classes))) / bins
    logit_NC = np.log(norm_NC / (1 - norm_NC)) * (1 - 2 * target_NC)
    return torch.tensor(logit_NC, dtype=torch.float32), torch.tensor(label_N)


def assert_is_oracle(module: Any, pred: Tensor, target: Tensor, weight: Tensor, **options: Any) -> list | None:
    """Compare with the oracle, targets and weights dense; returns the oracle's moving average."""
    expected = reference.ghm_c(
        pred.numpy(), target.numpy(), weight.numpy(), regions=module.bins, momentum=module.momentum, **options
    )
    loss, gradient = run(module, pred, target, weight)
    assert float(loss) == pytest.approx(expected.loss, rel=1e-5, abs=1e-12)
    np.testing.assert_allclose(gradient.numpy(), expected.gradient, rtol=1e-4, atol=1e-9)
    if expected.average is not None:
        np.testing.assert_allclose(module.acc_sum.numpy(), expected.average, rtol=1e-6)
    return expected.average


@pytest.mark.parametrize(("bins", "momentum"), [(10, 0), (30, 0.7)])
def test_200_steps_are_those_of_the_paper(bins: int, momentum: float) -> None:
    module, average = ghmc(bins=bins, momentum=momentum), None
    for seed in range(200):
        pred, label = inside_regions(seed, size=seed % 23, classes=3, bins=bins)
        target = (label[:, None] == torch.arange(3)).float()
        weight = torch.tensor([0.0, 1.0, 0.4])[torch.arange(pred.numel()) % 3].reshape(pred.shape)
        average = assert_is_oracle(module, pred, target, weight, average=average)


@pytest.mark.parametrize("bins", [1, 2, 10, 30])
@pytest.mark.parametrize("logit", [0.0, 60.0, -60.0])
def test_half_and_saturated_probabilities_are_those_of_the_paper(logit: float, bins: int) -> None:
    pred = torch.tensor([[logit, -1.9]])
    for target in (torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])):
        assert_is_oracle(ghmc(bins=bins), pred, target, torch.ones(1, 2))


def test_with_every_region_occupied_dividing_by_occupied_regions_is_the_papers_formula() -> None:
    norm = (torch.arange(40) % 10 + 0.5) / 10
    pred = torch.logit(norm).reshape(-1, 1)
    assert_is_oracle(ghmc(bins=10), pred, torch.zeros(40, 1), torch.ones(40, 1), occupied_only=False)


def test_one_bin_without_momentum_is_plain_bce() -> None:
    torch.manual_seed(0)
    pred, target = torch.randn(50, 4) * 3, torch.randint(0, 2, (50, 4)).float()
    loss, gradient = run(ghmc(bins=1), pred, target, torch.ones(50, 4))
    plain = pred.clone().requires_grad_()
    expected = functional.binary_cross_entropy_with_logits(plain, target)
    expected.backward()
    assert_close(loss, expected.detach())
    assert_close(gradient, plain.grad)


def test_every_occupied_region_has_the_same_total_weight() -> None:
    torch.manual_seed(0)
    pred, target = torch.randn(400, 3) * 2 - 2, torch.zeros(400, 3)
    module = ghmc(bins=10, reduction="none")
    plain = functional.binary_cross_entropy_with_logits(pred, target, reduction="none")
    weight = module(pred, target, torch.ones(400, 3)) / plain
    region = (pred.sigmoid() * 10).long()
    share = torch.stack([weight[region == k].sum() for k in region.unique()])
    torch.testing.assert_close(share, torch.full_like(share, 1200 / len(share)), rtol=1e-5, atol=0)


def test_ignored_anchors_get_no_gradient_and_change_nothing() -> None:
    torch.manual_seed(0)
    pred, label = torch.randn(30, 3) * 4, torch.randint(0, 4, (30,))
    ignored = torch.arange(30) % 3 == 0
    ours, alone = ghmc(bins=7, momentum=0.5), ghmc(bins=7, momentum=0.5)
    loss, gradient = run(ours, pred, label, (~ignored).float())
    assert torch.count_nonzero(gradient[ignored]) == 0
    assert torch.count_nonzero(gradient[~ignored]) > 0
    expected, _ = run(alone, pred[~ignored], label[~ignored], torch.ones(20))
    assert_close(loss, expected)
    assert torch.equal(ours.acc_sum, alone.acc_sum)


def test_labels_and_one_hot_targets_agree() -> None:
    torch.manual_seed(0)
    pred, label = torch.randn(30, 3), torch.randint(-2, 5, (30,))
    weight = torch.rand(30) - 0.2
    one_hot = functional.one_hot(torch.where((label >= 0) & (label < 3), label, 3), 4)[:, :3].float()
    by_label = run(ghmc(), pred, label, weight)
    by_target = run(ghmc(), pred, one_hot, weight[:, None].expand(30, 3))
    assert all(torch.equal(a, b) for a, b in zip(by_label, by_target, strict=True))


@pytest.mark.parametrize("background", [-100, -1, 3, 80])
def test_labels_outside_the_classes_are_background(background: int) -> None:
    pred = torch.linspace(-3, 3, 12).reshape(4, 3)
    loss, _ = run(ghmc(), pred, torch.full((4,), background), torch.ones(4))
    expected, _ = run(ghmc(), pred, torch.zeros(4, 3), torch.ones(4, 3))
    assert torch.equal(loss, expected)


@pytest.mark.parametrize("momentum", [0, 0.75])
def test_levels_share_one_buffer_in_the_order_of_the_calls(momentum: float) -> None:
    """As in an FPN: levels of 100, 25, 6, 1 and 0 positions, two steps."""
    ours, theirs = ghmc(bins=10, momentum=momentum), peer(bins=10, momentum=momentum)
    torch.manual_seed(0)
    for size in (100, 25, 6, 1, 0) * 2:
        pred = torch.randn(size, 3) * 2 - 2
        assert_same_step(ours, theirs, pred, torch.randint(0, 4, (size,)), torch.ones(size))
    if momentum:
        reordered = ghmc(bins=10, momentum=momentum)
        torch.manual_seed(0)
        levels = [(torch.randn(n, 3) * 2 - 2, torch.randint(0, 4, (n,)), torch.ones(n)) for n in (100, 25, 6, 1)]
        for level in reversed(levels):
            reordered(*level)
        assert not torch.allclose(reordered.acc_sum, ours.acc_sum), "the order must matter for this test to mean much"


def test_without_examples_the_loss_is_zero_with_a_graph_and_the_average_stays() -> None:
    module = ghmc(momentum=0.75)
    module(torch.randn(9, 2), torch.zeros(9, 2), torch.ones(9, 2))
    before = module.acc_sum.clone()
    for size, weight in ((0, torch.ones(0)), (4, torch.zeros(4))):
        pred = torch.randn(size, 2, requires_grad=True)
        loss = module(pred, torch.zeros(size, dtype=torch.long), weight)
        loss.backward()
        assert loss.item() == 0
        assert pred.grad is not None
        assert torch.equal(pred.grad, torch.zeros(size, 2))
        assert torch.equal(module.acc_sum, before)


def test_a_nan_logit_is_in_no_region_and_shows_in_the_loss() -> None:
    module = ghmc(momentum=0.5)
    pred = torch.tensor([[float("nan")], [0.1]])
    loss = module(pred, torch.zeros(2, 1), torch.ones(2, 1))
    assert loss.isnan()
    assert module.acc_sum.sum() == 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_loss_and_the_buffers_are_float32_whatever_the_logits_are(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    pred, label = (torch.randn(64, 3) * 4).to(dtype), torch.randint(0, 4, (64,))
    module, wide = ghmc(momentum=0.5), ghmc(momentum=0.5)
    loss, gradient = run(module, pred, label, torch.ones(64))
    expected, _ = run(wide, pred.float(), label, torch.ones(64))
    assert torch.equal(loss, expected)
    assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
    assert {buffer.dtype for buffer in module.buffers()} == {torch.float32}
    assert torch.equal(module.acc_sum, wide.acc_sum)


def test_a_rare_region_among_many_examples_does_not_overflow_in_half_precision() -> None:
    """One hard example among 100,000: its weight, 50,000, times the loss is past float16."""
    pred = torch.full((100_000, 1), -5.0, dtype=torch.float16)
    pred[0] = 5.0
    loss = ghmc(reduction="none")(pred, torch.zeros(100_000, 1), torch.ones(100_000, 1))
    assert loss.isfinite().all()
    assert loss.max() > torch.finfo(torch.float16).max


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_reductions_are_those_of_mmdet(reduction: str) -> None:
    for ours, theirs, options in (
        (ghmc(reduction=reduction), peer(reduction=reduction), {}),
        (ghmc(), peer(), {"reduction_override": reduction}),
    ):
        for step in steps(3, 8):
            mine, _ = run(ours, *step, **options)
            other, _ = run(theirs, *step, **options)
            assert_close(mine, other)


def test_sum_adds_up_what_none_returns() -> None:
    step = next(steps(5, 1))
    total = ghmc(reduction="none", loss_weight=3.0)(*step).sum()
    torch.testing.assert_close(ghmc(reduction="sum", loss_weight=3.0)(*step), total)


def test_avg_factor_is_ignored() -> None:
    step = next(steps(7, 1))
    assert torch.equal(ghmc()(*step, avg_factor=17.0), ghmc()(*step))


@pytest.mark.parametrize("momentum", [0, 0.75])
def test_state_dicts_load_strictly_both_ways(momentum: float) -> None:
    ours, theirs = ghmc(bins=12, momentum=momentum), peer(bins=12, momentum=momentum)
    for module, other in ((ours, theirs), (theirs, ours)):
        for step in steps(11, 3):
            module(*step)
        other.load_state_dict(module.state_dict(), strict=True)
        for name, buffer in module.state_dict().items():
            assert torch.equal(buffer, other.state_dict()[name])


def test_the_edges_are_bit_for_bit_those_of_mmdet() -> None:
    for bins in range(1, 130):
        assert torch.equal(ghmc(bins=bins).edges, peer(bins=bins).edges)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bins": 0}, "bins must be a whole number, 1 or greater, got 0"),
        ({"bins": 2.5}, "bins must be a whole number, 1 or greater, got 2.5"),
        ({"momentum": -0.1}, r"momentum must be in \[0, 1\), got -0.1"),
        ({"momentum": 1}, r"momentum must be in \[0, 1\), got 1"),
        ({"momentum": float("nan")}, r"momentum must be in \[0, 1\), got nan"),
        ({"use_sigmoid": False}, "set use_sigmoid=True"),
        ({"reduction": "average"}, "reduction must be one of none, mean, sum, got 'average'"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ghmc(**arguments)


def test_wrong_calls_are_refused() -> None:
    pred, label, weight = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long), torch.ones(4)
    with pytest.raises(ValueError, match="reduction must be one of"):
        ghmc()(pred, label, weight, reduction_override="average")
    with pytest.raises(ValueError, match="must both be of shape"):
        ghmc()(pred, label, torch.ones(4, 3))
    with pytest.raises(ValueError, match="must both be of shape"):
        ghmc()(pred, torch.zeros(4, 1), torch.ones(4, 1))
    with pytest.raises(TypeError, match="avg_facto"):
        ghmc()(pred, label, weight, avg_facto=1.0)


RETINA = {
    "type": "mmdet.RetinaHead",
    "num_classes": 3,
    "in_channels": 8,
    "feat_channels": 8,
    "stacked_convs": 1,
    "anchor_generator": {
        "type": "AnchorGenerator",
        "octave_base_scale": 4,
        "scales_per_octave": 1,
        "ratios": [1.0],
        "strides": [8, 16, 32],
    },
    "train_cfg": {
        "assigner": {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "min_pos_iou": 0},
        "sampler": {"type": "PseudoSampler"},
        "allowed_border": -1,
        "pos_weight": -1,
        "debug": False,
    },
}


def retina_losses(scope: str) -> tuple[dict, dict[str, Tensor]]:
    """Two steps of mmdet's RetinaHead with the losses of a scope: losses of the second, and the head's gradients."""
    from mmengine.structures import InstanceData

    torch.manual_seed(0)
    head = MODELS.build(
        RETINA
        | {
            "loss_cls": {"type": f"{scope}.GHMC", "bins": 30, "momentum": 0.75, "use_sigmoid": True},
            "loss_bbox": {"type": f"{scope}.GHMR", "mu": 0.02, "bins": 10, "momentum": 0.7, "loss_weight": 10.0},
        }
    )
    head.init_weights()
    boxes = torch.tensor([[4.0, 4.0, 36.0, 40.0], [20.0, 10.0, 90.0, 80.0]])
    truth = InstanceData(bboxes=boxes, labels=torch.tensor([0, 2]))
    losses: dict[str, list[Tensor]] = {}
    for _ in range(2):
        features = [torch.randn(1, 8, size, size) for size in (16, 8, 4)]
        losses = head.loss_by_feat(*head(features), [truth], [{"img_shape": (128, 128), "pad_shape": (128, 128)}])
    torch.stack([part for parts in losses.values() for part in parts]).sum().backward()
    return losses, {name: p.grad for name, p in head.named_parameters()} | dict(head.named_buffers())


def test_mmdets_retina_head_trains_alike_with_our_losses_and_with_its_own() -> None:
    (ours, our_state), (theirs, their_state) = retina_losses("ghm"), retina_losses("mmdet")
    assert our_state.keys() == their_state.keys()
    assert {"loss_cls.acc_sum", "loss_bbox.acc_sum", "loss_cls.edges"} <= our_state.keys()
    for key in ("loss_cls", "loss_bbox"):
        assert len(ours[key]) == 3
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-5, atol=1e-7)
    for name, tensor in their_state.items():
        torch.testing.assert_close(our_state[name], tensor, rtol=1e-4, atol=1e-7)


def test_mmdets_registry_finds_the_losses_without_importing_them() -> None:
    code = """
import sys, ghm, mmdet.registry, mmengine.registry
assert "ghm.losses" not in sys.modules
for name in ("GHMC", "GHMR"):
    for registry in (mmdet.registry, mmengine.registry):
        loss = registry.MODELS.build(dict(type="ghm." + name, momentum=0.5))
        assert type(loss).__module__.startswith("ghm.losses"), type(loss)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
