"""How often the 95 % intervals hold the truth: experiments whose truth is known.

    python -m benchmarks.coverage

An experiment has two variants, a few seeds of each, and a split of images. How well a training turns out, how hard an
image is, for both variants and for one training alone, and what happens to each box are drawn at random. The truth is
AP on average over splits of as many images; with one seed that of the two trainings, with more that of the variants
over all their trainings. How far AP of so few images leans from AP of 40,000 stands beside it. Writes
`benchmarks/results/coverage.json`.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from ghm import files
from ghm.evaluation import bootstrap
from ghm.evaluation.matches import Matches, weighted
from ghm.training import run

RESULT = Path(__file__).parent / "results" / "coverage.json"
CLASSES = 3
IOUS_T = np.linspace(0.5, 0.95, 10)
QUALITY = (0.0, 0.15)  # of the two variants
MANY = 40_000  # images to measure a truth on


@dataclass(frozen=True)
class Setting:
    """What an experiment is like."""

    name: str
    seeds: int
    images: int
    of_training: float  # spread of the quality between seeds
    of_image: float  # spread of the difficulty of images, the same for all trainings
    of_both: float  # spread of what an image is to one training alone


SETTINGS = (
    Setting("one seed, 100 images", 1, 100, 0.1, 0.5, 0.2),
    Setting("one seed, 400 images", 1, 400, 0.1, 0.5, 0.2),
    Setting("three seeds that hardly differ", 3, 200, 0.01, 0.5, 0.2),
    Setting("three seeds", 3, 200, 0.05, 0.5, 0.2),
    Setting("three seeds that differ much", 3, 200, 0.2, 0.5, 0.2),
    Setting("five seeds", 5, 200, 0.05, 0.5, 0.2),
)


@dataclass(frozen=True)
class Split:
    """Images of some difficulty, and how many boxes of each class they have."""

    hard_I: np.ndarray
    boxes_IK: np.ndarray


def split(images: int, setting: Setting, rng: np.random.Generator) -> Split:
    return Split(setting.of_image * rng.normal(size=images), rng.poisson(0.7, (images, CLASSES)))


def training(variant: int, setting: Setting, rng: np.random.Generator) -> float:
    """How well a training of a variant turns out."""
    return QUALITY[variant] + setting.of_training * rng.normal()


def result(quality: float, measured: Split, setting: Setting, rng: np.random.Generator) -> Matches:
    """Detections of a training: boxes that it finds more or less well, and false alarms."""
    images = len(measured.hard_I)
    level_I = quality - measured.hard_I + setting.of_both * rng.normal(size=images)
    columns = []
    for number in range(CLASSES):
        box_G = np.repeat(np.arange(images), measured.boxes_IK[:, number])
        overlap_G = 1 / (1 + np.exp(-(1.2 + level_I[box_G] + 0.8 * rng.normal(size=len(box_G)))))
        seen_G = overlap_G > 0.4
        false_F = np.repeat(np.arange(images), rng.poisson(1.5, images))
        score_D = np.concatenate([rng.normal(3 * overlap_G[seen_G] - 1.5, 0.7), rng.normal(-0.8, 1, len(false_F))])
        order_D = np.argsort(-score_D, kind="mergesort")
        overlap_D = np.concatenate([overlap_G[seen_G], np.zeros(len(false_F))])[order_D]
        columns.append((box_G, np.concatenate([box_G[seen_G], false_F])[order_D], overlap_D))
    overlap_D = np.concatenate([column[2] for column in columns])
    return Matches(
        image_id_I=np.arange(images),
        class_id_K=np.arange(CLASSES),
        start_K=np.cumsum([0, *(len(column[1]) for column in columns)]),
        image_D=np.concatenate([column[1] for column in columns]),
        detection_D=np.arange(len(overlap_D)),
        box_D=np.zeros(len(overlap_D), np.int64),
        hit_TD=overlap_D >= IOUS_T[:, None],
        ignored_TD=np.zeros((len(IOUS_T), len(overlap_D)), bool),
        box_image_G=np.concatenate([column[0] for column in columns]),
        box_class_G=np.repeat(np.arange(CLASSES), [len(column[0]) for column in columns]),
    )


def ap_of(variant: int, setting: Setting, images: int, rng: np.random.Generator) -> np.ndarray:
    """AP of a training on average over splits of so many images: a polynomial of how well it turned out."""
    quality_Q = QUALITY[variant] + np.linspace(-3.5, 3.5, 9) * setting.of_training
    one_I = np.ones((1, images), np.int32)

    def ap(quality: float) -> float:
        return float(weighted(result(quality, split(images, setting, rng), setting, rng), one_I)[0]["AP"][0])

    means = [np.mean([ap(quality) for _ in range(MANY // images)]) for quality in quality_Q]
    return np.polyfit(quality_Q, means, 2)


def truth_of(setting: Setting, images: int) -> list[float]:
    """AP of each variant on average over its trainings and over splits of so many images."""
    rng = np.random.default_rng(1)
    drawn = [QUALITY[variant] + setting.of_training * rng.normal(size=100_000) for variant in range(2)]
    return [float(np.polyval(ap_of(variant, setting, images, rng), drawn[variant]).mean()) for variant in range(2)]


def experiment(
    number: int, setting: Setting, truth: list[float], curves: list[np.ndarray], resamples: int
) -> dict[str, float]:
    """Whether the intervals of the first variant's AP and of the difference hold the truth, and how wide they are."""
    rng = np.random.default_rng([number, setting.seeds, setting.images])
    measured = split(setting.images, setting, rng)
    weight_BI = bootstrap.weights(setting.images, resamples, seed=number)
    values = []
    for variant in range(2):
        qualities = [training(variant, setting, rng) for _ in range(setting.seeds)]
        results = [result(quality, measured, setting, rng) for quality in qualities]
        values.append(np.stack([weighted(found, weight_BI)[0]["AP"] for found in results]))
        if setting.seeds == 1:
            truth = [*truth[:variant], float(np.polyval(curves[variant], qualities[0])), *truth[variant + 1 :]]
    row: dict[str, float] = {}
    for name, found, value_SB, wanted in (
        ("AP", bootstrap.interval(values[0], setting.images), values[0], truth[0]),
        ("difference", bootstrap.difference(values[1], values[0], setting.images), values[1] - values[0],
         truth[1] - truth[0]),
    ):  # fmt: skip
        assert found, "every split has boxes"
        row |= {f"{name} held": float(found.low <= wanted <= found.high), f"{name} width": found.high - found.low}
        drawn_B = plain(value_SB, rng)
        row[f"{name} held by plain resampling"] = float(np.mean(drawn_B <= wanted) > 0.025 < np.mean(drawn_B >= wanted))
    return row


