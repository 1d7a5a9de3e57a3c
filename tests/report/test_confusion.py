"""Laws of the confusion matrix in the report: nothing is lost, whatever the number of classes and their names."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ghm.report import confusion
from ghm.report.inputs import read
from tests.report.conftest import fill

LONG = "a name that this class and all others have"


def shares(ax: Any) -> np.ndarray:
    """The numbers in the cells."""
    numbers = np.zeros((len(ax.get_yticks()), len(ax.get_xticks())))
    for text in ax.texts:
        column, row = text.get_position()
        numbers[int(row), int(column)] = float(text.get_text())
    return numbers


def test_the_table_has_every_count_of_every_seed(tmp_path: Path) -> None:
    params = fill(tmp_path, variants=2, seeds=2, classes=3, images=30)
    table: Any = confusion.table(read(params, tmp_path))
    assert list(table.columns) == ["variant", "true", "found", "count"] and table["count"].min() > 0
    for variant in params.variants:
        expected: Counter[tuple[str, str]] = Counter()
        for seed in params.seeds:
            path = tmp_path / f"detections/{variant}/seed_{seed}/outcome.json"
            for true, found, count in json.loads(path.read_text())["confusion"]:
                expected[true or "", found or ""] += count
        rows = table[table["variant"] == variant].fillna({"true": "", "found": ""})
        assert dict(zip(zip(rows["true"], rows["found"], strict=True), rows["count"], strict=True)) == expected


@pytest.mark.parametrize("classes", [1, 3, 12, 20, 80])
def test_each_row_has_all_boxes_of_its_class_and_names_are_short_and_differ(tmp_path: Path, classes: int) -> None:
    names = [f"{LONG} {number}" for number in range(classes)]
    params = fill(tmp_path, variants=3, classes=names, images=40)
    results = read(params, tmp_path)
    axes = [ax for ax in confusion.figure(results, params).figure.axes if ax.axison]
    best = max(params.variants, key=lambda name: results.metrics[name]["AP"])
    drawn = list(params.variants) if classes <= 12 else [name for name in params.variants if name in ("fl_sl1", best)]
    assert [ax.get_title() for ax in axes] == drawn
    for ax, name in zip(axes, drawn, strict=True):
        labels = [label.get_text() for label in ax.get_yticklabels()]
        assert labels[-1] == "false alarm" and len({*labels}) == len(labels) == min(classes, 25) + 1
        assert max(map(len, labels)) <= 18
        found = results.outcomes[name][0]["classes"]
        row_of = {label: number for number, label in enumerate(labels)}
        number_RC = shares(ax)
        for full in names:
            if (row := row_of.get(confusion.short(full, 18))) is None:
                continue
            boxes = found[full]["boxes"]
            assert number_RC[row].sum() == pytest.approx(100 * (boxes > 0), abs=0.5 * number_RC.shape[1])
            assert number_RC[row, row] == pytest.approx(100 * found[full].get("recall", 0), abs=0.51)


def test_of_many_classes_those_that_are_confused_most_are_shown(tmp_path: Path) -> None:
    params = fill(tmp_path, variants=1, classes=80, images=400)
    results = read(params, tmp_path)
    times: Counter[str] = Counter()
    for true, found, count in results.outcomes["fl_sl1"][0]["confusion"]:
        if true and found and true != found:
            times.update({true: count, found: count})
    (ax,) = confusion.figure(results, params).figure.axes
    shown = {label.get_text() for label in ax.get_yticklabels()} - {"false alarm"}
    assert min(times[name] for name in shown) >= max(times[name] for name in {*times} - shown)
    assert [label.get_text() for label in ax.get_xticklabels()][-2:] == ["55 others", "missed"]
