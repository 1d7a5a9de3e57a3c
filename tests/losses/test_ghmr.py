"""Laws of GHM-R alone; those that it shares with GHM-C are in `test_harmonised.py`. Shapes: N examples."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ghm.losses import vectorised
from tests.losses.kinds import REGRESSION, assert_same_step, run

ghmr, peer = REGRESSION.ours, REGRESSION.peer


@settings(max_examples=80)
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
    momentum=st.sampled_from((0, 0.7)),
    mu=st.sampled_from([1e-3, 0.02, 1.0]),
)
def test_any_population_is_that_of_mmdet(rows: list[tuple], bins: int, momentum: float, mu: float) -> None:
    pred, target, weight = torch.tensor(rows, dtype=torch.float32).reshape(-1, 3, 1).unbind(1)
    arguments = {"bins": bins, "momentum": momentum, "mu": mu}
    assert_same_step(ghmr(**arguments), peer(**arguments), (pred, target, weight))


def test_one_bin_without_momentum_is_the_mean_of_authentic_smooth_l1(passes: str) -> None:
    torch.manual_seed(0)
    pred, target = torch.randn(20, 4), torch.randn(20, 4)
    loss, _ = run(ghmr(bins=1, mu=0.5), pred, target, torch.ones(20, 4))
    torch.testing.assert_close(loss, (((pred - target) ** 2 + 0.25).sqrt() - 0.5).mean())


@pytest.mark.parametrize("scale", [0.25, 3.0])
def test_a_common_factor_on_the_weights_cancels_out(passes: str, scale: float) -> None:
    torch.manual_seed(0)
    pred, target, weight = torch.randn(20, 4), torch.randn(20, 4), torch.ones(20, 4)
    plain, scaled = run(ghmr(), pred, target, weight), run(ghmr(), pred, target, weight * scale)
    torch.testing.assert_close(scaled, plain)


@pytest.mark.parametrize("share", [0.02, 0.2, 0.9])
@pytest.mark.parametrize("chunk", [7, 100_000])
def test_rows_without_weight_are_left_out_without_a_trace(
    monkeypatch: pytest.MonkeyPatch, share: float, chunk: int
) -> None:
    """Few rows with weight, or many, in chunks of any length, are what mmdet makes of all."""
    monkeypatch.setattr("ghm.losses.vectorised.CHUNK", chunk)
    torch.manual_seed(0)
    ours, theirs = ghmr(momentum=0.7), peer(momentum=0.7)
    pred = target = weight = torch.empty(0)
    for _ in range(3):
        pred, target = torch.randn(300, 4) * 0.03, torch.randn(300, 4) * 0.03
        weight = (torch.rand(300, 1) < share) * torch.randn(300, 4)
        assert_same_step(ours, theirs, (pred, target, weight))
    pred[weight.eq(0).all(1).nonzero()[0]] = float("nan")
    assert ours(pred, target, weight).isnan()


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("rows", [1, 16, 999, 1000])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.6])
def test_few_rows_hold_every_weight_each_once_and_in_order(columns: int, rows: int, share: float) -> None:
    torch.manual_seed(rows)
    weight_ND = torch.randn(rows, columns) * (torch.rand(rows, columns) < share)
    row_R = vectorised.few_rows(weight_ND)
    if row_R is None:
        assert 4 * (8 // columns or 1) * weight_ND.any(1).sum() >= rows or rows == 1
    else:
        assert torch.equal(row_R, row_R.unique()) and 4 * len(row_R) < rows
        assert weight_ND[row_R].count_nonzero() == weight_ND.count_nonzero()


@pytest.mark.parametrize("bins", [2**15 - 2, 2**15 - 1, 40_000])
def test_regions_beyond_slots_of_16_bits_are_those_of_mmdet(bins: int) -> None:
    torch.manual_seed(0)
    step = (torch.randn(50, 4), torch.randn(50, 4), torch.ones(50, 4))
    assert_same_step(ghmr(bins=bins), peer(bins=bins), step)


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match="must be of shape"):
        ghmr()(torch.zeros(4, 4), torch.zeros(4, 1), torch.ones(4, 4))
    with pytest.raises(ValueError, match="must be of shape"):
        ghmr()(torch.zeros(4, 4), torch.zeros(4, 4), torch.ones(4))