def plain(value_SB: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What the textbook does: draw seeds like images, with replacement, and take quantiles."""
    seeds, columns = value_SB.shape
    drawn_SB = rng.integers(0, seeds, (seeds, columns))
    return np.take_along_axis(value_SB, drawn_SB, axis=0).mean(axis=0)[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=500)
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for setting in SETTINGS:
        rng = np.random.default_rng(2)
        truth, many = truth_of(setting, setting.images), truth_of(setting, MANY)
        curves = [ap_of(variant, setting, setting.images, rng) for variant in range(2)]
        one = partial(experiment, setting=setting, truth=truth, curves=curves, resamples=arguments.resamples)
        with ProcessPoolExecutor(arguments.jobs) as pool:
            numbers = range(arguments.experiments)
            found = list(tqdm(pool.map(one, numbers, chunksize=10), total=len(numbers), desc=setting.name))
        leans = {"AP leans": truth[0] - many[0], "difference leans": truth[1] - truth[0] - many[1] + many[0]}
        rows.append({**asdict(setting), "AP": truth[0], "difference": truth[1] - truth[0], **leans})
        rows[-1] |= {key: round(float(np.mean([row[key] for row in found])), 4) for key in found[0]}
        print(pd.DataFrame(rows[-1:]).filter(regex="name|held|leans").to_string(index=False, header=len(rows) == 1))
    context = run.context()
    kept = {"device": context["device"], "versions": context["versions"], "experiments": arguments.experiments}
    files.write_json(RESULT, {**kept, "resamples": arguments.resamples, "rows": rows})


if __name__ == "__main__":
    main()
