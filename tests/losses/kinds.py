"""GHM-C and GHM-R as one kind of thing: how to make ours and mmdet's, and populations to feed to both.

Shapes: N examples, C = 3 classes or 4 coordinates, K unit regions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ghm.losses import GHMC, GHMR
from ghm.registry import MODELS
from tests import reference

Step = tuple[Tensor, Tensor, Tensor]  # prediction, target, weight
CLASSES = 3
WEIGHTS = torch.tensor([0.0, 1.0, 1.0, 0.3, 2.5])


@dataclass(frozen=True)
class Kind:
    name: str
    loss: type
    steps: Callable[[int, int], Iterator[Step]]
    on_edges: Callable[[int], Step]
    inside_regions: Callable[[int, int, int], tuple[Tensor, Tensor]]  # seed, size, bins -> prediction, dense target
    oracle: Callable[..., reference.Outcome]
    adversarial: dict[str, Step]

    def ours(self, **arguments: Any) -> Any:
        """The module under test, of type Any so that buffers need no assertions on their type."""
        return self.loss(**arguments)

    def peer(self, **arguments: Any) -> Any:
        return MODELS.build({"type": f"mmdet.{self.name}", **arguments})


def run(module: Any, pred: Tensor, *rest: Tensor | None, **options: Any) -> tuple[Tensor, Tensor]:
    """Value and gradient by the prediction."""
    pred = pred.clone().requires_grad_()
    loss = module(pred, *rest, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), pred)
    return loss.detach(), gradient


def assert_same_step(ours: Any, theirs: Any, step: Step) -> None:
    """One step of both modules: value, gradient, buffers. Both are float32; the orders of summation differ."""
    (loss, gradient), (their_loss, their_gradient) = run(ours, *step), run(theirs, *step)
    # PyTorch's cross entropy, which mmdet takes, subtracts two numbers as large as the logit; its slope of a positive
    # is sigmoid(x) - 1. Both are off by half a unit of the last place, and the weights of a population add up to this:
    rounding = 2**-24 * ours.loss_weight / (1 - ours.momentum)
    largest = float(step[0].abs().max()) if isinstance(ours, GHMC) and len(step[0]) else 0.0
    torch.testing.assert_close(loss, their_loss, rtol=5e-6, atol=1e-9 + rounding * largest)
    torch.testing.assert_close(gradient, their_gradient, rtol=5e-6, atol=rounding)
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


def logits_on_edges(bins: int) -> Step:
    """One class; logits at every inner edge, one float32 below and above it, positives (label 0) and negatives."""
    logits, labels = [], []
    for k in range(1, bins):
        for target in (0, 1):
            x = torch.tensor(logit_near(k / bins, target))
            logits += [torch.nextafter(x, x - 1), x, torch.nextafter(x, x + 1)]
            labels += 3 * [1 - target]
    pred = torch.stack(logits).reshape(-1, 1)
    norm = (pred.sigmoid() - 1 + torch.tensor(labels)[:, None]).abs()
    assert torch.isin(norm, torch.arange(bins) / bins).sum() >= bins // 2, "the search must hit edges exactly"
    return pred, torch.tensor(labels), torch.ones(len(pred))


def classification_steps(seed: int, count: int) -> Iterator[Step]:
    """Populations of many sizes and shapes of distribution, labels from -1 to C, weights not only 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(count):
        size = int(torch.randint(0, 40, (), generator=generator))
        spread = (0.1, 1.0, 5.0, 60.0)[step % 4]
        pred = torch.randn(size, CLASSES, generator=generator) * spread - (step % 3)
        label = torch.randint(-1, CLASSES + 1, (size,), generator=generator)
        weight = WEIGHTS[torch.randint(0, 5, (size,), generator=generator)]
        yield pred, label, weight * (step % 17 != 5)


def logits_inside_regions(seed: int, size: int, bins: int) -> tuple[Tensor, Tensor]:
    """Logits and p* with norms well inside their regions, where float32 and float64 agree; easy ones abound."""
    rng = np.random.default_rng(seed)
    target_NC = (rng.integers(-1, CLASSES + 1, size)[:, None] == np.arange(CLASSES)).astype(np.float64)
    region_NC = np.minimum(rng.geometric(0.3, (size, CLASSES)) - 1, bins - 1)
    norm_NC = (region_NC + rng.uniform(0.05, 0.95, (size, CLASSES))) / bins
    logit_NC = np.log(norm_NC / (1 - norm_NC)) * (1 - 2 * target_NC)
    return torch.tensor(logit_NC, dtype=torch.float32), torch.tensor(target_NC, dtype=torch.float32)


def classification_oracle(module: Any, *step: Tensor, **options: Any) -> reference.Outcome:
    pred, target, weight = (tensor.numpy() for tensor in step)
    if target.ndim == 1:
        weight = np.repeat(weight[:, None], pred.shape[1], axis=1)
        target = (target[:, None] == np.arange(pred.shape[1])).astype(float)
    return reference.ghm_c(pred, target, weight, regions=module.bins, momentum=module.momentum, **options)


