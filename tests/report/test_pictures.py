"""Laws of the pictures: which images and boxes they show, and what they call found, wrong and missed."""

import json
from pathlib import Path
from typing import Any

import pytest

from ghm import runs
from ghm.report import pictures
from ghm.report.inputs import Results, read
from tests.report.conftest import fill, write_detections, write_json

BOX, FAR = [10, 10, 20, 20], [70, 70, 20, 20]
ANNOTATIONS = "data/digits/annotations/instances_test.json"


def results(root: Path, truth: list[tuple[list[int], int]], found: list[tuple[list[int], int, float]]) -> Results:
    """Of one variant, with these boxes and classes and these detections on the first image."""
    params = fill(root, variants=1)
    content = json.loads((root / ANNOTATIONS).read_text())
    boxes: list[dict[str, Any]] = [
        {"id": number, "image_id": 1, "category_id": category, "bbox": bbox, "area": 400, "iscrowd": 0}
        for number, (bbox, category) in enumerate(truth, start=1)
    ]
    # An image without detections, so that all of the first one's are shown.
    others = [{**box, "image_id": 2} for box in content["annotations"]]
    write_json(root / ANNOTATIONS, {**content, "annotations": boxes + others})
    detections = [
        {"image_id": 1, "category_id": category, "bbox": bbox, "score": score} for bbox, category, score in found
    ]
    write_detections(runs.detections_folder("fl_sl1", 0, root), root / ANNOTATIONS, detections)
    return read(params, root)


@pytest.mark.parametrize(
    ("truth", "found", "expected"),
    [
        ([(BOX, 1)], [(BOX, 1, 0.9)], [("found", 1)]),
        ([(BOX, 1)], [(BOX, 2, 0.9)], [("missed", 1), ("wrong", 2)]),  # another class
        ([(BOX, 1)], [(FAR, 1, 0.9)], [("missed", 1), ("wrong", 1)]),  # another place
        ([(BOX, 1)], [(BOX, 1, 0.4), (BOX, 1, 0.9)], [("found", 1), ("wrong", 1)]),  # twice: the better one counts
        ([(BOX, 1), ([12, 10, 20, 20], 1)], [(BOX, 1, 0.9), (BOX, 1, 0.8)], [("found", 1), ("found", 1)]),
        ([(BOX, 1)], [], [("missed", 1)]),
        ([], [(BOX, 1, 0.9)], [("wrong", 1)]),
    ],
)
def test_what_is_found_wrong_and_missed(tmp_path: Path, truth: Any, found: Any, expected: Any) -> None:
    marks = dict(pictures.marks(results(tmp_path, truth, found), image=1))
    assert [(kind, box["category_id"]) for box, kind in marks["fl_sl1"]] == expected
    assert [(kind, box["bbox"]) for box, kind in marks["ground truth"]] == [("truth", bbox) for bbox, _ in truth]
    if len(truth) < len(found):
        assert marks["fl_sl1"][0][0]["score"] == max(score for *_, score in found)
