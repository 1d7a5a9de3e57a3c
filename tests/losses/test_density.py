"""Laws of the unit regions. Shapes: K unit regions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ghm.losses import GHMC, GHMR, FocalLoss, density, ops, vectorised
from ghm.registry import MODELS
from tests import reference

NAN, INF = float("nan"), float("inf")
BINS = (1, 2, 3, 7, 10, 30, 101)


def edges(bins: int) -> torch.Tensor:
    return density.region_edges(bins, end=1 + 1e-6)


def loop_index(norm: torch.Tensor, valid: torch.Tensor, edge_E: torch.Tensor) -> list[int]:
    """What mmdet's loop over bins selects, one example at a time."""
    regions = len(edge_E) - 1
    result = []
    for g, ok in zip(norm.flatten(), valid.flatten(), strict=True):
        inside = [k for k in range(regions) if ok and g >= edge_E[k] and g < edge_E[k + 1]]
        assert len(inside) <= 1
        result.append(inside[0] if inside else regions)
    return result


def test_edges_are_the_same_where_a_device_divides_by_multiplying(monkeypatch: pytest.MonkeyPatch) -> None:
    for bins in [*range(1, 300), 1000, 4095, 2**15 - 2]:
        expected = (torch.arange(bins + 1).float() / bins)[:-1]
        assert torch.equal(edges(bins)[:-1], expected)
        # CUDA's way to divide by a number.
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "__truediv__", lambda tensor, number: tensor * (1.0 / number))
            assert torch.equal(edges(bins)[:-1], expected), bins


@pytest.mark.parametrize("bins", BINS)
def test_a_region_holds_its_lower_edge_and_not_its_upper_one(bins: int) -> None:
    edge_E = edges(bins)
    below_E = torch.nextafter(edge_E, torch.tensor(-INF))
    above_E = torch.nextafter(edge_E, torch.tensor(INF))
    valid_E = torch.ones(bins + 1, dtype=torch.bool)
    here = torch.arange(bins + 1)
    assert torch.equal(density.region_index(edge_E, valid_E, edge_E=edge_E), here)
    assert torch.equal(density.region_index(above_E, valid_E, edge_E=edge_E), here)
    assert torch.equal(density.region_index(below_E[1:], valid_E[1:], edge_E=edge_E), here[1:] - 1)


def test_a_norm_that_is_nan_or_past_the_end_or_ignored_is_in_no_region() -> None:
    norm = torch.tensor([NAN, INF, 1.1, 0.5, 0.5])
    valid = torch.tensor([True, True, True, False, True])
    index = density.region_index(norm, valid, edge_E=edges(10))
    assert index.tolist() == [10, 10, 10, 10, 5]
    assert density.region_counts(index, bins=10).sum() == 1


@settings(max_examples=60)
@given(
    norm=st.lists(
        st.one_of(
            st.floats(0, 1.25, width=32),
            st.sampled_from([k / 10 for k in range(11)] + [k / 30 for k in range(31)]),
            st.just(NAN),
        ),
        max_size=24,
    ),
    bins=st.sampled_from(BINS),
    data=st.data(),
)
def test_regions_and_counts_are_those_of_the_loop_over_bins(norm: list[float], bins: int, data: st.DataObject) -> None:
    valid = data.draw(st.lists(st.booleans(), min_size=len(norm), max_size=len(norm)))
    norm_N, valid_N = torch.tensor(norm, dtype=torch.float32), torch.tensor(valid, dtype=torch.bool)
    expected = loop_index(norm_N, valid_N, edges(bins))
    index_N = density.region_index(norm_N, valid_N, edge_E=edges(bins))
    assert index_N.tolist() == expected
    assert density.region_counts(index_N, bins=bins).tolist() == [expected.count(k) for k in range(bins)]


def test_strided_norms_are_counted_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    norm = torch.rand(6, 4).T
    index = density.region_index(norm, torch.ones(4, 6, dtype=torch.bool), edge_E=edges(5))
    assert index.flatten().tolist() == loop_index(norm, torch.ones(4, 6), edges(5))
    assert not recwarn.list


@pytest.mark.parametrize("regions", [1, 4, 10])
def test_counts_times_regions_are_the_exact_density_at_the_centre_of_a_region(regions: int) -> None:
    torch.manual_seed(1)
    norm = torch.rand(300, dtype=torch.float32)
    index = density.region_index(norm, torch.ones(300, dtype=torch.bool), edge_E=edges(regions))
    count_K = density.region_counts(index, bins=regions)
    for k in range(regions):
        exact = reference.exact_density(norm.double().tolist(), (k + 0.5) / regions, epsilon=1 / regions)
        assert float(count_K[k]) * regions == pytest.approx(exact, rel=1e-12)


