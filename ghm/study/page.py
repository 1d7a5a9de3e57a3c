"""`reports/studies/<name>.md`, `.png` and `.json`: what came of a study, for people and for programs."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ghm import files
from ghm.report import names
from ghm.report.style import Plot, look
from ghm.report.tables import DASH, LEVEL, detectable, distinct, interval, markdown, signed
from ghm.report.words import described, judged, reading_intervals, scope, seen
from ghm.study import figure, overview
from ghm.study.comparison import Comparison, Row
from ghm.words import count, label

REPORTS = Path("reports/studies")


def write(result: Comparison) -> str:
    """Write the three files, all or none; return the tables as text."""
    study, name = result.study, result.name
    REPORTS.mkdir(parents=True, exist_ok=True)
    named = [*study.curves, *study.conditions, *map(label, study.values)]
    with look(named), tempfile.TemporaryDirectory(dir=REPORTS, prefix=f".{name}.") as folder:
        new = Path(folder)
        plot = overview.draw(result) if result.data_sets else figure.draw(result)
        plot.save(new, name)
        files.write_json(new / f"{name}.json", numbers(result))
        files.write_text(new / f"{name}.md", text(result, plot))
        for path in sorted(new.iterdir()):
            path.replace(REPORTS / path.name)
    if result.data_sets:
        return overview.table(result)
    return "\n\n".join(f"{names.line(condition)}\n\n{_table(result, condition)}" for condition in study.conditions)


def numbers(result: Comparison) -> dict[str, Any]:
    """The study and all its numbers, to 4 digits. Metrics are fractions."""
    runs = {key: sorted({getattr(run, key) for run in result.records}) for key in ("dataset", "device", "revision")}
    runs |= {key: sorted({run.conditions[key] for run in result.records}) for key in ("data", "code", "libraries")}
    content = {
        **asdict(result.study),
        "images": {name: data.images for name, data in result.data_sets.items()} or result.images,
        "chosen_on": result.splits[0],
        "reported_on": result.splits[-1],
        "runs": {**runs, "number": len(result.records)},
        "rows": [asdict(row) for row in result.rows],
    }
    if result.data_sets:
        content["pooled"] = {
            curve: {metric: minus and asdict(minus) for metric, minus in metrics.items()}
            for curve, metrics in result.pooled.items()
        }
    return json.loads(json.dumps(content), parse_float=lambda number: float(f"{float(number):.4g}"))


def text(result: Comparison, plot: Plot) -> str:
    """The whole page, in Markdown."""
    study = result.study
    blocks = [f"# {study.question}", *_incomplete(result)]
    if result.data_sets:
        blocks += [overview.table(result), overview.reading(result), plot.markdown(result.name), _setting(result)]
    else:
        blocks[1:1] = [_setting(result)]
        blocks += [plot.markdown(result.name)]
    blocks += ["## Result", _reading(result)]
    for condition, changes in study.conditions.items():
        listed = ", ".join(f"`{key}: {'null' if value is None else value}`" for key, value in changes.items())
        blocks.append(f"### {names.markdown(condition)}" + f" ({listed})" * bool(changes))
        blocks += [*_sentences(result, condition), _table(result, condition)]
    if study.published:
        blocks += ["## Published figures, not comparable in level", study.published.strip()]
    blocks += ["## Do it again", f"```shell\nmake study NAME={result.name}\n```"]
    return "\n\n".join(blocks).replace("](../", "](../../") + "\n"


def _setting(result: Comparison) -> str:
    """Say in a few lines what was run, and where."""
    records = result.records
    images = " and ".join(f"{number:,} of `{split}`" for split, number in result.images.items())
    mixed = " **They were not all made with the same training code.**"
    one = [
        f"- **Data**: `{distinct(run.dataset for run in records)}`, {count(records[0].images, 'image')} to train "
        f"(checksum {distinct(run.conditions['data'] for run in records)}), measured on {images}.",
        *described(records, result.parameters, result.study.seeds),
    ]
    lines = [
        *(overview.setting(result) if result.data_sets else one),
        f"- **Runs**: {len(records)}, {sum(run.seconds for run in records) / 3600:.1f} hours in all. What the tables "
        "do not name is as in `params.yaml`." + mixed * (len({run.conditions["code"] for run in records}) > 1),
    ]
    return "\n".join(lines)


def _incomplete(result: Comparison) -> list[str]:
    """Name the training runs that are missing, and why."""
    lines = []
    for row in result.rows:
        for seed, reason in row.missing.items():
            name = f"{names.markdown(row.cell.condition)}, {names.markdown(row.cell.curve)}"
            at = f" at {_value(row)}" if row.cell.value is not None else ""
            lines.append(f"- {name}{at}, seed {seed}: {names.markdown(reason)}")
    if not lines:
        return []
    total = len(result.rows) * len(result.study.seeds)
    return [f"**Not complete: {len(lines)} of {total} training runs are missing.**", "\n".join(lines)]


def _reading(result: Comparison) -> str:
    """Say how to read the tables."""
    study, choose, report = result.study, result.splits[0], result.splits[-1]
    same = f" at the same `{study.parameter}`" if study.curves[study.reference].swept else ""
    compared = [(row, minus) for row in result.rows if (minus := row.differences["AP"])]
    apart = study.chooses and choose != report
    answers = [minus for row, minus in compared if row.answers or not apart]
    read = reading_intervals(names.markdown(study.reference) + same, len(compared))
    lines = [f"AP in percent. {read}", *seen(answers), scope(study.seeds)]
    if study.chooses:
        others = len(compared) - len(answers)
        fair = (
            f"Its verdict on `{report}` is fair"
            + ", and corrected for all that was chosen, under all conditions" * (len(answers) > 1)
            + f"; other rows ({count(others, 'comparison')}) are corrected apart" * (others > 0)
            + "."
        )
        biased = (
            "It was chosen by the images it is reported on: its AP and its difference lean upward. Its verdict is "
            "corrected for all values."
        )
        best = f"**Bold**: the value with the best mean AP on `{choose}`."
        lines.append(f"{best} {biased if choose == report else fair}")
    return "\n\n".join(lines)


def _sentences(result: Comparison, condition: str) -> list[str]:
    """Say what came of every curve but the reference: of its chosen value, or of all."""
    lines = []
    for curve in list(result.study.curves)[1:]:
        chooses = result.study.chooses and result.study.curves[curve].swept
        for row in result.of(condition, curve):
            minus, ap = row.differences["AP"], row.intervals["AP"]
            if minus is None or ap is None or (chooses and not row.chosen):
                continue
            words = names.markdown(curve)
            if row.cell.value is not None:
                words += f" with `{result.study.parameter}` **{_value(row)}**"
            if row.chosen:
                words += f", chosen on `{result.splits[0]}` with {100 * row.rank[1]:.1f} AP,"
            words += f" has {100 * ap.estimate:.1f} AP on `{result.splits[-1]}` and "
            lines.append(f"- {words}{judged(minus, names.markdown(result.study.reference))}")
    return ["\n".join(lines)] * bool(lines)


def _table(result: Comparison, condition: str) -> str:
    study, choose, report = result.study, result.splits[0], result.splits[-1]
    head = ["curve", *([study.parameter] if study.parameter else []), "seeds", f"AP on {choose}, each seed"]
    head += [f"AP on {report}, {LEVEL}", f"minus {names.line(study.reference)}", "verdict", "detectable"]
    rows = []
    for row in (row for row in result.rows if row.cell.condition == condition):
        ap, minus = row.intervals["AP"], row.differences["AP"]
        cells = [row.cell.curve]
        if study.parameter:
            cells.append(f"**{_value(row)}**" if row.chosen else _value(row))
        cells.append(f"{len(row.chosen_on)} of {len(study.seeds)}")
        seeds = ", ".join(f"{100 * value:.1f}" for value in row.chosen_on.values())
        cells.append(f"{100 * row.rank[1]:.1f}" + f" ({seeds})" * (len(row.chosen_on) > 1) if seeds else DASH)
        cells.append(interval(ap) if ap else DASH)
        cells += [signed(minus), minus.verdict + " (one seed)" * (row.paired == 1)] if minus else [DASH, DASH]
        cells.append(detectable(minus.detectable) if minus else DASH)
        rows.append(cells)
    return markdown(head, rows)


def _value(row: Row) -> str:
    """Of the parameter; a dash where it does not concern the curve."""
    return DASH if row.cell.value is None else names.markdown(label(row.cell.value))
