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


def interval(results: Results, variant: str, metric: str) -> Interval | None:
    """Of AP, AP50, AP75 or AP_<class>, a fraction; None where the split has no such box."""
    return bootstrap.interval(_values(results, variant, metric), _images(results))


def difference(results: Results, variant: str, metric: str) -> Interval | None:
    """Of the metric minus that of the first variant, on the same resamples of images, seed by seed."""
    own, other = (_values(results, name, metric) for name in (variant, next(iter(results.metrics))))
    return bootstrap.difference(own, other, _images(results))


def table(results: Results, params: Params) -> pd.DataFrame:
    """A row for each variant and each metric that the split has a box for.

    `estimate`, `low`, `high`, of the difference too, and `verdict`; the first variant has no difference.
    """
    first = next(iter(params.variants))
    rows = []
    for variant in params.variants:
        for metric in results.resampled[variant][0].value_B:
            own, minus = interval(results, variant, metric), difference(results, variant, metric)
            if own is None or minus is None:
                continue
            line = {"variant": variant, "metric": metric}
            line |= {"estimate": own.estimate, "low": own.low, "high": own.high}
            bounds = ("difference", "difference_low", "difference_high")
            if variant == first:
                line |= {**dict.fromkeys(bounds, np.nan), "verdict": BASELINE}
            else:
                line |= dict(zip(bounds, (minus.estimate, minus.low, minus.high), strict=True))
                line["verdict"] = minus.verdict
            rows.append(line)
    return pd.DataFrame(rows)


def row(compared: pd.DataFrame, variant: str, metric: str) -> dict[str, Any]:
    """That of `table` for a variant and a metric."""
    return compared.set_index(["variant", "metric"]).loc[(variant, metric)].to_dict()


def precision_recall(results: Results, params: Params) -> pd.DataFrame:
    """Mean precision at each recall, with its interval: variant, iou, recall, precision, low, high."""
    rows = []
    for variant in params.variants:
        curve_SBUR = np.stack([each.curve_BUR for each in results.resampled[variant]]).astype(float)
        for place, iou in enumerate(CURVE_IOUS):
            for number, recall in enumerate(RECALLS_R):
                found = bootstrap.interval(curve_SBUR[:, :, place, number], _images(results))
                assert found, "a split without boxes is not evaluated"
                point = {"variant": variant, "iou": iou, "recall": round(float(recall), 2)}
                rows.append({**point, "precision": found.estimate, "low": found.low, "high": found.high})
    return pd.DataFrame(rows)


def _values(results: Results, variant: str, metric: str) -> Array:
    return np.stack([each.value_B[metric] for each in results.resampled[variant]])


def _images(results: Results) -> int:
    return next(iter(results.resampled.values()))[0].images