def regression_steps(seed: int, count: int) -> Iterator[Step]:
    """Populations of many sizes and spreads; weights not only 0 and 1, none at all now and then."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(count):
        size = int(torch.randint(0, 30, (), generator=generator))
        spread = (1e-3, 0.02, 1.0, 1e4)[step % 4]
        pred = torch.randn(size, 4, generator=generator) * spread
        target = torch.randn(size, 4, generator=generator) * spread
        weight = WEIGHTS[torch.randint(0, 5, (size, 4), generator=generator)]
        yield pred, target, weight * (step % 17 != 5)


def differences_on_edges(bins: int) -> Step:
    """Differences at every inner edge and the 20 float32 on either side of it, of both signs; mu is 0.02."""
    differences = []
    for k in range(1, bins):
        norm = k / bins
        x = torch.tensor(0.02 * norm / (1 - norm**2) ** 0.5)
        for _ in range(20):
            x = torch.nextafter(x, x - 1)
        for _ in range(41):
            differences += [x, -x]
            x = torch.nextafter(x, x + 1)
    pred = torch.stack(differences).reshape(-1, 2)
    return pred, torch.zeros_like(pred), torch.ones_like(pred)


def differences_inside_regions(seed: int, size: int, bins: int) -> tuple[Tensor, Tensor]:
    """Differences with norms well inside their regions, where float32 and float64 agree; mu is 0.02."""
    rng = np.random.default_rng(seed)
    region = np.minimum(rng.geometric(0.3, (size, 4)) - 1, bins - 1)
    norm = (region + rng.uniform(0.05, 0.95, (size, 4))) / bins
    difference = 0.02 * norm / np.sqrt(1 - norm**2) * rng.choice([-1, 1], (size, 4))
    return torch.tensor(difference, dtype=torch.float32), torch.zeros(size, 4)


def regression_oracle(module: Any, *step: Tensor, **options: Any) -> reference.Outcome:
    pred, target, weight = (tensor.numpy() for tensor in step)
    return reference.ghm_r(pred, target, weight, mu=module.mu, regions=module.bins, momentum=module.momentum, **options)


CLASSIFICATION = Kind(
    "GHMC",
    GHMC,
    classification_steps,
    logits_on_edges,
    logits_inside_regions,
    classification_oracle,
    {
        "zero_logits_on_the_middle_edge": (torch.zeros(6, 2), torch.tensor([0, 1, 2, 2, 2, 2]), torch.ones(6)),
        "saturated": (torch.tensor([[60.0, -60.0], [-60.0, 60.0]]), torch.tensor([0, 0]), torch.ones(2)),
        "far_saturated": (torch.tensor([[500.0, -500.0], [-500.0, 500.0]]), torch.tensor([1, 2]), torch.ones(2)),
        "all_ignored": (torch.linspace(-4, 4, 10).reshape(5, 2), torch.tensor([0, 1, 2, 2, -1]), torch.zeros(5)),
        "all_in_one_region": (torch.full((9, 2), -3.0), torch.full((9,), 2), torch.ones(9)),
        "no_positives": (torch.linspace(-4, 4, 20).reshape(10, 2), torch.full((10,), 2), torch.ones(10)),
        "no_anchors": (torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), torch.zeros(0)),
        "one_anchor": (torch.tensor([[0.3, -2.0]]), torch.tensor([1]), torch.ones(1)),
        "one_class": (torch.linspace(-3.9, 4.1, 7).reshape(7, 1), torch.tensor([0, 1, 0, 1, 1, 0, 1]), torch.ones(7)),
        "uneven_weights": (
            torch.linspace(-4, 4, 12).reshape(6, 2),
            torch.tensor([0, 1, 2, 2, 2, 0]),
            torch.tensor([0.1, 7.0, -1.0, 0.0, 1e-9, 1e9]),
        ),
        "soft_targets": (
            torch.linspace(-4, 4, 12).reshape(6, 2),
            torch.linspace(0, 1, 12).reshape(6, 2),
            torch.ones(6, 2),
        ),
    },
)

REGRESSION = Kind(
    "GHMR",
    GHMR,
    regression_steps,
    differences_on_edges,
    differences_inside_regions,
    regression_oracle,
    {
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
    },
)

KINDS = (CLASSIFICATION, REGRESSION)


def assert_is_oracle(kind: Kind, module: Any, step: Step, **options: Any) -> list | None:
    """Compare with the oracle; returns its moving average."""
    expected = kind.oracle(module, *step, **options)
    loss, gradient = run(module, *step)
    # sqrt(d^2 + mu^2) - mu cancels for small d: what is lost is relative to mu.
    assert float(loss) == pytest.approx(expected.loss, rel=1e-5, abs=2e-8)
    np.testing.assert_allclose(gradient.numpy(), expected.gradient, rtol=1e-4, atol=1e-9)
    if expected.average is not None:
        np.testing.assert_allclose(module.acc_sum.numpy(), expected.average, rtol=1e-6)
    return expected.average


def levels(kind: Kind, seed: int) -> tuple[Step, list[int]]:
    """Several populations put together, an empty one among them."""
    parts = [step for step in kind.steps(seed, 6) if len(step[0])]
    parts.insert(2, tuple(tensor[:0] for tensor in parts[0]))  # type: ignore[arg-type]
    pred, target, weight = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return (pred, target, weight), [len(part[0]) for part in parts]
