"""Laws that GHM-C and GHM-R share: they are the paper's (oracle) and mmdet's (peer), in PyTorch and in Triton.

Shapes: N examples, C classes or coordinates, L populations, K unit regions.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.losses.kinds import CLASSIFICATION, KINDS, Kind, assert_is_oracle, assert_same_step, levels, run

CASES = [pytest.param(kind, name, id=f"{kind.name}-{name}") for kind in KINDS for name in kind.adversarial]


@pytest.mark.parametrize(("bins", "momentum"), [(10, 0), (30, 0.7)])
def test_steps_are_those_of_mmdet(kind: Kind, passes: str, bins: int, momentum: float) -> None:
    arguments = {"bins": bins, "momentum": momentum, "loss_weight": 1.5}
    ours, theirs = kind.ours(**arguments), kind.peer(**arguments)
    for step in kind.steps(bins, 200 if passes == "vectorised" else 40):  # the interpreter is slow
        assert_same_step(ours, theirs, step)


@pytest.mark.parametrize("momentum", [0, 0.7])
@pytest.mark.parametrize("bins", [2, 7, 10, 200])
@pytest.mark.parametrize(("kind", "case"), CASES)
def test_hard_cases_are_those_of_mmdet(kind: Kind, case: str, passes: str, bins: int, momentum: float) -> None:
    ours, theirs = kind.ours(bins=bins, momentum=momentum), kind.peer(bins=bins, momentum=momentum)
    for _ in range(2):
        assert_same_step(ours, theirs, kind.adversarial[case])


# 20 is one of the numbers whose regions a product in float32 does not find, 130 needs slots of 16 bits.
@pytest.mark.parametrize("bins", [2, 3, 10, 20, 30, 130])
def test_examples_on_the_edges_fall_where_mmdet_puts_them(kind: Kind, bins: int) -> None:
    assert_same_step(kind.ours(bins=bins, momentum=0.5), kind.peer(bins=bins, momentum=0.5), kind.on_edges(bins))


@pytest.mark.parametrize(("bins", "momentum"), [(10, 0), (30, 0.7)])
def test_200_steps_are_those_of_the_paper(kind: Kind, bins: int, momentum: float) -> None:
    module, average = kind.ours(bins=bins, momentum=momentum), None
    for seed in range(200):
        pred, target = kind.inside_regions(seed, seed % 23, bins)
        weight = torch.tensor([0.0, 1.0, 0.4])[torch.arange(pred.numel()) % 3].reshape(pred.shape)
        average = assert_is_oracle(kind, module, (pred, target, weight), average=average)


def test_labelled_steps_are_those_of_the_paper(passes: str) -> None:
    module, average = CLASSIFICATION.ours(bins=30, momentum=0.7), None
    for seed in range(30):
        pred, target = CLASSIFICATION.inside_regions(seed, seed % 23, 30)
        label = torch.where(target.sum(1) > 0, target.argmax(1), 3)
        step = (pred, label, torch.tensor([0.0, 1.0, 0.4])[torch.arange(len(pred)) % 3])
        average = assert_is_oracle(CLASSIFICATION, module, step, average=average)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.75}, {"momentum": 0.75, "bias_correction": True}])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_one_call_with_sizes_is_a_call_a_level_in_order(kind: Kind, passes: str, options: dict, reduction: str) -> None:
    step, sizes = levels(kind, 3)
    together, apart = (kind.ours(bins=10, reduction=reduction, **options) for _ in range(2))
    loss, gradient = run(together, *step, sizes=sizes)
    one_by_one = [run(apart, *level) for level in zip(*(tensor.split(sizes) for tensor in step), strict=True)]
    losses = [value for value, _ in one_by_one]
    expected = torch.cat(losses) if reduction == "none" else torch.stack(losses)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(gradient, torch.cat([part for _, part in one_by_one]), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(dict(together.named_buffers()), dict(apart.named_buffers()))


def test_sizes_that_do_not_add_up_are_refused(kind: Kind) -> None:
    step = next(kind.steps(4, 1))
    with pytest.raises(ValueError, match=r"sizes must add up to the \d+ examples, got \[1, 2\]"):
        kind.ours()(*step, sizes=[1, 2])


def test_without_examples_the_loss_is_zero_with_a_graph_and_the_average_stays(kind: Kind, passes: str) -> None:
    module = kind.ours(momentum=0.75)
    step = next(kind.steps(4, 1))
    module(*step)
    before = module.acc_sum.clone()
    nothing: Any = tuple(tensor[:0] for tensor in step)
    ignored = (step[0], step[1], torch.zeros_like(step[2]))
    for pred, *rest in (nothing, ignored):
        loss, gradient = run(module, pred, *rest)
        assert loss.item() == 0
        assert torch.equal(gradient, torch.zeros_like(pred))
        assert torch.equal(module.acc_sum, before)


def test_ignored_examples_get_no_gradient_and_change_nothing(kind: Kind, passes: str) -> None:
    pred, target, weight = next(kind.steps(4, 1))
    kept = torch.arange(len(pred)) % 3 > 0
    weight = torch.ones_like(weight)
    ours, alone = kind.ours(bins=7, momentum=0.5), kind.ours(bins=7, momentum=0.5)
    masked = weight * (kept if weight.dim() == 1 else kept[:, None])
    loss, gradient = run(ours, pred, target, masked)
    assert torch.count_nonzero(gradient[~kept]) == 0
    assert torch.count_nonzero(gradient[kept]) > 0
    expected, _ = run(alone, pred[kept], target[kept], weight[kept])
    torch.testing.assert_close(loss, expected, rtol=5e-6, atol=1e-9)
    assert torch.equal(ours.acc_sum, alone.acc_sum)


def test_a_nan_is_in_no_region_and_shows_in_the_loss(kind: Kind, passes: str) -> None:
    pred, target, weight = next(kind.steps(4, 1))
    module, without = kind.ours(momentum=0.5), kind.ours(momentum=0.5)
    without(pred[1:], target[1:], torch.ones_like(weight[1:]))
    pred = pred.clone()
    pred[0] = float("nan")
    assert module(pred, target, torch.ones_like(weight)).isnan()
    assert torch.equal(module.acc_sum, without.acc_sum)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_arithmetic_is_float32_and_the_gradient_has_the_dtype_of_the_prediction(
    kind: Kind, passes: str, dtype: torch.dtype
) -> None:
    pred, target, weight = [*kind.steps(4, 2)][1]
    pred = pred.to(dtype)
    module, wide = kind.ours(momentum=0.5), kind.ours(momentum=0.5)
    loss, gradient = run(module, pred, target, weight)
    expected, wide_gradient = run(wide, pred.float(), target, weight)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    # The interpreter cuts bfloat16 off where a device rounds.
    cut = 2**-7 if passes == "kernels" and dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(gradient, wide_gradient.to(dtype), rtol=cut, atol=0)
    assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
    assert {buffer.dtype for buffer in module.buffers()} == {torch.float32}
    assert torch.equal(module.acc_sum, wide.acc_sum)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_a_model_keeps_its_statistics_in_float32(kind: Kind, dtype: torch.dtype) -> None:
    module = kind.ours(bins=30, momentum=0.5)
    step = next(kind.steps(4, 1))
    module(*step)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module.to(dtype)
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())


def test_a_loss_scale_reaches_the_gradient_before_it_is_rounded(passes: str) -> None:
    """One positive among 65,536: without a scale its neighbours' gradients, 1e-10, are zero in float16."""
    pred = torch.full((512, 128), -9.0, dtype=torch.float16, requires_grad=True)
    label = torch.full((512,), 128)
    label[0] = 5
    loss = CLASSIFICATION.ours()(pred, label, torch.ones(512))
    (plain,) = torch.autograd.grad(loss, pred, retain_graph=True)
    (scaled,) = torch.autograd.grad(loss * 2.0**16, pred)
    assert plain[1, 1] == 0
    assert scaled[1, 1].item() == pytest.approx(2.0**16 * 1.234e-4 / 2 / 65535, rel=0.02)


