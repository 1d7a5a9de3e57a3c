"""Laws of GHM-R: it is the paper's (oracle) and mmdet's (peer). Shapes: N examples, 4 coordinates, K unit regions."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ghm.losses import GHMR
from ghm.registry import MODELS
from tests import reference

# float32 on both sides; the orders of summation differ.
assert_close = functools.partial(torch.testing.assert_close, rtol=5e-6, atol=1e-9)
MOMENTA = (0, 0.7)


def ghmr(**arguments: Any) -> Any:
    """The module under test, of type Any so that buffers need no assertions on their type."""
    return GHMR(**arguments)


def peer(**arguments: Any) -> Any:
    return MODELS.build({"type": "mmdet.GHMR", **arguments})


def run(module: Any, pred: Tensor, *rest: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Value and gradient by the prediction."""
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


def steps(seed: int, count: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Populations of many sizes and spreads; weights not only 0 and 1, none at all now and then."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(count):
        size = int(torch.randint(0, 30, (), generator=generator))
        spread = (1e-3, 0.02, 1.0, 1e4)[step % 4]
        pred = torch.randn(size, 4, generator=generator) * spread
        target = torch.randn(size, 4, generator=generator) * spread
        choice = torch.randint(0, 5, (size, 4), generator=generator)
        weight = torch.tensor([0.0, 1.0, 1.0, 0.3, 2.5])[choice]
        yield pred, target, weight * (step % 17 != 5)


def on_edges(bins: int, mu: float) -> tuple[Tensor, Tensor, Tensor]:
    """Differences at every inner edge and the 20 float32 on either side of it, of both signs."""
    differences = []
    for k in range(1, bins):
        norm = k / bins
        x = torch.tensor(mu * norm / (1 - norm**2) ** 0.5)
        for _ in range(20):
            x = torch.nextafter(x, x - 1)
        for _ in range(41):
            differences += [x, -x]
            x = torch.nextafter(x, x + 1)
    pred = torch.stack(differences).reshape(-1, 2)
    return pred, torch.zeros_like(pred), torch.ones_like(pred)


ADVERSARIAL = {
    "perfect": (torch.ones(3, 4), torch.ones(3, 4), torch.ones(3, 4)),
    "far_off": (torch.full((3, 4), 1e6), torch.full((3, 4), -1e6), torch.ones(3, 4)),
    "no_positives": (torch.linspace(-1, 1, 12).reshape(3, 4), torch.zeros(3, 4), torch.zeros(3, 4)),
    "all_in_one_region": (torch.full((3, 4), 0.01), torch.zeros(3, 4), torch.ones(3, 4)),
    "no_anchors": (torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0, 4)),
    "one_anchor": (torch.tensor([[0.0, 0.01, 0.02, 5.0]]), torch.zeros(1, 4), torch.ones(1, 4)),
    "one_coordinate": (torch.tensor([[0.3]]), torch.zeros(1, 1), torch.ones(1, 1)),
    "weights_add_up_to_less_than_one": (torch.tensor([[0.3, 0.01]]), torch.zeros(1, 2), torch.full((1, 2), 0.01)),
    "uneven_weights": (
        torch.tensor([[0.0, 0.01, 0.02, 5.0]]),
        torch.zeros(1, 4),
        torch.tensor([[0.1, 7.0, -1.0, 1e6]]),
    ),
}


@pytest.mark.parametrize(("bins", "momentum"), [(10, 0), (30, 0.7)])
def test_200_steps_are_those_of_mmdet(bins: int, momentum: float) -> None:
    arguments = {"bins": bins, "momentum": momentum, "mu": 0.03, "loss_weight": 10.0}
    ours, theirs = ghmr(**arguments), peer(**arguments)
    for step in steps(bins, 200):
        assert_same_step(ours, theirs, *step)


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("bins", [2, 7, 10])
@pytest.mark.parametrize("case", ADVERSARIAL)
def test_hard_cases_are_those_of_mmdet(case: str, bins: int, momentum: float) -> None:
    ours, theirs = ghmr(bins=bins, momentum=momentum), peer(bins=bins, momentum=momentum)
    for _ in range(2):
        assert_same_step(ours, theirs, *ADVERSARIAL[case])


@pytest.mark.parametrize("bins", [2, 3, 10, 30])
def test_differences_on_the_edges_fall_where_mmdet_puts_them(bins: int) -> None:
    step = on_edges(bins, 0.02)
    assert_same_step(ghmr(bins=bins, momentum=0.5), peer(bins=bins, momentum=0.5), *step)


