"""Laws of the judge: its figures are those of pycocotools, and of VOC's development kit."""

import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ghm.errors import InputError
from ghm.evaluation import judge as module
from ghm.evaluation.judge import SUMMARY, voc_ap50
from ghm.evaluation.matches import Matches
from tests.evaluation.cases import KEYS, SQUARE, artificial, box, case, detection, matched, overlap, pycocotools, scene


def test_no_detections_are_zero_and_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "ghm"):
        judged = case([1], [box(1, 7, (0, 0, 9, 9))], []).judged(tmp_path)
    assert judged.metrics == dict.fromkeys(("AP", "AP50", "AP75", "APs", "AR100"), 0.0)
    assert caplog.messages == [f"{tmp_path / 'detections.json'} holds no detection: AP is 0"]


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("key", KEYS)
def test_some_classes_at_a_time_are_to_the_bit_what_pycocotools_says_of_all(
    key: str | int, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    given = scene(key)
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    judged, expected = given.judged(tmp_path), pycocotools(given)
    np.testing.assert_array_equal(judged.stats, expected.stats)
    figures = {name: expected.stats[number] for name, number in SUMMARY.items()}
    assert judged.metrics == {name: value for name, value in figures.items() if value > -1}
    for field in fields(Matches):
        parts, whole = (getattr(matches, field.name) for matches in (judged.matches, matched(given)))
        np.testing.assert_array_equal(parts, whole, err_msg=field.name)
        assert parts.dtype == whole.dtype, field.name


@pytest.mark.parametrize("first", [0, 7_700_000_000_000_000_000, 2**63, -5])
def test_the_ids_of_boxes_change_no_figure(first: int, tmp_path: Path):
    """Ids beyond 2^53 run into each other as floats; COCOeval takes 0 for no box."""
    given = artificial(1008, ties=False)
    expected = given.judged(tmp_path)
    for number, entry in enumerate(given.truth["annotations"]):
        entry["id"] = first + number
    judged = given.judged(tmp_path)
    np.testing.assert_array_equal(judged.stats, expected.stats)
    np.testing.assert_array_equal(judged.matches.box_D, expected.matches.box_D)
    assert 0.1 < expected.stats[0] < 0.9


@pytest.mark.parametrize(("key", "value"), [("image_id", 99), ("category_id", 12)])
def test_detections_of_unknown_images_or_classes_are_named_with_both_files(tmp_path: Path, key: str, value: int):
    known = detection(1, 7, SQUARE, 0.5)
    given = case([1], [box(1, 7, SQUARE)], [known, {**known, key: value}])
    truth, found = given.files(tmp_path)
    with pytest.raises(InputError) as caught:
        given.judged(tmp_path)
    assert str(caught.value) == f"{found} has detections with {key} {value}, which {truth} does not have"


def voc_by_hand(truth: dict[str, Any], found: list[dict[str, Any]]) -> float:
    """The rule of the VOC 2007 development kit, box by box."""

    averages = []
    for category in truth["categories"]:
        boxes = [box for box in truth["annotations"] if box["category_id"] == category["id"]]
        if all(box["iscrowd"] for box in boxes):
            continue  # nothing to measure
        taken, hits = set(), []
        for entry in sorted(found, key=lambda entry: -entry["score"]):
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


@pytest.mark.parametrize("seed", range(4))
def test_voc_ap_is_the_rule_of_voc_2007_and_difficult_objects_count_neither_way(tmp_path: Path, seed: int):
    given = artificial(seed, ties=False)
    measured = voc_ap50(given.judged(tmp_path))
    assert 0.1 < measured < 0.9
    assert measured == pytest.approx(voc_by_hand(given.truth, given.found), abs=1e-6)
    assert voc_ap50(replace(given, found=[]).judged(tmp_path)) == 0
