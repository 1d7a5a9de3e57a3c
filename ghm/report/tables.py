"""The tables of the report: AP, published AP, AP a class, and how each variant was trained."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from ghm import truth
from ghm.evaluation import bootstrap
from ghm.evaluation.bootstrap import METRICS
from ghm.params import Params, Role
from ghm.report import comparison, names
from ghm.report.comparison import BASELINE
from ghm.report.inputs import Results

HEADLINE = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100", "VOC_AP50")  # the last one on VOC only
DASH = "–"  # noqa: RUF001  (what a table shows where there is no number)
LEVEL = f"{100 * bootstrap.LEVEL:g} %"
ONE_IN = f"one in {1 / (1 - bootstrap.LEVEL):.0f}"  # so often an interval misses the truth
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


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """Return a table as Markdown: the first `texts` columns to the left, the others, numbers, to the right.

    What stands in the head and in the first `texts` columns is shown as it is; the rest may have markup.
    """
    plain = [[*map(names.markdown, row[:texts]), *row[texts:]] for row in rows]
    align = ["left"] * texts + ["right"] * (len(head) - texts)
    # tabulate would otherwise read the texts as numbers again and turn 57.0 into 57.
    return tabulate([*plain], [names.markdown(cell) for cell in head], "pipe", colalign=align, disable_numparse=True)


def main(results: Results, params: Params, compared: pd.DataFrame) -> str:
    """Return a row a variant: metrics in percent, AP with its interval, and AP minus the first's with a verdict.

    Args:
        compared: of `comparison.table`.
    """
    keys = [key for key in HEADLINE if key != "VOC_AP50" or any(key in each for each in results.metrics.values())]
    baseline = next(iter(params.variants))
    head = ["variant", *keys, f"AP, {LEVEL}", f"AP minus {names.line(baseline)}, {LEVEL}", "verdict"]
    rows = []
    for name in params.variants:
        own = [_percent(results.metrics[name], results.seed_metrics[name], key) for key in keys]
        found = comparison.row(compared, name, "AP")
        minus = BASELINE if name == baseline else signed(found)
        rows.append([name, *own, between(found["low"], found["high"]), minus, found["verdict"]])
    return markdown(head, rows)


def differences(params: Params, compared: pd.DataFrame) -> str:
    """Return a row for each variant but the first, with the difference in AP, AP50 and AP75 and what it says."""
    head = ["variant", *(column for metric in METRICS for column in (metric, f"{metric} is"))]
    rows = []
    for name in list(params.variants)[1:]:
        row = [name]
        for metric in METRICS:
            found = comparison.row(compared, name, metric)
            row += [signed(found), found["verdict"]]
        rows.append(row)
    return markdown(head, rows)


def signed(found: dict[str, Any]) -> str:
    """A difference with its interval, in points."""
    return f"{100 * found['difference']:+.1f} {between(found['difference_low'], found['difference_high'], '+')}"


def between(low: float, high: float, sign: str = "") -> str:
    return f"[{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def published(params: Params) -> str:
    """Return the published AP of each variant whose name the reference repository has a figure for."""
    rows = []
    for name in params.variants:
        ap, difference = DASH, DASH
        if name in PUBLISHED:
            ap = f"{PUBLISHED[name]:.1f}"
            difference = BASELINE if name == "fl_sl1" else f"{PUBLISHED[name] - PUBLISHED['fl_sl1']:+.1f}"
        rows.append([name, ap, difference])
    return markdown(["variant", "published AP", "minus fl_sl1"], rows)


def per_class(results: Results, params: Params) -> str:
    """Return AP in percent, a row a class in the data set's order, with the number of boxes it is measured on."""
    boxes = Counter(box["category_id"] for box in results.truth["annotations"] if truth.counts(box))
    ids = {category["name"]: category["id"] for category in results.truth["categories"]}
    rows = []
    for name in results.manifest["classes"]:
        seeds = {variant: [seed["classes"] for seed in found] for variant, found in results.seed_metrics.items()}
        own = [_percent(results.metrics[variant]["classes"], seeds[variant], name) for variant in params.variants]
        rows.append([name, f"{boxes[ids[name]]:,}", *own])
    return markdown(["class", "boxes", *params.variants], rows)


def training(results: Results, params: Params) -> str:
    """Return how each variant was trained: its losses with their parameters, revision and time a seed."""
    head = ["variant", "classification loss", "box loss", "revision", "minutes per seed"]
    rows = []
    for name, variant in params.variants.items():
        contexts = results.contexts[name]
        minutes = np.mean([context["seconds"] for context in contexts]) / 60
        losses = [_loss(params, name, variant.cls, "cls"), _loss(params, name, variant.box, "box")]
        rows.append([name, *losses, distinct(context["revision"] for context in contexts), f"{minutes:.1f}"])
    return markdown(head, rows, texts=4)


def distinct(values: Iterable[str]) -> str:
    """Return the different texts, in order of appearance, as one."""
    return ", ".join(dict.fromkeys(values))


def _percent(mean: dict[str, Any], seeds: list[dict[str, Any]], key: str) -> str:
    """Write a fraction in percent with its spread over seeds; a dash where there was nothing to measure."""
    return f"{100 * mean[key]:.1f}" + _spread([seed[key] for seed in seeds]) if key in mean else DASH


def _spread(seeds: list[float]) -> str:
    return f" ± {100 * np.std(seeds, ddof=1):.1f}" if len(seeds) > 1 else ""


def _loss(params: Params, variant: str, section: str, role: Role) -> str:
    values = params.loss(variant, role).arguments
    # The options of GHM that are off make the reference's loss, which needs no words.
    shown = {key: value for key, value in values.items() if key not in OFF or value != OFF[key]}
    return f"{section}: " + ", ".join(f"{key} {value}" for key, value in shown.items())