@settings(deadline=None, max_examples=80)
@given(
    rows=st.lists(
        st.tuples(
            st.one_of(st.floats(-0.125, 0.125, width=32), st.floats(-1000, 1000, width=32)),
            st.floats(-0.125, 0.125, width=32),
            st.sampled_from([0.0, 0.5, 1.0, 3.0]),
        ),
        max_size=20,
    ),
    bins=st.integers(1, 40),
    momentum=st.sampled_from(MOMENTA),
    mu=st.sampled_from([1e-3, 0.02, 1.0]),
)
def test_any_population_is_that_of_mmdet(rows: list[tuple], bins: int, momentum: float, mu: float) -> None:
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 3, 1)
    arguments = {"bins": bins, "momentum": momentum, "mu": mu}
    assert_same_step(ghmr(**arguments), peer(**arguments), *table.unbind(1))


def inside_regions(seed: int, *, size: int, bins: int, mu: float) -> Tensor:
    """Differences with norms well inside their regions, where float32 and float64 agree."""
    rng = np.random.default_rng(seed)
    region = np.minimum(rng.geometric(0.3, (size, 4)) - 1, bins - 1)
    norm = (region + rng.uniform(0.05, 0.95, (size, 4))) / bins
    difference = mu * norm / np.sqrt(1 - norm**2) * rng.choice([-1, 1], (size, 4))
    return torch.tensor(difference, dtype=torch.float32)


def assert_is_oracle(module: Any, pred: Tensor, target: Tensor, weight: Tensor, **options: Any) -> list | None:
    """Compare with the oracle; returns the oracle's moving average."""
    expected = reference.ghm_r(
        pred.numpy(),
        target.numpy(),
        weight.numpy(),
        mu=module.mu,
        regions=module.bins,
        momentum=module.momentum,
        **options,
    )
    loss, gradient = run(module, pred, target, weight)
    # sqrt(d^2 + mu^2) - mu cancels for small d: what is lost is relative to mu.
    assert float(loss) == pytest.approx(expected.loss, rel=1e-5, abs=1e-6 * module.mu)
    np.testing.assert_allclose(gradient.numpy(), expected.gradient, rtol=1e-5, atol=1e-9)
    if expected.average is not None:
        np.testing.assert_allclose(module.acc_sum.numpy(), expected.average, rtol=1e-6)
    return expected.average


@pytest.mark.parametrize(("bins", "momentum"), [(10, 0), (30, 0.7)])
def test_200_steps_are_those_of_the_paper(bins: int, momentum: float) -> None:
    module, average = ghmr(bins=bins, momentum=momentum), None
    for seed in range(200):
        pred = inside_regions(seed, size=seed % 17, bins=bins, mu=0.02)
        weight = torch.tensor([0.0, 1.0, 0.4])[torch.arange(pred.numel()) % 3].reshape(pred.shape)
        average = assert_is_oracle(module, pred, torch.zeros_like(pred), weight, average=average)


@pytest.mark.parametrize("bins", [1, 2, 10, 30])
@pytest.mark.parametrize("difference", [0.0, 1e4, -1e4])
def test_perfect_and_far_off_boxes_are_those_of_the_paper(difference: float, bins: int) -> None:
    pred = torch.tensor([[difference, 0.005]])
    assert_is_oracle(ghmr(bins=bins), pred, torch.zeros(1, 2), torch.ones(1, 2))


def test_with_every_region_occupied_dividing_by_occupied_regions_is_the_papers_formula() -> None:
    norm = (torch.arange(40) % 10 + 0.5) / 10
    pred = (0.02 * norm / (1 - norm**2).sqrt()).reshape(-1, 4)
    assert_is_oracle(ghmr(bins=10), pred, torch.zeros(10, 4), torch.ones(10, 4), occupied_only=False)


def test_one_bin_without_momentum_is_the_mean_of_authentic_smooth_l1() -> None:
    torch.manual_seed(0)
    pred, target = torch.randn(20, 4), torch.randn(20, 4)
    loss, _ = run(ghmr(bins=1, mu=0.5), pred, target, torch.ones(20, 4))
    assert_close(loss, (((pred - target) ** 2 + 0.25).sqrt() - 0.5).mean())


def test_every_occupied_region_pulls_with_the_same_total_weight() -> None:
    torch.manual_seed(0)
    pred, target = torch.randn(300, 4) * 0.03, torch.zeros(300, 4)
    _, gradient = run(ghmr(bins=5, mu=0.02), pred, target, torch.ones(300, 4))
    norm = (pred / (pred**2 + 0.02**2).sqrt()).abs()
    weight = gradient.abs() / norm
    share = torch.stack([weight[(norm * 5).long() == k].sum() for k in range(5)])
    torch.testing.assert_close(share, torch.full((5,), 1 / 5), rtol=1e-4, atol=0)


def test_ignored_coordinates_get_no_gradient_and_change_nothing() -> None:
    torch.manual_seed(0)
    pred, target = torch.randn(30, 4) * 0.02, torch.zeros(30, 4)
    ignored = torch.arange(30) % 3 == 0
    ours, alone = ghmr(bins=7, momentum=0.5), ghmr(bins=7, momentum=0.5)
    loss, gradient = run(ours, pred, target, (~ignored).float()[:, None].expand(30, 4))
    assert torch.count_nonzero(gradient[ignored]) == 0
    assert torch.count_nonzero(gradient[~ignored]) > 0
    expected, _ = run(alone, pred[~ignored], target[~ignored], torch.ones(20, 4))
    assert_close(loss, expected)
    assert torch.equal(ours.acc_sum, alone.acc_sum)


