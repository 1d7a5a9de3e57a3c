"""The tables of the report and of studies, and how they write intervals."""

import inspect
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from ghm import losses, truth
from ghm.evaluation import bootstrap
from ghm.evaluation.bootstrap import Interval
from ghm.params import Loss, Params
from ghm.report import names
from ghm.report.comparison import BASELINE, Compared
from ghm.report.inputs import Results
from ghm.words import count

HEADLINE = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100", "VOC_AP50")  # the last one on VOC only
FIGURES = {"precision": "precision", "recall": "recall", "f1": "F1"}  # of an outcome -> how tables name them
DASH = "–"  # noqa: RUF001  (what a table shows where there is no number)
LEVEL = f"{100 * bootstrap.LEVEL:g} %"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """Return a table as Markdown: the first `texts` columns to the left, the others, numbers, to the right.

    What stands in the head and in the first `texts` columns is shown as it is; the rest may have markup.
    """
    plain = [[*map(names.markdown, row[:texts]), *row[texts:]] for row in rows]
    align = ["left"] * texts + ["right"] * (len(head) - texts)
    # tabulate would otherwise read the texts as numbers again and turn 57.0 into 57.
    return tabulate([*plain], [names.markdown(cell) for cell in head], "pipe", colalign=align, disable_numparse=True)


def main(results: Results, params: Params, compared: Compared) -> str:
    """Return a row for each variant: metrics in percent, AP with its interval, and AP minus the first's."""
    keys = [key for key in HEADLINE if key != "VOC_AP50" or any(key in means for means in results.metrics.values())]
    baseline = next(iter(params.variants))
    head = ["variant", *keys, f"AP, {LEVEL}", f"AP minus {names.line(baseline)}, {LEVEL}", "verdict", "detectable"]
    rows = []
    for name in params.variants:
        means = [_percent(results.metrics[name], results.seed_metrics[name], key) for key in keys]
        ap, minus = compared[name, "AP"]
        judged = [signed(minus), minus.verdict, detectable(minus.detectable)] if minus else [BASELINE, BASELINE, DASH]
        rows.append([name, *means, between(ap), *judged])
    return markdown(head, rows)


def interval(metric: Interval) -> str:
    """A metric with its interval, in percent."""
    return f"{100 * metric.estimate:.1f} {between(metric)}"


def signed(minus: Interval) -> str:
    """A difference with its interval, in points."""
    return f"{100 * minus.estimate:+.1f} {between(minus, '+')}"


def detectable(least: float | None) -> str:
    """The smallest true difference that would have got a verdict, in points."""
    return DASH if least is None else f"{100 * least:.1f}" if least < 1 else "over 100"


def between(metric: Interval, sign: str = "") -> str:
    """The ends of an interval, in percent or points."""
    return f"[{100 * metric.low:{sign}.1f}, {100 * metric.high:{sign}.1f}]"


def per_class(results: Results, params: Params) -> str:
    """Return AP in percent, a row for each class of the data set, with the number of boxes it is measured on."""
    boxes = Counter(box["category_id"] for box in results.truth["annotations"] if truth.counts(box))
    ids = {category["name"]: category["id"] for category in results.truth["categories"]}
    rows = []
    for name in results.manifest["classes"]:
        seeds = {variant: [seed["classes"] for seed in found] for variant, found in results.seed_metrics.items()}
        means = [_percent(results.metrics[variant]["classes"], seeds[variant], name) for variant in params.variants]
        rows.append([name, f"{boxes[ids[name]]:,}", *means])
    return markdown(["class", "boxes", *params.variants], rows)


def operating(results: Results, params: Params) -> str:
    """Return a row for each variant: the score of the operating point, precision, recall and F1 in percent."""
    rows = []
    for name in params.variants:
        seeds = results.outcomes[name]
        score = np.mean([seed["score"] for seed in seeds])
        rows.append([name, f"{score:.2f}", *(_mean(seeds, key) for key in FIGURES)])
    return markdown(["variant", "from score", *FIGURES.values()], rows)


def operating_per_class(results: Results, params: Params) -> str:
    """Return precision / recall / F1 in percent at the operating point, a row for each class."""
    rows = []
    for name in results.manifest["classes"]:
        seeds = {variant: [seed["classes"][name] for seed in found] for variant, found in results.outcomes.items()}
        cells = (" / ".join(_mean(found, key, spread=False) for key in FIGURES) for found in seeds.values())
        rows.append([name, f"{next(iter(seeds.values()))[0]['boxes']:,}", *cells])
    return markdown(["class", "boxes", *params.variants], rows)


def density(results: Results, params: Params) -> str:
    """Return AP in percent by the number of boxes in an image, a column for each group of images."""
    groups = next(iter(results.outcomes.values()))[0]["density"]
    head = []
    for group in groups:
        least, most = group["least"], group["most"]
        boxes = f"{least} or more" if most is None else str(least) if least == most else f"{least} to {most}"
        head.append(f"{boxes} ({count(group['images'], 'image')})")
    rows = [
        [name, *(_mean([seed["density"][n] for seed in results.outcomes[name]], "AP") for n in range(len(groups)))]
        for name in params.variants
    ]
    return markdown(["variant", *head], rows)


def training(results: Results, params: Params) -> str:
    """Return how each variant was trained: its losses with their parameters, revision and time per seed."""
    head = ["variant", "classification loss", "box loss", "revision", "minutes per seed"]
    rows = []
    for name, variant in params.variants.items():
        runs = results.records[name]
        shown = []
        for section, loss in {variant.cls: params.loss(name, "cls"), variant.box: params.loss(name, "box")}.items():
            # Options that are off make the reference's loss, which needs no words.
            arguments = (f"{key} {value}" for key, value in loss.arguments.items() if options(loss).get(key, True))
            shown.append(f"{section}: {', '.join(arguments)}")
        minutes = np.mean([run.seconds for run in runs]) / 60
        rows.append([name, *shown, distinct(run.revision for run in runs), f"{minutes:.1f}"])
    return markdown(head, rows, texts=4)


def options(loss: Loss) -> dict[str, bool]:
    """Options of a loss of this package -> whether they are on. They are its keyword-only arguments, off by default."""
    package, _, name = loss.type.rpartition(".")
    if package != "ghm" or name not in losses.__all__:
        return {}
    arguments = inspect.signature(getattr(losses, name)).parameters.values()
    known = [argument for argument in arguments if argument.kind is argument.KEYWORD_ONLY]
    return {
        argument.name: loss.arguments.get(argument.name, argument.default) != argument.default for argument in known
    }


def distinct(values: Iterable[str]) -> str:
    """Return the different texts, in order of appearance, as one."""
    return ", ".join(dict.fromkeys(values))


def _mean(seeds: Sequence[dict[str, Any]], key: str, *, spread: bool = True) -> str:
    """Write the mean over the seeds that have this fraction in percent, with its spread."""
    having = [seed for seed in seeds if key in seed]
    mean = {key: np.mean([seed[key] for seed in having])} if having else {}
    return _percent(mean, having if spread else [], key)


def _percent(mean: dict[str, Any], seeds: list[dict[str, Any]], key: str) -> str:
    """Write a fraction in percent with its spread over seeds; a dash where there was nothing to measure."""
    if key not in mean:
        return DASH
    spread = f" ± {100 * np.std([seed[key] for seed in seeds], ddof=1):.1f}" if len(seeds) > 1 else ""
    return f"{100 * mean[key]:.1f}{spread}"