def test_what_is_made_in_inference_mode_does_not_stop_a_step(kind: Kind) -> None:
    step = next(kind.steps(4, 1))

    def both() -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            value = kind.ours()(*step)
        return value, run(kind.ours(), *step)[0]

    with ThreadPoolExecutor(1) as thread:  # whose memory is its own
        torch.testing.assert_close(*thread.submit(both).result())


def test_strided_predictions_are_taken_as_they_are(kind: Kind, passes: str) -> None:
    pred, *rest = next(kind.steps(4, 1))
    strided = pred.T.contiguous().T
    assert not strided.is_contiguous()
    torch.testing.assert_close(run(kind.ours(), strided, *rest), run(kind.ours(), pred, *rest))


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_reductions_are_those_of_mmdet(kind: Kind, passes: str, reduction: str) -> None:
    for ours, theirs, options in (
        (kind.ours(reduction=reduction), kind.peer(reduction=reduction), {}),
        (kind.ours(), kind.peer(), {"reduction_override": reduction}),
    ):
        for step in kind.steps(3, 8):
            mine, other = run(ours, *step, **options)[0], run(theirs, *step, **options)[0]
            torch.testing.assert_close(mine, other, rtol=5e-6, atol=1e-9)


def test_avg_factor_is_ignored(kind: Kind) -> None:
    step = next(kind.steps(7, 1))
    assert torch.equal(kind.ours()(*step, avg_factor=17.0), kind.ours()(*step))


