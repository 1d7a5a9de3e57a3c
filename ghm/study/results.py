"""`reports/studies/<name>.md`, `.png` and `.json`: what came of a study, for people and for programs."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ghm import files
from ghm.evaluation.bootstrap import METRICS, Interval
from ghm.report.style import DPI, look
from ghm.study import figure, page
from ghm.study.comparison import Comparison, Row, gather
from ghm.study.definition import Study

REPORTS = Path("reports/studies")


def write(name: str, study: Study, jobs: int, root: Path = Path()) -> str:
    """Write the three files, all or none, about the trainings that are there.

    Returns:
        The tables as text.

    Raises:
        InputError: no training is there, or two that are compared were judged on different images.
    """
    found = gather(name, study, jobs, root)
    (root / REPORTS).mkdir(parents=True, exist_ok=True)
    with look(figure.texts(study)), tempfile.TemporaryDirectory(dir=root / REPORTS, prefix=f".{name}.") as folder:
        new = Path(folder)
        plot = figure.draw(found)
        # Without matplotlib's version in the file, equal pictures are equal bytes.
        plot.figure.savefig(new / f"{name}.png", dpi=DPI, metadata={"Software": None})
        files.write_json(new / f"{name}.json", _record(found))
        files.write_text(new / f"{name}.md", page.text(found, plot))
        for path in sorted(new.iterdir()):
            path.replace(root / REPORTS / path.name)
    return page.tables(found)


def _record(found: Comparison) -> dict[str, Any]:
    """All numbers. Metrics are fractions, rounded to 4 digits."""
    versions: list[dict[str, str]] = []
    for context in found.contexts:
        if context["versions"] not in versions:
            versions.append(context["versions"])
    return {
        "study": found.name,
        "question": found.study.question,
        "parameter": found.study.parameter,
        "reference": found.study.reference,
        "seeds": found.study.seeds,
        "chosen_on": found.splits[0],
        "reported_on": found.splits[-1],
        "images": found.images,
        "context": {
            **{key: sorted({context[key] for context in found.contexts}) for key in ("dataset", "device", "revision")},
            "data": sorted({context["conditions"]["data"] for context in found.contexts}),
            "versions": versions,
            "trainings": len(found.contexts),
            "with_other_code": found.older,
        },
        "published": [{"dataset": each.dataset, "source": each.source} for each in found.study.published],
        "cells": [_cell(found, row) for row in found.rows],
    }


def _cell(found: Comparison, row: Row) -> dict[str, Any]:
    cell, difference = row.cell, row.difference()
    return {
        "condition": cell.condition,
        "curve": cell.curve,
        "value": cell.value,
        "variant": cell.variant,
        "changes": cell.changes,
        "lacking": row.lacking,
        "chosen": row.chosen,
        found.splits[0]: {"AP": {"seeds": row.chosen_on, "mean": _mean([*row.chosen_on.values()])}},
        found.splits[-1]: {metric: _metric(row, metric) for metric in METRICS},
        "difference": {metric: _bounds(row.difference(metric)) for metric in METRICS},
        "paired_seeds": row.paired,
        "verdict": difference.verdict if difference else None,
        "published": {each.dataset: each.of(cell.curve, cell.value) for each in found.study.published},
    }


def _metric(row: Row, metric: str) -> dict[str, Any]:
    seeds = {seed: round(float(each.value_B[metric][0]), 4) for seed, each in row.reported_on.items()}
    return {"seeds": seeds, **(_bounds(row.interval(metric)) or {})}


def _bounds(interval: Interval | None) -> dict[str, float] | None:
    if interval is None:
        return None
    return {"mean": round(interval.estimate, 4), "low": round(interval.low, 4), "high": round(interval.high, 4)}


def _mean(values: list[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None