def test_the_moving_average_moves_occupied_regions_only_by_each_population_in_turn() -> None:
    average_K = torch.tensor([4.0, 4.0, 0.0])
    moved = density.moving_averages(average_K, torch.tensor([[0, 8, 8], [4, 0, 8]]), momentum=0.75)
    assert [moved_K.tolist() for moved_K in moved] == [[4.0, 5.0, 2.0], [4.0, 5.0, 3.5]]
    assert average_K.tolist() == [4.0, 4.0, 0.0]


@settings(max_examples=60)
@given(momentum=st.floats(0.01, 0.99), data=st.data())
def test_the_moving_average_is_rounded_after_each_operation(momentum: float, data: st.DataObject) -> None:
    count = data.draw(st.lists(st.lists(st.integers(0, 10**8), min_size=9, max_size=9), min_size=1, max_size=5))
    average_K = torch.tensor(data.draw(st.lists(st.floats(0, 2**30, width=32), min_size=9, max_size=9)))
    moved = density.moving_averages(average_K, torch.tensor(count), momentum=momentum)
    for count_K, moved_K in zip(map(torch.tensor, count), moved, strict=True):
        average_K = torch.where(count_K > 0, momentum * average_K + (1 - momentum) * count_K, average_K)
        assert torch.equal(moved_K, average_K)


@settings(max_examples=60)
@given(count=st.lists(st.integers(0, 10**7), min_size=1, max_size=12), total=st.integers(1, 10**7))
def test_occupied_regions_share_the_total_equally(count: list[int], total: int) -> None:
    count_K = torch.tensor(count)
    weight_K = density.region_weights(count_K, count_K, torch.tensor(total))
    share_K = weight_K * count_K
    occupied = int((count_K > 0).sum())
    expected_K = torch.where(count_K > 0, total / max(occupied, 1), 0.0)
    torch.testing.assert_close(share_K, expected_K, rtol=1e-6, atol=0)


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait for the device, and counts the operators that ran."""

    waits = ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "equal", "_unique2", "unique_dim")

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.waits:
            raise RuntimeError(f"waits for the device: {name}")
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        if any(i is not None and i.dtype == torch.bool for i in indices):
            raise RuntimeError(f"waits for the device: {name} with a mask")
        self.operators.append(name)
        return func(*args, **(kwargs or {}))


def forward_and_backward(loss: torch.nn.Module, *, labels: bool = False) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    pred = torch.randn(40, 4, requires_grad=True)
    target = torch.randint(-1, 5, (40,)) if labels else torch.randint(0, 2, (40, 4)).float()
    value = loss(pred, target, torch.ones(target.shape))
    value.backward()
    assert pred.grad is not None
    return value.detach(), pred.grad


@pytest.mark.parametrize("kind", ["GHMC", "GHMR"])
def test_mmdets_modules_wait_for_the_device(kind: str) -> None:
    """Shows that the guard of the next test sees what it looks for."""
    with pytest.raises(RuntimeError, match="waits for the device"), NoWaiting():
        forward_and_backward(MODELS.build({"type": f"mmdet.{kind}"}))


@pytest.mark.parametrize("momentum", [0, 0.75])
def test_no_step_waits_for_the_device(monkeypatch: pytest.MonkeyPatch, momentum: float) -> None:
    labelled = [GHMC(momentum=momentum), FocalLoss()]
    expected = [forward_and_backward(loss, labels=True) for loss in (GHMC(momentum=momentum), FocalLoss())]
    # On a CPU, where nothing waits, positives are found by what would wait elsewhere.
    monkeypatch.setattr(vectorised, "on_host", lambda _tensor: False)
    with NoWaiting():
        forward_and_backward(GHMC(momentum=momentum))
        forward_and_backward(GHMR(momentum=momentum))
        found = [forward_and_backward(loss, labels=True) for loss in labelled]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("loss", [GHMC, GHMR])
def test_the_number_of_operators_does_not_depend_on_the_number_of_regions(
    loss: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectorised, "on_host", lambda _tensor: False)
    monkeypatch.setattr(ops, "is_eager", lambda _tensor: False)  # so that a pass is one operator
    traces = []
    for bins in (1, 100):
        module = loss(bins=bins, momentum=0.5)
        with NoWaiting() as trace:
            forward_and_backward(module)
        traces.append(trace.operators)
    assert traces[0] == traces[1]


def test_both_losses_of_five_levels_are_at_most_110_operators_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectorised, "on_host", lambda _tensor: False)
    monkeypatch.setattr(ops, "is_eager", lambda _tensor: False)  # so that a pass is one operator
    sizes, label = [20, 10, 5, 4, 1], torch.randint(0, 5, (40,))
    modules = GHMC(momentum=0.75), GHMR(momentum=0.7)
    with NoWaiting() as trace:
        modules[0](torch.randn(40, 4, requires_grad=True), label, torch.ones(40), sizes=sizes)
        modules[1](torch.randn(40, 4, requires_grad=True), torch.zeros(40, 4), torch.ones(40, 4), sizes=sizes)
    assert len(trace.operators) <= 110
