"""How sure a difference in AP is: the images of the split, and the seeds of the training runs, might have been others.

Images are resampled, the same for all that is compared. Seeds are few: three have ten different resamples, whose
quantiles lie far too close. What resampling them would give, the variance of a mean over drawn seeds, is taken in
closed form, with S - 1 in place of S, and with Student's t for what so few seeds can say of it.

Shapes: S seeds, B weightings of the images, the first of which counts each image once, I images.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from scipy import stats

from ghm.evaluation.matches import Array

METRICS = ("AP", "AP50", "AP75")
RESAMPLES = 1000
LEVEL = 0.95
POWER = 0.8  # in about so many cases a difference that is called detectable gets a verdict
UNCLEAR = "not distinguishable"
Key = TypeVar("Key")


@dataclass(frozen=True)
class Interval:
    """A figure and where it would lie with other images and, where there are several, other seeds."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Error:
    """How far a figure may lie from the truth, and how well that is known."""

    standard: float  # standard error
    of_seeds: float  # share of its square that is the seeds' doing
    images: int
    seeds: int

    def margin(self, alpha: float) -> float:
        """What the figure is off by, either way, in a share `alpha` of the cases at most: see `interval`."""
        many, few = (stats.t.isf(alpha / 2, max(number - 1, 1)) ** 2 for number in (self.images, self.seeds))
        return float(self.standard * np.sqrt(many + (few - many) * self.of_seeds**2))


@dataclass(frozen=True)
class Difference(Interval):
    """A figure minus another: its interval is for itself, its verdict is one of several that hold `together`."""

    error: Error
    comparisons: int = 1  # that are judged together
    verdict: str = UNCLEAR
    detectable: float | None = None  # None where there is no error


@dataclass(frozen=True)
class Resampled:
    """The metrics of one result under every weighting of the images."""

    measured_on: str  # annotations and images: of `fingerprint.measured_data`
    images: int
    value_B: dict[str, Array]  # AP, AP50, AP75, AP_<class>
    curve_BUR: Array  # precision at each recall, at each of CURVE_IOUS; float32 in the file

    def save(self, path: Path) -> None:
        """Write a compressed .npz file."""
        np.savez_compressed(
            path,
            measured_on=np.array(self.measured_on),
            images=np.array(self.images),
            names=np.array(list(self.value_B)),
            values=np.stack(list(self.value_B.values())),
            curves=self.curve_BUR.astype(np.float32),
        )

    @classmethod
    def load(cls, path: Path) -> "Resampled":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as content:
            values = dict(zip(content["names"].tolist(), content["values"], strict=True))
            return cls(str(content["measured_on"]), int(content["images"]), values, content["curves"])


def weights(images: int, resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """How often each image is drawn, [1 + resamples, I]; the first row is the split itself, each image once."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(images, np.full(images, 1 / max(images, 1)), size=resamples)
    return np.concatenate([np.ones((1, images), np.int64), drawn]).astype(np.int32)


def interval(value_SB: Array, images: int) -> Interval | None:
    """The mean over seeds with its interval, inside [0, 1]; None where it is not defined.

    Two parts add up to its variance. U, between the seeds: the variance of the mean of what they give. V - W, of the
    images that all seeds share: V is the variance between the weightings of the mean over seeds, W what of it is each
    seed's own doing, since seeds err on different images; U has that already. The quantile lies between those of
    Student's t with I - 1 and with S - 1 degrees of freedom: q^2 = q_images^2 + (q_seeds^2 - q_images^2) s^2, s = U /
    (V - W + U), after Cochran (Biometrics 20, 1964), who weighs the quantiles and not their squares and holds too much.

    The interval is for splits of this size: AP of few images leans upward, differences hardly do. How often it holds
    the truth: benchmarks/coverage.py.

    Args:
        value_SB: the figure of each seed under each weighting; -1 where it is not defined. Weightings that leave it
            undefined are left out.
        images: I.
    """
    found = _estimate(value_SB, np.all(value_SB > -1, axis=0), images)
    return found and Interval(*_ends(*found, lowest=0.0))


def difference(own_SB: Array, other_SB: Array, images: int) -> Difference | None:
    """`interval` of own minus other, seed by seed, weighting by weighting, inside [-1, 1]; judged for itself."""
    found = _estimate(own_SB - other_SB, np.all((own_SB > -1) & (other_SB > -1), axis=0), images)
    return found and together({"": Difference(*_ends(*found, lowest=-1.0), found[1])})[""]


def together(family: Mapping[Key, Difference]) -> dict[Key, Difference]:
    """The same differences, with verdicts of which none is wrong in LEVEL of the cases, however many there are.

    The step-down procedure of Holm (Scandinavian Journal of Statistics 6, 1979): a difference is clear where the
    interval of level 1 - alpha / k leaves out 0, k being how many are not clear yet. It asks nothing of how they depend
    on each other, which they do: they share images and the reference. A difference without an error is never clear.

    Detectable is, after Bloom (Evaluation Review 19, 1995), the margin of alpha / m, m being how many there are, plus
    the margin that an estimate falls below the truth by in 1 - POWER of the cases.
    """
    alpha, unclear = 1 - LEVEL, {*family}
    wide = {key for key, minus in family.items() if minus.low < minus.high}
    while clear := {
        key for key in unclear & wide if abs(family[key].estimate) > family[key].error.margin(alpha / len(unclear))
    }:
        unclear -= clear

    def judged(key: Key, minus: Difference) -> Difference:
        verdict = UNCLEAR if key in unclear else "better" if minus.estimate > 0 else "worse"
        detectable = minus.error.margin(alpha / len(family)) + minus.error.margin(2 * (1 - POWER))
        return replace(minus, comparisons=len(family), verdict=verdict, detectable=detectable or None)

    return {key: judged(key, minus) for key, minus in family.items()}


def _estimate(value_SB: Array, defined_B: Array, images: int) -> tuple[float, Error] | None:
    if not defined_B[0]:
        return None
    value_SB = value_SB[:, defined_B]
    point_S, drawn_SB, seeds = value_SB[:, 0], value_SB[:, 1:], len(value_SB)
    variance, share = 0.0, 0.0
    if drawn_SB.shape[1] > 1:
        mean_B = drawn_SB.mean(axis=0)
        of_images, of_seeds = mean_B.var(ddof=1), 0.0
        if seeds > 1:
            of_seeds = point_S.var(ddof=1) / seeds
            own = (drawn_SB - mean_B).var(axis=1, ddof=1).sum() / (seeds - 1)
            of_images = max(0.0, of_images - own / seeds)
        variance = of_images + of_seeds
        share = of_seeds / variance if variance else 0.0
    return float(point_S.mean()), Error(float(np.sqrt(variance)), float(share), images, seeds)


def _ends(estimate: float, error: Error, lowest: float) -> tuple[float, float, float]:
    half = error.margin(1 - LEVEL)
    return estimate, max(lowest, estimate - half), min(1.0, estimate + half)
