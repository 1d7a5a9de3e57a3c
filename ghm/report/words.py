"""The sentences of the report: the answer, what was run, how to read the tables."""

import itertools
from collections.abc import Sequence

from ghm.evaluation.bootstrap import LEVEL, POWER, RESAMPLES, UNCLEAR, Difference
from ghm.params import Params
from ghm.report import names, tables
from ghm.report.comparison import Compared
from ghm.report.inputs import Results
from ghm.runs import Record
from ghm.words import count

NAMED = 5  # images that cannot be read; the others are counted


def answer(params: Params, compared: Compared) -> str:
    """Say for each variant whether it is better than the first one, in AP."""
    first, *others = params.variants
    if not others:
        return f"There is nothing to compare {names.code(first)} with: add a variant to `params.yaml`."
    differences = {name: compared[name, "AP"][1] for name in others}
    lines = [f"- {names.code(name)} {judged(minus, names.code(first))}" for name, minus in differences.items() if minus]
    return "\n\n".join(["\n".join(lines), *seen([*filter(None, differences.values())]), scope(params.seeds)])


def judged(minus: Difference, other: str) -> str:
    """Say whether something is better than `other`, by the interval of its AP minus that of `other`."""
    unclear = minus.verdict == UNCLEAR
    preposition = "from" if unclear else "than"
    interval = f"{tables.LEVEL} interval {100 * minus.low:+.1f} to {100 * minus.high:+.1f}"
    alone = f", which leaves out 0, but not clearly enough among {minus.comparisons} comparisons"
    interval += alone * (unclear and minus.low < minus.high and not minus.low <= 0 <= minus.high)
    return f"is **{minus.verdict}** {preposition} {other}: {100 * minus.estimate:+.1f} AP, {interval}."


def seen(differences: Sequence[Difference]) -> list[str]:
    """Say that verdicts hold together, and what they could have missed: a paragraph, if there is anything to say."""
    known = sorted(minus.detectable for minus in differences if minus.detectable is not None)
    ends = dict.fromkeys(tables.detectable(end) for end in (known[:1] + known[-1:]))
    lines = []
    if len(differences) > 1:
        lines.append(
            f"**{len(differences)} comparisons**: the verdicts are corrected for them. Were there no difference, "
            f"about {100 * (1 - LEVEL):.0f} in 100 such reports at most would call one or more *better* or *worse*."
        )
    if known:
        lines.append(
            f"**What could be seen**: a true difference of {' to '.join(ends)} AP "
            f"gets its verdict in about {100 * POWER:.0f} of 100 cases; smaller ones are missed more often."
        )
    return [" ".join(lines)] * bool(lines)


def scope(seeds: Sequence[int]) -> str:
    """Say what the intervals are about."""
    if len(seeds) == 1:
        return (
            "**One seed**: these intervals are about these trained detectors on other images. Another training run of "
            "the same variant differs too ([measured on the embedded data set](../benchmarks/README.md#ap-by-seed)): "
            "`seeds: [0, 1, 2]` puts that into the intervals."
        )
    return (
        f"The intervals are about the losses: other images and other training runs ({len(seeds)} seeds) are both in "
        "them."
    )


def setting(results: Results, params: Params) -> str:
    """Say in a few lines what was run."""
    split = params.evaluate.split
    measured = results.manifest["splits"][split]
    records = [*itertools.chain.from_iterable(results.records.values())]
    shares = (params.data.label_noise, "have a wrong class"), (params.data.box_noise, "have moved edges")
    wrong = "".join(f" **{share:.0%} of the training boxes {what}.**" for share, what in shares if share > 0)
    return "\n".join(
        [
            "Variants of one detector, trained on the same images in the same way: only the losses differ.",
            "",
            f"- **Data**: `{records[0].dataset}`, {count(len(results.manifest['classes']), 'class|classes')}, "
            f"{count(records[0].images, 'image')} to train, {measured['images']:,} to measure (`{split}`, "
            f"{count(measured['boxes'], 'box|boxes')}).{wrong}",
            *_left_out(results, split, records),
            *described(records, params, params.seeds),
        ]
    )


