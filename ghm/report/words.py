"""The sentences of the report: the answer, what was run, how to read the tables."""

import itertools
from typing import Any

import pandas as pd

from ghm.evaluation.bootstrap import LEVEL, RESAMPLES
from ghm.params import Params
from ghm.report import comparison, names, tables
from ghm.report.inputs import Results
from ghm.words import count

NAMED = 5  # images at most


def answer(params: Params, compared: pd.DataFrame) -> str:
    """Say for each variant whether it is better than the first one, in AP.

    Args:
        compared: of `comparison.table`.
    """
    first, *others = params.variants
    lines = []
    for name in others:
        found = comparison.row(compared, name, "AP")
        lines.append(f"- {names.code(name)} {_verdict(found, first)}")
    if not lines:
        return f"There is nothing to compare {names.code(first)} with: add a variant to `params.yaml`."
    return "\n".join([*lines, "", _scope(params)])


def _verdict(found: dict[str, Any], first: str) -> str:
    points = f"{100 * found['difference']:+.1f} AP"
    low, high = f"{100 * found['difference_low']:+.1f}", f"{100 * found['difference_high']:+.1f}"
    said = "from" if found["verdict"] == "not distinguishable" else "than"
    return f"is **{found['verdict']}** {said} {names.code(first)}: {points}, {tables.LEVEL} interval {low} to {high}."


def _scope(params: Params) -> str:
    """Say what the intervals are about."""
    if len(params.seeds) == 1:
        return (
            "**One seed**: these intervals are about these trained detectors on other images. Another training run of "
            "the same variant differs too ([measured on the embedded data set](../benchmarks/README.md#ap-by-seed)): "
            "`seeds: [0, 1, 2]` in `params.yaml` puts that into the intervals."
        )
    return (
        f"The intervals are about the losses: other images and other training runs ({len(params.seeds)} seeds) are "
        "both in them."
    )


def setting(results: Results, params: Params) -> str:
    """Say in a few lines what was run."""
    train, model = params.train, params.model
    split = params.evaluate.split
    measured = results.manifest["splits"][split]
    records = list(itertools.chain.from_iterable(results.records.values()))
    first = records[0]
    noise = params.data.label_noise
    wrong = f" **{noise:.0%} of the training boxes have a wrong class.**" if noise > 0 else ""
    backbone = (
        f"all weights from a trained detector ({names.markdown(first.load_from)})"
        if first.load_from
        else f"backbone pretrained ({names.markdown(first.pretrained)})"
        if first.pretrained
        else "**no pretrained backbone**"
    )
    device = names.markdown(tables.distinct(run.device for run in records))
    versions = (", ".join(f"{name} {version}" for name, version in run.versions.items()) for run in records)
    seeds = ", ".join(map(str, params.seeds))
    return "\n".join(
        [
            "Variants of one detector, trained on the same images in the same way: only the losses differ.",
            "",
            f"- **Data**: `{first.dataset}`, {count(len(results.manifest['classes']), 'class|classes')}, "
            f"{count(first.images, 'image')} to train, {measured['images']:,} to measure (`{split}`, "
            f"{count(measured['boxes'], 'box|boxes')}).{wrong}"
            f"{_warnings(results, split)}",
            *left_out(results, split),
            f"- **Model**: RetinaNet, {model.backbone} with {model.base_channels} base channels, FPN of "
            f"{model.levels} levels, {first.parameters / 1e6:.1f} M parameters, {backbone}.",
            f"- **Training**: {count(first.epochs, 'epoch')}, {count(train.batch_size, 'image')} per step, "
            f"{train.optimizer}, learning rate {train.learning_rate:g} ({train.schedule}), "
            f"seed{'s' * (len(params.seeds) > 1)} {seeds}.",
            f"- **Machine**: {device}; {tables.distinct(versions)}; "
            f"revision {tables.distinct(run.revision for run in records)}.",
        ]
    )


def _warnings(results: Results, split: str) -> str:
    """Say what the check of the data set found in the splits that were used."""
    found = [
        f"{number:,} {kind.replace('_', ' ')} in `{name}`"
        for name in ("train", split)
        for kind, number in results.manifest["splits"][name]["warnings"].items()
    ]
    return f" Found by its check: {', '.join(found)}." if found else ""


def left_out(results: Results, split: str) -> list[str]:
    """Say which images could not be read, if any: a list with one line."""
    known = {name: set(results.manifest["splits"][name].get("unreadable", [])) for name in ("train", split)}
    known[split] |= {image for found in results.metrics.values() for image in found["unreadable_images"]}
    counts = {name: len(images) for name, images in known.items()}
    runs = itertools.chain.from_iterable(results.records.values())
    counts["train"] = max(counts["train"], *(run.unreadable_images for run in runs))
    parts = []
    for name, number in counts.items():
        if number:
            shown = [names.markdown(image) for image in sorted(known[name])[:NAMED]]
            rest = f", and {number - len(shown)} more" if shown and number > len(shown) else ""
            listed = f" ({', '.join(shown)}{rest})" if shown else ""
            parts.append(f"{count(number, 'image')} of `{name}`{listed}")
    if not parts:
        return []
    counted = f" One of `{split}` counts as an image in which nothing was found." if counts[split] else ""
    return [f"- **Left out**, because they cannot be read: {' and '.join(parts)}.{counted}"]


def reading(params: Params) -> str:
    """Say how to read the main table."""
    spread = "" if len(params.seeds) == 1 else f" Mean ± standard deviation over {len(params.seeds)} seeds."
    first = next(iter(params.variants))
    return (
        f"COCO metrics in percent on `{params.evaluate.split}`: APs, APm and APl for boxes of up to 32², up to 96² and "
        f"more square pixels ({tables.DASH}: there are none), AR100 the recall with 100 detections per image.{spread} "
        f"Intervals hold the truth in {100 * LEVEL:g} of 100 cases, each for itself: images are resampled "
        f"{RESAMPLES:,} times, the same for all variants; several seeds enter by the spread between them "
        f"([checked by simulation](../benchmarks/README.md#do-the-intervals-hold-the-truth)). *Better* and *worse* "
        f"mean that the interval of the difference to {names.code(first)} lies on one side of 0."
    )


def commands() -> str:
    return "\n".join(
        [
            "```shell",
            "make repro                      # this report, from a fresh clone",
            "dvc exp run -S ghmc.bins=10     # change a parameter: trains again only what depends on it",
            "dvc metrics diff                # what that did to AP",
            "dvc plots show                  # the curves in a browser, data in plots/",
            "```",
        ]
    )
