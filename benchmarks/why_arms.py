"""Trainings that a prediction of `docs/why.md` tells apart by their AP, for `benchmarks/why.py`.

Shapes: L levels, K unit regions.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.why_measures import RARE
from benchmarks.why_training import GHM, LOSSES, TRAINED, Training
from ghm.losses import GHMC
from ghm.losses.density import moving_averages
from ghm.registry import MODELS

RATES = (0.003, 0.01, 0.03, 0.1, 0.3)  # of SGD, whose published one is 0.01 for 16 images
WEIGHTS = (0.25, 4.0, 16.0)
DECAY = 1e-4  # RetinaNet's


class OwnAverage(GHMC):
    """GHM-C whose levels keep an average each, unbiased from the first step on, and not one that all move in turn."""

    own: list[list[Tensor]] | None = None

    def _average(self, average_K: Tensor, count_LK: Tensor) -> Tensor:
        zero_K = torch.zeros_like(average_K)
        before = self.own or [[zero_K, zero_K]] * len(count_LK)
        after = []
        for (sum_K, mass_K), count_1K in zip(before, count_LK.split(1), strict=True):
            sums = moving_averages(sum_K, count_1K, momentum=self.momentum)
            after.append([*sums, *moving_averages(mass_K, count_1K > 0, momentum=self.momentum)])
        self.own = after
        return torch.stack([sum_K / mass_K.clamp(min=1 - self.momentum) for sum_K, mass_K in after])


class WithoutRare(GHMC):
    """GHM-C without the examples of rare regions: their weight is 0."""

    def _beta(self, count_LK: Tensor, total_L: Tensor, positives: Tensor | None = None) -> Tensor:
        return super()._beta(count_LK, total_L, positives).where(count_LK >= RARE, 0.0)


class Mirrored(GHMC):
    """GHM-C whose density at g is that of g and 1 - g together: positives and negatives of a score weigh the same."""

    def _average(self, average_K: Tensor, count_LK: Tensor) -> Tensor:
        density_LK = super()._average(average_K, count_LK)
        return density_LK + density_LK.flip(-1)


def heavier(factor: int) -> nn.Module:
    """Cross entropy whose positives weigh more: at rest the odds of every score are `factor` times too large."""
    return MODELS.build({**LOSSES["CE"], "class_weight": [float(factor)] * 10})


ARMS: dict[str, Callable[[], nn.Module]] = {
    **{name: lambda settings=settings: MODELS.build(settings) for name, settings in LOSSES.items()},
    "GHM-C, mirrored density": lambda: Mirrored(**GHM),
    "GHM-C, own average over 100 steps": lambda: OwnAverage(30, 0.99),
    **{f"CE, positives times {factor}": lambda factor=factor: heavier(factor) for factor in (10, 100, 1000)},
    "GHM-C, without rare regions": lambda: WithoutRare(**GHM),
    "GHM-C, own average": lambda: OwnAverage(**GHM),
}


def arms(names: list[str], seeds: int, result: dict[str, Any]) -> Iterator[None]:
    """Train what has not been trained yet."""
    kept = result.setdefault("arms", {})
    for seed in range(seeds):
        for name in names:
            if str(seed) in kept.setdefault(name, {}):
                continue
            if seed == 0 and name in result.get("training", {}):  # looking at it moves nothing
                kept[name]["0"] = result["training"][name]["AP"]
                continue
            kept[name][str(seed)] = Training(ARMS[name](), seed).finish()
            print(name, seed, kept[name][str(seed)], flush=True)
            yield


def sgd(result: dict[str, Any]) -> Iterator[None]:
    """Train by SGD what has not been: each loss at five learning rates, then with other weights at the best of them."""
    kept = result.setdefault("sgd", {})
    for name in TRAINED:
        found = kept.setdefault(name, {})
        for weight in (1.0, *WEIGHTS):
            rates = RATES if weight == 1.0 else [max(RATES, key=lambda rate: found[f"{rate:g}, 1"] or 0.0)]
            for rate in rates:
                key = f"{rate:g}, {weight:g}"
                if key not in found:
                    loss = MODELS.build({**LOSSES[name], "loss_weight": weight})
                    training = Training(loss, 0, optimizer="sgd", lr=rate, weight_decay=DECAY)
                    found[key] = training.finish()
                    print(name, key, found[key], flush=True)
                    yield