@pytest.mark.parametrize("scale", [0.25, 3.0])
def test_a_common_factor_on_the_weights_cancels_out(scale: float) -> None:
    torch.manual_seed(0)
    pred, target, weight = torch.randn(20, 4), torch.randn(20, 4), torch.ones(20, 4)
    loss, gradient = run(ghmr(), pred, target, weight)
    scaled_loss, scaled_gradient = run(ghmr(), pred, target, weight * scale)
    assert_close(scaled_loss, loss)
    assert_close(scaled_gradient, gradient)


def test_levels_share_one_buffer_in_the_order_of_the_calls() -> None:
    ours, theirs = ghmr(momentum=0.7), peer(momentum=0.7)
    torch.manual_seed(0)
    for size in (100, 25, 6, 1, 0) * 2:
        assert_same_step(ours, theirs, torch.randn(size, 4) * 0.05, torch.zeros(size, 4), torch.ones(size, 4))


def test_without_examples_the_loss_is_zero_with_a_graph_and_the_average_stays() -> None:
    module = ghmr(momentum=0.75)
    module(torch.randn(9, 4), torch.zeros(9, 4), torch.ones(9, 4))
    before = module.acc_sum.clone()
    for size, weight in ((0, torch.ones(0, 4)), (3, torch.zeros(3, 4))):
        pred = torch.randn(size, 4, requires_grad=True)
        loss = module(pred, torch.zeros(size, 4), weight)
        loss.backward()
        assert loss.item() == 0
        assert pred.grad is not None
        assert torch.equal(pred.grad, torch.zeros(size, 4))
        assert torch.equal(module.acc_sum, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_loss_and_the_buffers_are_float32_whatever_the_prediction_is(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    pred, target, weight = torch.randn(64, 4).to(dtype), torch.randn(64, 4), torch.ones(64, 4)
    module, wide = ghmr(momentum=0.5), ghmr(momentum=0.5)
    loss, gradient = run(module, pred, target, weight)
    expected, _ = run(wide, pred.float(), target, weight)
    assert torch.equal(loss, expected)
    assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
    assert {buffer.dtype for buffer in module.buffers()} == {torch.float32}
    assert torch.equal(module.acc_sum, wide.acc_sum)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_reductions_are_those_of_mmdet(reduction: str) -> None:
    for ours, theirs, options in (
        (ghmr(reduction=reduction), peer(reduction=reduction), {}),
        (ghmr(), peer(), {"reduction_override": reduction}),
    ):
        for step in steps(3, 8):
            mine, _ = run(ours, *step, **options)
            other, _ = run(theirs, *step, **options)
            assert_close(mine, other)


def test_sum_adds_up_what_none_returns() -> None:
    step = next(steps(5, 1))
    total = ghmr(reduction="none", loss_weight=3.0)(*step).sum()
    torch.testing.assert_close(ghmr(reduction="sum", loss_weight=3.0)(*step), total)


def test_avg_factor_is_ignored() -> None:
    step = next(steps(7, 1))
    assert torch.equal(ghmr()(*step, avg_factor=17.0), ghmr()(*step))


@pytest.mark.parametrize("momentum", [0, 0.75])
def test_state_dicts_load_strictly_both_ways(momentum: float) -> None:
    ours, theirs = ghmr(bins=12, momentum=momentum), peer(bins=12, momentum=momentum)
    for module, other in ((ours, theirs), (theirs, ours)):
        for step in steps(11, 3):
            module(*step)
        other.load_state_dict(module.state_dict(), strict=True)
        for name, buffer in module.state_dict().items():
            assert torch.equal(buffer, other.state_dict()[name])


def test_the_edges_are_bit_for_bit_those_of_mmdet() -> None:
    for bins in range(1, 130):
        assert torch.equal(ghmr(bins=bins).edges, peer(bins=bins).edges)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bins": 0}, "bins must be a whole number, 1 or greater, got 0"),
        ({"momentum": 1.2}, r"momentum must be in \[0, 1\), got 1.2"),
        ({"mu": 0}, "mu must be greater than 0, got 0"),
        ({"mu": float("nan")}, "mu must be greater than 0, got nan"),
        ({"reduction": "average"}, "reduction must be one of none, mean, sum, got 'average'"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ghmr(**arguments)


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match="must be of one shape"):
        ghmr()(torch.zeros(4, 4), torch.zeros(4, 1), torch.ones(4, 4))
    with pytest.raises(ValueError, match="must be of one shape"):
        ghmr()(torch.zeros(4, 4), torch.zeros(4, 4), torch.ones(4))
