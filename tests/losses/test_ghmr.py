"""Laws of GHM-R alone; those that it shares with GHM-C are in `test_harmonised.py`. Shapes: N examples."""

import pytest
import torch

from tests.losses.kinds import REGRESSION, run

ghmr = REGRESSION.ours


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
