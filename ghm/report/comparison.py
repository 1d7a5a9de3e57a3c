"""What the resampled metrics say: intervals of a variant, and of its difference to the first one."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd

from ghm.evaluation import bootstrap
from ghm.evaluation.bootstrap import METRICS, Difference, Interval, Resampled
from ghm.evaluation.matches import CURVE_IOUS, RECALLS_R, Array
from ghm.report.inputs import Results

BASELINE = "baseline"  # in place of the difference of the first variant to itself
# Variant and metric -> the metric with its interval, and its difference to the first variant; the first has none.
Compared = dict[tuple[str, str], tuple[Interval, Difference | None]]


def interval(seeds: Sequence[Resampled], metric: str) -> Interval | None:
    """A metric, mean over seeds; None where it is not defined."""
    return bootstrap.interval(_values(seeds, metric), seeds[0].images) if seeds else None


def difference(seeds: Sequence[Resampled], others: Sequence[Resampled], metric: str) -> Difference | None:
    """A metric minus that of the same seeds of another variant."""
    return bootstrap.difference(_values(seeds, metric), _values(others, metric), seeds[0].images) if seeds else None


def _values(seeds: Sequence[Resampled], metric: str) -> Array:
    return np.stack([seed.value_B[metric] for seed in seeds])


def compare(results: Results) -> Compared:
    """The intervals of each variant in each metric that the split has a box for.

    Verdicts hold together in AP, in AP50, in AP75, and in AP of all classes.
    """
    baseline, *_ = results.resampled.values()
    compared = {}
    for variant, seeds in results.resampled.items():
        for metric in seeds[0].value_B:
            if estimate := interval(seeds, metric):
                minus = None if seeds is baseline else difference(seeds, baseline, metric)
                compared[variant, metric] = (estimate, minus)
    families: dict[str, dict[tuple[str, str], Difference]] = defaultdict(dict)
    for (variant, metric), (_, minus) in compared.items():
        if minus:
            families[metric if metric in METRICS else "classes"][variant, metric] = minus
    judged = dict(itertools.chain.from_iterable(bootstrap.together(family).items() for family in families.values()))
    return {key: (estimate, judged.get(key)) for key, (estimate, _) in compared.items()}


def table(compared: Compared) -> pd.DataFrame:
    """A row for each variant and metric; the first variant has no difference."""
    rows = []
    for (variant, metric), (estimate, minus) in compared.items():
        ends = minus or Interval(np.nan, np.nan, np.nan)
        judged = (minus.verdict, minus.comparisons, minus.detectable) if minus else (BASELINE, None, None)
        rows.append(
            {"variant": variant, "metric": metric, **asdict(estimate), "difference": ends.estimate,
             "difference_low": ends.low, "difference_high": ends.high,
             **dict(zip(("verdict", "comparisons", "detectable"), judged, strict=True))}
        )  # fmt: skip
    return pd.DataFrame(rows)


def precision_recall(results: Results) -> pd.DataFrame:
    """Mean precision at each recall, with its interval: variant, iou, recall, precision, low, high."""
    rows = []
    for variant, seeds in results.resampled.items():
        curve_SBUR = np.stack([seed.curve_BUR for seed in seeds]).astype(float)
        for u, iou in enumerate(CURVE_IOUS):
            for r, recall in enumerate(RECALLS_R):
                precision = bootstrap.interval(curve_SBUR[:, :, u, r], seeds[0].images)
                assert precision, "a split without boxes is not evaluated"
                point = {"variant": variant, "iou": iou, "recall": round(float(recall), 2)}
                rows.append({**point, "precision": precision.estimate, "low": precision.low, "high": precision.high})
    return pd.DataFrame(rows)