def _left_out(results: Results, split: str, records: Sequence[Record]) -> list[str]:
    """Count and name the images that cannot be read. A training run names those it finds by itself in its log alone."""
    known = {name: set(results.manifest["splits"][name]["unreadable"]) for name in ("train", split)}
    known[split].update(*(metrics["unreadable_images"] for metrics in results.metrics.values()))
    in_training = max(record.unreadable_images for record in records)
    parts = []
    for name, images in known.items():
        number = max(len(images), in_training if name == "train" else 0)
        shown = ", ".join(names.markdown(image) for image in sorted(images)[:NAMED])
        rest = f" and {number - NAMED} more" * (number > NAMED)
        if number:
            parts.append(f"{count(number, 'image')} of `{name}`" + f" ({shown}{rest})" * bool(images))
    return [f"- **Left out**, because they cannot be read: {' and '.join(parts)}."] if parts else []


def described(records: Sequence[Record], params: Params, seeds: Sequence[int]) -> list[str]:
    """Say which model was trained how, on which machine: a line for each."""
    train, model = params.train, params.model
    starts = (
        f"all weights from a trained detector ({names.markdown(record.load_from)})"
        if record.load_from
        else f"backbone pretrained ({names.markdown(record.pretrained)})"
        if record.pretrained
        else "**no pretrained backbone**"
        for record in records
    )
    versions = (", ".join(f"{name} {version}" for name, version in record.versions.items()) for record in records)
    return [
        f"- **Model**: RetinaNet, {model.backbone} with {model.base_channels} base channels, FPN of {model.levels} "
        f"levels, {tables.distinct(f'{record.parameters / 1e6:.1f} M parameters' for record in records)}, "
        f"{tables.distinct(starts)}.",
        f"- **Training**: {tables.distinct(count(record.epochs, 'epoch') for record in records)}, "
        f"{count(train.batch_size, 'image')} per step, {train.optimizer}, learning rate {train.learning_rate:g} "
        f"({train.schedule}), seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}.",
        f"- **Machine**: {names.markdown(tables.distinct(record.device for record in records))}; "
        f"{tables.distinct(versions)}; revision {tables.distinct(record.revision for record in records)}.",
    ]


def operating(results: Results, params: Params) -> str:
    """Say from which score on detections are counted, and where it was chosen."""
    split, chosen_on = params.evaluate.split, results.outcomes[next(iter(params.variants))][0]["chosen_on"]
    flattered = " It was chosen on the images that it is reported on, which flatters it." * (chosen_on == split)
    return (
        f"In percent on `{split}`, at IoU 0.5, of the detections from one score on: that of the best F1 on "
        f"`{chosen_on}`, all classes together, of each trained detector.{flattered} `python -m ghm.detect` shows boxes "
        "from it on."
    )


def reading(params: Params) -> str:
    """Say how to read the main table."""
    spread = "" if len(params.seeds) == 1 else f" Mean ± standard deviation over {len(params.seeds)} seeds."
    return (
        f"COCO metrics in percent on `{params.evaluate.split}`: APs, APm and APl for boxes of up to 32², up to 96² and "
        f"more square pixels ({tables.DASH}: there are none), AR100 the recall with 100 detections per image.{spread} "
        + reading_intervals(names.code(next(iter(params.variants))), len(params.variants) - 1)
    )


def reading_intervals(reference: str, comparisons: int) -> str:
    """Say how to read intervals, and verdicts on so many differences to `reference`."""
    side = f"the interval of the difference to {reference} lies on one side of 0"
    if comparisons > 1:
        side += (
            ", also after it was widened for the number of comparisons ([Holm's procedure]"
            "(../docs/report.md#several-comparisons)); those shown are not widened"
        )
    return (
        f"Intervals hold the truth in {100 * LEVEL:g} of 100 cases, each for itself: images are resampled "
        f"{RESAMPLES:,} times, the same for all that is compared; several seeds enter by the spread between them "
        f"([checked by simulation](../benchmarks/README.md#do-the-intervals-hold-the-truth)). *Better* and *worse* "
        f"mean that {side}. *Detectable* is the true difference that gets such a verdict in about {100 * POWER:.0f} "
        "of 100 cases, with as many images and seeds as here."
    )