@pytest.mark.parametrize("momentum", [0, 0.75])
def test_state_dicts_load_strictly_both_ways(kind: Kind, momentum: float) -> None:
    ours, theirs = kind.ours(bins=12, momentum=momentum), kind.peer(bins=12, momentum=momentum)
    for module, other in ((ours, theirs), (theirs, ours)):
        for step in kind.steps(11, 3):
            module(*step)
        other.load_state_dict(module.state_dict(), strict=True)
        for name, buffer in module.state_dict().items():
            assert torch.equal(buffer, other.state_dict()[name])


def test_the_edges_are_bit_for_bit_those_of_mmdet(kind: Kind) -> None:
    for bins in range(1, 130):
        assert torch.equal(kind.ours(bins=bins).edges, kind.peer(bins=bins).edges)


def test_wrong_calls_are_refused(kind: Kind) -> None:
    pred, target, weight = next(kind.steps(4, 1))
    with pytest.raises(ValueError, match="reduction must be one of"):
        kind.ours()(pred, target, weight, reduction_override="average")
    with pytest.raises(ValueError, match="must"):
        kind.ours()(pred, target, weight[:-1])
    with pytest.raises(ValueError, match="must"):
        kind.ours()(pred, target[:, None], weight[:, None])
    with pytest.raises(TypeError, match="avg_facto"):
        kind.ours()(pred, target, weight, avg_facto=1.0)


class Everything(torch.nn.Module):
    """A head of one layer with a loss."""

    def __init__(self, kind: Kind, **options: Any) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(6, 3 if kind is CLASSIFICATION else 4)
        self.loss = kind.ours(momentum=0.5, **options)

    def forward(self, features: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        return self.loss(self.layer(features), target, weight)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, which torch itself still imports
@pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")  # torch of Python 3.13.0
@pytest.mark.parametrize("engine", ["aot_eager", "inductor"])
def test_a_compiled_step_is_an_eager_one_without_a_break_in_the_graph(kind: Kind, engine: str) -> None:
    torch.manual_seed(0)
    eager = Everything(kind)
    target = torch.randint(0, 4, (50,)) if kind is CLASSIFICATION else torch.randn(50, 4)
    inputs = torch.randn(50, 6), target, torch.ones(target.shape)
    compiled = Everything(kind)
    compiled.load_state_dict(eager.state_dict())
    step = torch.compile(compiled, backend=engine, fullgraph=True)
    for _ in range(2):
        ours, theirs = step(*inputs), eager(*inputs)
        torch.testing.assert_close(ours, theirs)
        (ours + theirs).backward()
    torch.testing.assert_close(compiled.layer.weight.grad, eager.layer.weight.grad)
    torch.testing.assert_close(compiled.loss.acc_sum, eager.loss.acc_sum)


def test_autocast_changes_the_layer_and_not_the_loss(kind: Kind, passes: str) -> None:
    torch.manual_seed(0)
    module = Everything(kind)
    target = torch.randint(0, 4, (50,)) if kind is CLASSIFICATION else torch.randn(50, 4)
    features, weight = torch.randn(50, 6), torch.ones(target.shape)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pred = module.layer(features)
        loss = module(features, target, weight)
    assert pred.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, kind.ours(momentum=0.5)(pred, target, weight))
    loss.backward()
    assert module.layer.weight.grad is not None
    assert module.layer.weight.grad.dtype == torch.float32
