"""The words and tables about a study, in Markdown."""

from collections.abc import Iterable

import numpy as np

from ghm.evaluation.bootstrap import Interval
from ghm.report import names
from ghm.report.style import Plot
from ghm.report.tables import DASH, LEVEL, ONE_IN, distinct, markdown
from ghm.study.comparison import Comparison, Row
from ghm.study.definition import label
from ghm.words import count as number

LONG = 12  # lines from which a list is folded away


def text(found: Comparison, plot: Plot) -> str:
    """The whole page."""
    study = found.study
    blocks = [f"# {study.question}", _setting(found)]
    blocks += _incomplete(found)
    blocks += [f"![{plot.alt}]({found.name}.png)", plot.caption, f"## {_heading(found)}", _reading(found)]
    for condition in study.conditions:
        blocks += [f"### {_condition(found, condition)}", _sentences(found, condition), _table(found, condition)]
    if study.published:
        blocks += ["## Published figures, not comparable in level", _published(found)]
    blocks += ["## Do it again", f"```shell\nmake study NAME={found.name}\n```"]
    return "\n\n".join(blocks) + "\n"


def tables(found: Comparison) -> str:
    """What the terminal shows: a table for each condition."""
    parts = []
    for condition in found.study.conditions:
        parts += [f"{_heading(found)}: {names.line(condition)}", _table(found, condition), _sentences(found, condition)]
    return "\n\n".join(parts)


def _heading(found: Comparison) -> str:
    choose, report = found.splits[0], found.splits[-1]
    if not found.study.chooses:
        return f"Reported on {report}"
    return f"Chosen on {choose}, reported on {report}" if choose != report else f"Chosen and reported on {report}"


def _setting(found: Comparison) -> str:
    """Say in a few lines what was run, and where."""
    model, first = found.params["model"], found.contexts[0]
    seeds = ", ".join(map(str, found.study.seeds))
    images = " and ".join(f"{count:,} of `{split}`" for split, count in found.images.items())
    parameters = distinct(f"{context['parameters'] / 1e6:.1f} M parameters" for context in found.contexts)
    epochs = distinct(number(context["epochs"], "epoch") for context in found.contexts)
    versions = (", ".join(f"{name} {number}" for name, number in run["versions"].items()) for run in found.contexts)
    hours = sum(context["seconds"] for context in found.contexts) / 3600
    data = distinct(context["conditions"]["data"] for context in found.contexts)
    older = f" **{found.older} of them were made with other training code than this.**" if found.older else ""
    return "\n".join(
        [
            f"- **Data**: `{distinct(context['dataset'] for context in found.contexts)}`, "
            f"{number(first['images'], 'image')} to train (checksum {data}), measured on {images}.",
            f"- **Model**: RetinaNet, {model['backbone']} with {model['base_channels']} base channels, {parameters}, "
            f"{epochs}; all else as in `params.yaml`.",
            f"- **Trainings**: {len(found.contexts)}; seed{'s' * (len(found.study.seeds) > 1)} {seeds}; "
            f"{hours:.1f} hours in all.{older}",
            f"- **Machine**: {distinct(run['device'] for run in found.contexts)}; {distinct(versions)}; revision "
            f"{distinct(run['revision'] for run in found.contexts)}.",
        ]
    )


def _incomplete(found: Comparison) -> list[str]:
    """Name the trainings that are missing, and why."""
    rows = [row for row in found.rows if row.lacking]
    if not rows:
        return []
    count, total = sum(len(row.lacking) for row in rows), len(found.rows) * len(found.study.seeds)
    lines = []
    for row in rows:
        seeds: dict[str, list[str]] = {}
        for seed, reason in row.lacking.items():
            seeds.setdefault(reason, []).append(str(seed))
        why = "; ".join(f"{', '.join(those)} {names.markdown(reason)}" for reason, those in seeds.items())
        lines.append(f"- {names.markdown(row.cell.condition)}, {_name(row)}: {_seeds(found, row)} seeds ({why})")
    listed = "\n".join(lines)
    if len(lines) > LONG:
        listed = f"<details><summary>{len(lines)} rows of the tables lack seeds</summary>\n\n{listed}\n\n</details>"
    return [f"**Not complete: {count} of {total} trainings are missing.** What follows is of those there are.", listed]


def _reading(found: Comparison) -> str:
    """Say how to read the tables."""
    study, choose, report = found.study, found.splits[0], found.splits[-1]
    same = f" at the same `{study.parameter}`" if study.curves[study.reference].swept else ""
    lines = [
        f"AP in percent, mean over seeds; in brackets AP of each seed, or the {LEVEL} interval, which covers other "
        f"images and other seeds. Differences to {names.markdown(study.reference)}{same} are taken seed by seed on the "
        "same images. The verdict: better or worse where their interval leaves out 0, or else not distinguishable."
    ]
    if any(len(row.paired) == 1 for row in found.rows):
        lines.append(
            "**Where there is one seed, the interval covers other images alone**: training runs that differ in nothing "
            "but the seed differ, too."
        )
    if study.chooses and choose != report:
        lines.append(
            f"**Bold**: the value with the best mean AP on `{choose}`. Its verdict on `{report}` is that of a single, "
            f"fair comparison; of the other rows, {ONE_IN} without a difference would show one."
        )
    elif study.chooses:
        lines.append(
            f"**Bold**: the value with the best mean AP. There is no split but `{report}`, so that it was chosen by "
            "the images it is reported on: its AP and its difference lean upward."
        )
    return " ".join(lines)


