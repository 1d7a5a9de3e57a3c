"""The tables of the report: AP, published AP, AP a class, and how each variant was trained."""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from ghm.evaluation.bootstrap import METRICS
from ghm.params import OtherLoss, Params
from ghm.report.inputs import Results

HEADLINE = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100", "VOC_AP50")  # the last one on VOC only
DASH = "–"  # noqa: RUF001  (what a table shows where there is no number)
BASELINE = "baseline"
LEVEL = "95 %"
OFF = {
    "statistics": "level",
    "sync": False,
    "bias_correction": False,
    "normalizer": "valid_bins",
    "smoothing": 0.0,
    "check": False,
}

# COCO minival, ResNet-50 FPN, 12 epochs: README of github.com/libuyu/GHM_Detection.
PUBLISHED = {"fl_sl1": 35.6, "ghmc_sl1": 35.8, "ghmc_ghmr": 37.0}


def markdown(frame: pd.DataFrame, texts: int = 1) -> str:
    """Return a table as Markdown: the first `texts` columns to the left, the others, numbers, to the right."""
    align = ["left"] * texts + ["right"] * (frame.shape[1] - texts)
    # tabulate would otherwise read the texts as numbers again and turn 57.0 into 57.
    text = frame.to_markdown(index=False, disable_numparse=True, colalign=align)
    assert text is not None  # it is only where a file is given to write to
    return text


def main(results: Results, params: Params, compared: pd.DataFrame) -> pd.DataFrame:
    """Return a row a variant: metrics in percent, AP with its interval, and AP minus the first's with a verdict.

    Args:
        compared: of `comparison.table`.
    """
    baseline = next(iter(params.variants))
    rows = []
    for name in params.variants:
        keys = [key for key in HEADLINE if key in results.metrics[name]]
        row = {"variant": name} | {key: _percent(results, name, key) for key in keys}
        (found,) = compared.query("variant == @name and metric == 'AP'").to_dict("records")
        row[f"AP, {LEVEL}"] = between(found["low"], found["high"])
        row[f"AP minus {baseline}, {LEVEL}"] = BASELINE if name == baseline else signed(found)
        row["verdict"] = BASELINE if name == baseline else found["verdict"]
        rows.append(row)
    return pd.DataFrame(rows)


def differences(params: Params, compared: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each variant but the first, with the difference in AP, AP50 and AP75 and what it says."""
    rows = []
    for name in list(params.variants)[1:]:
        row = {"variant": name}
        for metric in METRICS:
            (found,) = compared.query("variant == @name and metric == @metric").to_dict("records")
            row[metric] = signed(found)
            row[f"{metric} is"] = found["verdict"]
        rows.append(row)
    return pd.DataFrame(rows)


def signed(found: dict[str, Any]) -> str:
    """A difference with its interval, in points."""
    return f"{100 * found['difference']:+.1f} {between(found['difference_low'], found['difference_high'], '+')}"


def between(low: float, high: float, sign: str = "") -> str:
    return f"[{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def published(params: Params) -> pd.DataFrame:
    """Return the published AP of each variant whose name the reference repository has a figure for."""
    rows = []
    for name in params.variants:
        ap, difference = DASH, DASH
        if name in PUBLISHED:
            ap = f"{PUBLISHED[name]:.1f}"
            difference = BASELINE if name == "fl_sl1" else f"{PUBLISHED[name] - PUBLISHED['fl_sl1']:+.1f}"
        rows.append({"variant": name, "published AP": ap, "minus fl_sl1": difference})
    return pd.DataFrame(rows)


def per_class(results: Results, params: Params) -> pd.DataFrame:
    """Return AP in percent, a row a class in the data set's order, with the number of boxes it is measured on."""
    boxes = Counter(box["category_id"] for box in results.truth["annotations"] if not box.get("iscrowd"))
    ids = {category["name"]: category["id"] for category in results.truth["categories"]}
    rows = []
    for name in results.manifest["classes"]:
        row = {"class": name, "boxes": f"{boxes[ids[name]]:,}"}
        rows.append(row | {variant: _percent(results, variant, f"AP_{name}") for variant in params.variants})
    return pd.DataFrame(rows)


def training(results: Results, params: Params) -> pd.DataFrame:
    """Return how each variant was trained: its losses with their parameters, revision and time a seed."""
    rows = []
    for name, variant in params.variants.items():
        contexts = results.contexts[name]
        rows.append(
            {
                "variant": name,
                "classification loss": _loss(params, variant.cls),
                "box loss": _loss(params, variant.box),
                "revision": distinct(context["revision"] for context in contexts),
                "minutes a seed": f"{np.mean([context['seconds'] for context in contexts]) / 60:.1f}",
            }
        )
    return pd.DataFrame(rows)


def distinct(values: Iterable[str]) -> str:
    """Return the different texts, in order of appearance, as one."""
    return ", ".join(dict.fromkeys(values))


def _percent(results: Results, variant: str, key: str) -> str:
    """Write a fraction in percent with its spread over seeds; -1 means that there was nothing to measure."""
    mean = results.metrics[variant][key]
    return DASH if mean < 0 else f"{100 * mean:.1f}" + _spread([seed[key] for seed in results.seed_metrics[variant]])


def _spread(seeds: list[float]) -> str:
    return f" ± {100 * np.std(seeds, ddof=1):.1f}" if len(seeds) > 1 else ""


def _loss(params: Params, section: str) -> str:
    loss = params.losses[section]
    values = loss.arguments if isinstance(loss, OtherLoss) else dataclasses.asdict(loss)
    # The options of GHM that are off make the reference's loss, which needs no words.
    shown = {key: value for key, value in values.items() if key not in OFF or value != OFF[key]}
    return f"{section}: " + ", ".join(f"{key} {value}" for key, value in shown.items())
