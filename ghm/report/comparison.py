"""What the resampled metrics say: intervals of a variant, and of its difference to the first one."""

from typing import Any

import numpy as np
import pandas as pd

from ghm.evaluation import bootstrap
from ghm.evaluation.bootstrap import Interval
from ghm.evaluation.matches import CURVE_IOUS, RECALLS_R, Array
from ghm.params import Params
from ghm.report.inputs import Results

BASELINE = "baseline"  # in place of the difference of the first variant to itself


def table(results: Results, params: Params) -> pd.DataFrame:
    """A row for each variant and each metric that the split has a box for.

    `estimate`, `low`, `high`, of the difference too, and `verdict`; the first variant has no difference.
    """
    first = next(iter(params.variants))
    rows = []
    for variant in params.variants:
        for metric in results.resampled[variant][0].value_B:
            values, images = _values(results, variant, metric), _images(results)
            interval = bootstrap.interval(values, images)
            difference = bootstrap.difference(values, _values(results, first, metric), images)
            if interval is None or difference is None:
                continue
            if variant == first:
                difference, verdict = Interval(np.nan, np.nan, np.nan), BASELINE
            else:
                verdict = difference.verdict
            rows.append(
                {"variant": variant, "metric": metric, "estimate": interval.estimate, "low": interval.low,
                 "high": interval.high, "difference": difference.estimate, "difference_low": difference.low,
                 "difference_high": difference.high, "verdict": verdict}
            )  # fmt: skip
    return pd.DataFrame(rows)


def row(compared: pd.DataFrame, variant: str, metric: str) -> dict[str, Any]:
    """That of `table` for a variant and a metric."""
    return compared.set_index(["variant", "metric"]).loc[(variant, metric)].to_dict()


def precision_recall(results: Results, params: Params) -> pd.DataFrame:
    """Mean precision at each recall, with its interval: variant, iou, recall, precision, low, high."""
    rows = []
    for variant in params.variants:
        curve_SBUR = np.stack([seed.curve_BUR for seed in results.resampled[variant]]).astype(float)
        for u, iou in enumerate(CURVE_IOUS):
            for r, recall in enumerate(RECALLS_R):
                interval = bootstrap.interval(curve_SBUR[:, :, u, r], _images(results))
                assert interval, "a split without boxes is not evaluated"
                point = {"variant": variant, "iou": iou, "recall": round(float(recall), 2)}
                rows.append({**point, "precision": interval.estimate, "low": interval.low, "high": interval.high})
    return pd.DataFrame(rows)


def _values(results: Results, variant: str, metric: str) -> Array:
    return np.stack([seed.value_B[metric] for seed in results.resampled[variant]])


def _images(results: Results) -> int:
    return next(iter(results.resampled.values()))[0].images