def _condition(found: Comparison, condition: str) -> str:
    changes = ", ".join(
        f"`{key}: {'null' if v is None else v}`" for key, v in found.study.conditions[condition].items()
    )
    return names.markdown(condition) + (f" ({changes})" if changes else "")


def _sentences(found: Comparison, condition: str) -> str:
    """Say what came of every curve but the reference."""
    study = found.study
    lines = []
    for curve in study.curves:
        rows = found.of(condition, curve)
        if curve == study.reference:
            continue
        if study.chooses and study.curves[curve].swept:
            lines.append(_choice(found, curve, next((row for row in rows if row.chosen), None)))
        elif study.curves[curve].swept:
            lines.append(f"{names.markdown(curve)} against {names.markdown(study.reference)}: {_by_value(rows)}.")
        else:
            lines.append(f"{names.markdown(curve)} gives {_result(found, rows[0])}")
    return "\n".join(f"- {line}" for line in lines)


def _choice(found: Comparison, curve: str, row: Row | None) -> str:
    if row is None:
        return f"{names.markdown(curve)}: nothing to choose from, no training is there."
    choose, report = found.splits[0], found.splits[-1]
    rows = found.of(row.cell.condition, curve)
    lacking = sum(len(each.lacking) for each in rows)
    left_out = [_value(each) for each in rows if len(each.chosen_on) < len(row.chosen_on)]
    so_far = ""
    if lacking:
        so_far = f" so far ({lacking} of {len(rows) * len(found.study.seeds)} trainings are missing"
        so_far += f"; not from {', '.join(left_out)}, with fewer seeds)" if left_out else ")"
    return (
        f"{names.markdown(curve)}: `{found.study.parameter}` **{_value(row)}** is chosen on `{choose}`{so_far}, with "
        f"{_mean(row)} AP. On `{report}` it gives {_result(found, row)}"
    )


def _result(found: Comparison, row: Row) -> str:
    interval, difference = row.interval(), row.difference()
    if interval is None:
        return "nothing yet: no training is there."
    ap = f"{100 * interval.estimate:.1f} AP"
    if difference is None:
        return f"{ap}; nothing to compare it with, {names.markdown(found.study.reference)} lacks the same seeds."
    return f"{ap}, {_signed(difference)} against {names.markdown(found.study.reference)}: **{_verdict(row)}**."


def _by_value(rows: Iterable[Row]) -> str:
    found: dict[str, list[str]] = {}
    for row in rows:
        words = f"**{_verdict(row)}**" if row.paired else "not compared, for trainings are missing,"
        found.setdefault(words, []).append(_value(row))
    return "; ".join(f"{words} at {', '.join(values)}" for words, values in found.items())


def _table(found: Comparison, condition: str) -> str:
    study, choose, report = found.study, found.splits[0], found.splits[-1]
    some_lack = any(row.lacking for row in found.rows)
    head = ["curve", *([study.parameter] if study.parameter else []), *(["seeds"] if some_lack else [])]
    head += [
        f"AP on {choose}, each seed",
        f"AP on {report}, {LEVEL}",
        f"minus {names.line(study.reference)}",
        "verdict",
    ]
    head += [f"published AP, {names.line(each.dataset)}" for each in study.published]
    rows = []
    for each in (row for row in found.rows if row.cell.condition == condition):
        row = [each.cell.curve]
        if study.parameter:
            row.append(f"**{_value(each)}**" if each.chosen else _value(each))
        if some_lack:
            row.append(_seeds(found, each))
        seeds = ", ".join(f"{100 * ap:.1f}" for ap in each.chosen_on.values())
        several = f" ({seeds})" * (len(each.chosen_on) > 1)
        interval, difference = each.interval(), each.difference()
        row += [
            f"{_mean(each)}{several}" if seeds else DASH,
            f"{100 * interval.estimate:.1f} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"
            if interval
            else DASH,
            _signed(difference) if difference else DASH,
            _verdict(each),
        ]
        for published in study.published:
            ap = published.of(each.cell.curve, each.cell.value)
            row.append(DASH if ap is None else names.markdown(ap) if isinstance(ap, str) else f"{ap:.1f}")
        rows.append(row)
    return markdown(head, rows)


def _published(found: Comparison) -> str:
    lines = [f"- {names.markdown(each.dataset)}: {each.source}" for each in found.study.published]
    return "\n".join(
        [
            *lines,
            "",
            "Other images and another model: levels cannot be compared with ours, only which value or curve is ahead.",
        ]
    )


def _name(row: Row) -> str:
    curve = names.markdown(row.cell.curve)
    return f"{curve} at {_value(row)}" if row.cell.value is not None else curve


def _value(row: Row) -> str:
    """Of the parameter; a dash where it does not concern the curve."""
    return DASH if row.cell.value is None else names.markdown(label(row.cell.value))


def _seeds(found: Comparison, row: Row) -> str:
    return f"{len(row.chosen_on)} of {len(found.study.seeds)}"


def _verdict(row: Row) -> str:
    difference = row.difference()
    if difference is None:
        return DASH
    return difference.verdict + " (one seed)" * (len(row.paired) == 1)


def _mean(row: Row) -> str:
    return f"{100 * np.mean([*row.chosen_on.values()]):.1f}"


def _signed(difference: Interval) -> str:
    return f"{100 * difference.estimate:+.1f} ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"
