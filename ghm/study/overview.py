"""The first part of the page of a study of data sets: one table, one figure, and how to read them."""

from collections import Counter
from typing import Any

from matplotlib.lines import Line2D

from ghm.evaluation.bootstrap import UNCLEAR, Difference
from ghm.report import names
from ghm.report.style import GREY, Plot, colours, panels
from ghm.report.tables import DASH, LEVEL, interval, markdown, signed
from ghm.report.words import described
from ghm.study.comparison import Comparison
from ghm.words import count

POOLED = "pooled"
VERDICTS = ("better", "worse", UNCLEAR)
APART = 0.8  # of the height of a data set is taken by its marks


def table(result: Comparison) -> str:
    """Data sets down, curves across; below them pooled differences, and the number of verdicts of each kind."""
    reference, *others = result.study.curves
    head = ["data set", f"{names.line(reference)}, AP on {result.splits[-1]}"]
    head += [f"{names.line(curve)}, difference" for curve in others]
    rows = []
    for condition in result.study.conditions:
        row = result.answer(condition, reference)
        ap = row and row.intervals["AP"]
        rows.append([condition, interval(ap) if ap else DASH])
        for curve in others:
            minus = _minus(result, condition, curve)
            rows[-1].append(_cell(minus, _seeds(result, condition, curve)) if minus else "missing")
    pooled = [minus and _cell(minus) for minus in (result.pooled[curve]["AP"] for curve in others)]
    rows.append([POOLED, DASH, *(cell or "left out: not on all data sets" for cell in pooled)])
    counts = [_count(result, curve) for curve in others]
    rows.append([" / ".join(VERDICTS), DASH, *(" / ".join(str(each[name]) for name in VERDICTS) for each in counts)])
    return markdown(head, rows)


def reading(result: Comparison) -> str:
    """Say how to read table and figure."""
    reference = names.markdown(result.study.reference)
    number = sum(bool(row.differences["AP"]) for row in result.rows if row.answers)
    families = sum(bool(metrics["AP"]) for metrics in result.pooled.values())
    return (
        f"AP in percent, with {LEVEL} intervals; a difference is AP minus that of {reference}, on the same images and "
        f"seeds. **Bold**: a verdict, corrected for all {count(number, 'comparison')} of all data sets together "
        "([Holm's procedure](../docs/report.md#several-comparisons)). *Pooled*: the mean over these "
        f"{len(result.study.conditions)} data sets, each weighing the same, with [its own error]"
        f"(../docs/experiments.md#data-sets); its verdicts ({count(families, 'comparison')}) are corrected apart. It "
        "says nothing of data sets that are not here."
    )


def setting(result: Comparison) -> list[str]:
    """Say of each data set what was trained how, a line of each kind for those that have it in common."""
    lines, sets = [], result.data_sets.items()
    for condition, data in sets:
        images = " and ".join(f"{number:,} of `{split}`" for split, number in data.images.items())
        epochs = " or ".join(dict.fromkeys(count(record.epochs, "epoch") for record in data.records))
        checksums = ", ".join(dict.fromkeys(record.conditions["data"] for record in data.records))
        lines.append(
            f"- **Data set {names.markdown(condition)}**: {count(data.records[0].images, 'image')} to train, {epochs} "
            f"(checksum {checksums}); measured on {images}."
        )
    each = [described(data.records, data.parameters, result.study.seeds) for _, data in sets]
    for kind in zip(*each, strict=True):
        having: dict[str, list[str]] = {}
        for line, (condition, _) in zip(kind, sets, strict=True):
            having.setdefault(line, []).append(names.markdown(condition))
        for line, conditions in having.items():
            lines.append(line if len(having) == 1 else line.replace("**:", f"**, {', '.join(conditions)}:", 1))
    return lines


def draw(result: Comparison) -> Plot:
    """Draw each curve's difference to the reference, a row for each data set and one for all, pooled."""
    reference, *others = result.study.curves
    rows, by_curve = [*result.study.conditions, POOLED], colours(result.study.curves)
    marks: dict[str, Any] = {"color": GREY, "linestyle": "none", "markersize": 6}
    extra = [
        Line2D([], [], label=UNCLEAR, marker="o", markerfacecolor="none", **marks),
        Line2D([], [], label=POOLED, marker="D", **marks),
    ]
    height = 0.5 + len(rows) * (0.25 + 0.14 * len(others))
    figure, (ax,) = panels(result.study.curves, height=height, extra=extra)
    ax.axvline(0, color=by_curve[reference])
    for number, row in enumerate(rows):
        for place, curve in enumerate(others):
            minus = result.pooled[curve]["AP"] if number == len(rows) - 1 else _minus(result, row, curve)
            if minus:
                y = number + APART * ((place + 0.5) / len(others) - 0.5)
                low, middle, high = (100 * value for value in (minus.low, minus.estimate, minus.high))
                shape: dict[str, Any] = {"marker": "D" if number == len(rows) - 1 else "o", "markersize": 6}
                shape["markerfacecolor"] = "white" if minus.verdict == UNCLEAR else by_curve[curve]
                ends = ([middle - low], [high - middle])
                ax.errorbar(middle, y, xerr=ends, color=by_curve[curve], capsize=3, elinewidth=1.2, **shape)
    ax.axhline(len(rows) - 1.5, color=GREY, linewidth=0.8)
    ax.set_yticks(range(len(rows)), [names.figure(row) for row in rows])
    ax.set(xlabel=f"AP on {result.splits[-1]} minus that of {names.figure(reference)}", ylim=(len(rows) - 0.5, -0.5))
    ax.grid(visible=False, axis="y")
    plain = names.markdown(reference)
    return Plot(
        figure,
        f"AP on {result.splits[-1]} minus that of {plain}, by data set, with {LEVEL} intervals",
        f"In each row from top to bottom as in the legend. Hollow: not distinguishable from {plain}, among all "
        "comparisons. Diamonds: the mean over the data sets.",
    )


def _minus(result: Comparison, condition: str, curve: str) -> Difference | None:
    row = result.answer(condition, curve)
    return row.differences["AP"] if row else None


def _seeds(result: Comparison, condition: str, curve: str) -> int:
    row = result.answer(condition, curve)
    return row.paired if row else 0


def _cell(minus: Difference, seeds: int = 0) -> str:
    verdict = minus.verdict if minus.verdict == UNCLEAR else f"**{minus.verdict}**"
    return f"{signed(minus)} {verdict}" + " (one seed)" * (seeds == 1)


def _count(result: Comparison, curve: str) -> Counter[str]:
    """How many data sets give each verdict."""
    differences = (_minus(result, condition, curve) for condition in result.study.conditions)
    return Counter(minus.verdict for minus in differences if minus)
