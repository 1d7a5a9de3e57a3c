"""Laws of what the report reads."""

from pathlib import Path

import pytest

from ghm.report.inputs import read
from tests.report.artificial_runs import fill, write_json


def test_the_best_detections_are_shown_as_many_as_there_are_true_boxes(tmp_path: Path) -> None:
    params = fill(tmp_path, variants=1)
    number = len(read(params, tmp_path).truth["annotations"])
    found = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "score": score / 999} for score in range(999)]
    write_json(tmp_path / "detections/fl_sl1/seed_0/detections.json", found)
    scores = [box["score"] for box in read(params, tmp_path).detections["fl_sl1"]]
    assert scores == sorted((box["score"] for box in found), reverse=True)[:number]


def test_histograms_of_all_seeds_are_added_up(tmp_path: Path) -> None:
    params = fill(tmp_path, variants=1, seeds=2)
    table = read(params, tmp_path).gradient_norms
    assert not table.duplicated(["variant", "epoch", "kind", "low"]).any()
    assert table.groupby(["epoch", "kind"])["share"].sum().to_list() == pytest.approx([1.0] * 6)
