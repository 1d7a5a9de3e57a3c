"""Laws of the judge: its figures are those of pycocotools, and of VOC's development kit."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ghm.errors import InputError
from ghm.evaluation import judge as module
from ghm.evaluation.errors import analyse
from ghm.evaluation.judge import SUMMARY, Judged, coco_metrics, judge, voc_ap50
from ghm.evaluation.matches import weighted
from tests.evaluation.cases import KEYS, SQUARE, Case, artificial, box, case, detection, hard_or_artificial, pycocotools

CLASSES = {5: "a", 6: "b", 7: "c"}


def class_ap(judged: Judged) -> dict[str, float]:
    """AP of each class that has a box."""
    every_image = np.ones((1, len(judged.matches.image_id_I)), np.int32)
    summary = weighted(judged.matches, every_image).summary(judged.classes)
    return {name: summary[f"AP_{name}"][0] for name in judged.classes if summary[f"AP_{name}"][0] > -1}


def small(*, boxes: bool = True) -> Case:
    """Six images, three classes; small boxes only, none of class `c`; no detections."""
    random = np.random.default_rng(0)
    truth = []
    for number in range(24 if boxes else 0):
        x, y, w, h = (float(value) for value in random.uniform([0, 0, 8, 8], [60, 60, 25, 25]))
        truth.append(box(number % 6 + 1, 5 + number % 2, (x, y, w, h)))
    return case(list(range(1, 7)), truth, [], CLASSES)


def shaken(given: Case, spread: float) -> Case:
    """Each box is detected, up to some pixels aside."""
    random = np.random.default_rng(1)
    found = []
    for entry in given.truth["annotations"]:
        place: Any = (np.array(entry["bbox"]) + random.normal(0, spread, 4)).tolist()
        found.append(detection(entry["image_id"], entry["category_id"], place, float(random.uniform())))
    return Case(given.truth, found)


def test_no_detections_are_zero_and_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "ghm"):
        judged = small().judged(tmp_path)
    assert coco_metrics(judged) == dict.fromkeys(("AP", "AP50", "AP75", "APs", "AR100"), 0.0)
    assert class_ap(judged) == {"a": 0.0, "b": 0.0}
    assert caplog.messages == [f"{tmp_path / 'detections.json'} holds no detection: AP is 0"]
    caplog.clear()
    with caplog.at_level(logging.WARNING, "ghm"):
        shaken(small(), 1.0).judged(tmp_path)
    assert not caplog.messages


def test_what_the_split_has_no_box_of_is_absent(tmp_path: Path):
    judged = shaken(small(), 1.0).judged(tmp_path)
    assert set(SUMMARY) - set(coco_metrics(judged)) == {"APm", "APl"}
    assert set(class_ap(judged)) == {"a", "b"}
    nothing = small(boxes=False).judged(tmp_path)
    assert coco_metrics(nothing) == class_ap(nothing) == {}


@pytest.mark.parametrize("at_once", [1, 2, 10])
@pytest.mark.parametrize("key", KEYS)
def test_some_classes_at_a_time_are_to_the_bit_what_pycocotools_says_of_all(
    key: str | int, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    given = hard_or_artificial(key)
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    np.testing.assert_array_equal(given.judged(tmp_path).stats, pycocotools(given).stats)


@pytest.mark.parametrize("first", [0, 7_700_000_000_000_000_000, 2**63, -5])
def test_the_ids_of_boxes_change_no_figure(first: int, tmp_path: Path):
    """Ids beyond 2^53 run into each other as floats; COCOeval takes 0 for no box."""
    given = artificial(np.random.default_rng(1008), ties=False)
    said = given.judged(tmp_path)
    costs = analyse(said.truth, said.detections, said.matches)
    for number, entry in enumerate(given.truth["annotations"]):
        entry["id"] = first + number
    judged = given.judged(tmp_path)
    np.testing.assert_array_equal(judged.stats, said.stats)
    np.testing.assert_array_equal(judged.matches.box_D, said.matches.box_D)
    assert analyse(judged.truth, judged.detections, judged.matches) == costs
    assert 0.1 < said.stats[0] < 0.9 and costs["classification"] > 0


@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("image_id", [99], "99"),
        ("category_id", [12], "12"),
        ("image_id", [70, 64, 63, 62, 61, 61], "61, 62, 63, 64, 70"),
        ("category_id", [41, 42, 43, 44, 45, 46, 47], "41, 42, 43, 44, 45 and 2 more"),
    ],
)
def test_detections_of_unknown_images_or_classes_are_named_with_both_files(
    tmp_path: Path, key: str, values: list[int], words: str
):
    known = detection(1, 7, SQUARE, 0.5)
    given = case([1], [box(1, 7, SQUARE)], [known, *({**known, key: value} for value in values)])
    truth, found = given.files(tmp_path)
    with pytest.raises(InputError) as caught:
        judge(truth, found)
    assert str(caught.value) == f"{found} has detections with {key} {words}, which {truth} does not have"


def voc_by_hand(truth: dict[str, Any], found: list[dict[str, Any]]) -> float:
    """The rule of the VOC 2007 development kit, box by box."""

    def overlap(a: list[float], b: list[float]) -> float:
        sides = [min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
        shared = max(sides[0], 0) * max(sides[1], 0)
        return shared / (a[2] * a[3] + b[2] * b[3] - shared)

    averages = []
    for category in truth["categories"]:
        boxes = [box for box in truth["annotations"] if box["category_id"] == category["id"]]
        if all(box["iscrowd"] for box in boxes):
            continue  # nothing to measure
        taken, hits = set(), []
        for entry in sorted(found, key=lambda each: -each["score"]):
            if entry["category_id"] == category["id"]:
                same = [box for box in boxes if box["image_id"] == entry["image_id"]]
                best = max(same, key=lambda box: overlap(box["bbox"], entry["bbox"]), default=None)
                if best is None or overlap(best["bbox"], entry["bbox"]) < 0.5:
                    hits.append(0)
                elif not best["iscrowd"]:
                    hits.append(int(best["id"] not in taken))
                    taken.add(best["id"])
        right = np.cumsum(hits)
        recall, precision = right / sum(not box["iscrowd"] for box in boxes), right / np.arange(1, len(hits) + 1)
        points = [max(precision[recall >= level], default=0.0) for level in np.linspace(0, 1, 11)]
        averages.append(np.mean(points))
    return float(np.mean(averages))


@pytest.mark.parametrize("spread", [0.0, 2.0, 6.0])
def test_voc_ap_is_the_rule_of_voc_2007_and_difficult_objects_count_neither_way(tmp_path: Path, spread: float):
    given = small()
    for entry in given.truth["annotations"][::5]:
        entry["iscrowd"] = 1
    found = shaken(given, spread).found + shaken(given, spread / 2).found[::2]
    for number, entry in enumerate(found):
        entry["score"] = 0.9 - number / 100
    measured = voc_ap50(*Case(given.truth, found).files(tmp_path))
    assert measured == pytest.approx(voc_by_hand(given.truth, found), abs=1e-6)
    truth, nothing = given.files(tmp_path)
    assert json.loads(nothing.read_text()) == []
    assert voc_ap50(truth, nothing) == 0
