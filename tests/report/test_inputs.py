"""Laws of what the report reads, and of what may stand in one table."""

import json
from pathlib import Path

import pytest

from ghm import report, runs
from ghm.errors import InputError
from ghm.report.inputs import read
from tests.report.conftest import change, fill, write_detections, write_json

ANNOTATIONS = "data/digits/annotations/instances_test.json"


def record(root: Path, variant: str, seed: int) -> Path:
    return runs.run_folder(variant, seed, root) / runs.RECORD


def test_the_best_detections_are_shown_as_many_as_there_are_true_boxes(tmp_path: Path) -> None:
    params = fill(tmp_path, variants=1)
    number = len(read(params, tmp_path).truth["annotations"])
    detections = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "score": score / 999} for score in range(999)]
    write_detections(runs.detections_folder("fl_sl1", 0, tmp_path), tmp_path / ANNOTATIONS, detections)
    scores = [box["score"] for box in read(params, tmp_path).detections["fl_sl1"]]
    assert scores == sorted((box["score"] for box in detections), reverse=True)[:number]


def test_detections_of_crowds_count_neither_way(tmp_path: Path) -> None:
    params = fill(tmp_path, variants=1)
    boxes = json.loads((tmp_path / ANNOTATIONS).read_text())["annotations"]
    boxes[0]["iscrowd"] = 1
    change(tmp_path / ANNOTATIONS, annotations=boxes)
    detections = [{key: box[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9} for box in boxes[:2]]
    write_detections(runs.detections_folder("fl_sl1", 0, tmp_path), tmp_path / ANNOTATIONS, detections)
    assert read(params, tmp_path).detections["fl_sl1"] == [{**detections[1], "hit": 2}]


def test_runs_of_other_code_or_data_are_refused_with_the_list(tmp_path: Path) -> None:
    params = fill(tmp_path, seeds=2)
    same = runs.Record.read(runs.run_folder("fl_sl1", 0, tmp_path)).conditions
    other = {**same, "code": "ffff"}
    change(record(tmp_path, "ghmc_sl1", 1), conditions={**other, "data": "eeee"}, revision="fedcba9")
    change(record(tmp_path, "ghmc_ghmr", 0), conditions=other, revision="fedcba9")
    with pytest.raises(InputError) as error:
        report.write(params, tmp_path)
    text = str(error.value)
    first = "differs from fl_sl1, seed 0 (revision 0123abc) in"
    assert f"ghmc_sl1, seed 1 (revision fedcba9) {first} code;" in text
    assert "ghmc_sl1, seed 1 was trained on other data than data/digits.json describes;" in text
    assert f"ghmc_ghmr, seed 0 (revision fedcba9) {first} code" in text
    assert "ghmc_sl1, seed 0" not in text
    assert text.endswith("run `dvc repro`")
    assert not (tmp_path / "reports" / "built").exists()


@pytest.mark.parametrize("key", ["annotations_sha256", "files_sha256"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_runs_on_other_data_than_the_manifest_describes_are_refused(tmp_path: Path, key: str, split: str) -> None:
    """Also where all were trained and measured on the same."""
    params = fill(tmp_path)
    splits = json.loads((tmp_path / "data/digits.json").read_text())["splits"]
    splits[split][key] = "f" * 64
    change(tmp_path / "data/digits.json", splits=splits)
    with pytest.raises(InputError) as error:
        read(params, tmp_path)
    words = "trained on other data" if split == "train" else "measured on other annotations or images of test"
    for variant in params.variants:
        assert f"{variant}, seed 0 was {words} than data/digits.json describes" in str(error.value)


def test_a_record_of_another_version_is_named(tmp_path: Path) -> None:
    params = fill(tmp_path, variants=1)
    write_json(record(tmp_path, "fl_sl1", 0), {"variant": "fl_sl1"})
    with pytest.raises(InputError, match=r"context\.json was written by another version .*device.*: run `dvc repro`"):
        read(params, tmp_path)
