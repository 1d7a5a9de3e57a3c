"""Laws of the operating point and of what is found from it on, against slow oracles."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask

from ghm.evaluation import outcome
from ghm.truth import counts
from tests.evaluation.cases import (
    CLASSES,
    HARD,
    KEYS,
    SQUARE,
    Case,
    artificial,
    box,
    case,
    detection,
    pycocotools,
    scene,
)

AWAY = (400.0, 400.0, 50.0, 50.0)
Pairs = list[tuple[dict[str, Any], dict[str, Any] | None]]


def matched(given: Case) -> tuple[Pairs, list[dict[str, Any]]]:
    """Each detection that counts, with the box that it hits at IoU 0.5 or None; and the boxes that count."""
    pairs: Pairs = []
    for image in given.truth["images"]:
        for category in given.truth["categories"]:
            own = {"image_id": image["id"], "category_id": category["id"]}
            boxes = [one for one in given.truth["annotations"] if own.items() <= one.items()]
            found = sorted((one for one in given.found if own.items() <= one.items()), key=lambda one: -one["score"])
            free = [one for one in boxes if counts(one)]
            for one in found[:100]:
                overlaps = [overlap(one, other) for other in free]
                if overlaps and max(overlaps) >= 0.5:
                    # Of several, COCOeval takes the last.
                    best = max(range(len(free)), key=lambda place: (overlaps[place], place))
                    pairs.append((one, free.pop(best)))
                elif not any(overlap(one, other) >= 0.5 for other in boxes if not counts(other)) and (
                    one["bbox"][2] * one["bbox"][3] <= 1e10
                ):
                    pairs.append((one, None))
    return pairs, [one for one in given.truth["annotations"] if counts(one)]


def overlap(one: dict[str, Any], other: dict[str, Any]) -> float:
    iou: Any = mask.iou([one["bbox"]], [other["bbox"]], [other["iscrowd"]])  # type: ignore[arg-type]
    return float(iou[0, 0])


def confused(given: Case, score: float) -> Counter[tuple[int | None, int | None]]:
    """How often which class of CLASSES, None for background, is found as which: pair by pair."""
    pairs, boxes = matched(given)
    pairs = [pair for pair in pairs if pair[0]["score"] >= score]
    result = Counter((hit["category_id"], one["category_id"]) for one, hit in pairs if hit)
    taken = {hit["id"] for _, hit in pairs if hit}
    for one, _ in sorted((pair for pair in pairs if not pair[1]), key=lambda pair: -pair[0]["score"]):
        left = [other for other in boxes if other["image_id"] == one["image_id"] and other["id"] not in taken]
        best = max(left, key=lambda other: overlap(one, other), default=None)
        true = best["category_id"] if best and overlap(one, best) >= 0.5 else None
        if best and true is not None:
            taken.add(best["id"])
        result[true, one["category_id"]] += 1
    result.update((other["category_id"], None) for other in boxes if other["id"] not in taken)
    return result


@pytest.mark.parametrize("key", [*HARD, *range(8)])
def test_what_is_found_as_what_is_what_pairing_them_one_by_one_gives(key: str | int, tmp_path: Path):
    """Without ties in score, whose order is nobody's."""
    given = artificial(key, ties=False) if isinstance(key, int) else scene(key)
    judged = given.judged(tmp_path)
    ids = {name: number for number, name in CLASSES.items()} | {"only": 4, None: None}
    for score in (0.0, 0.5, 0.8, outcome.best_score(judged)):
        found = outcome.measure(judged, score)
        assert Counter({(ids[true], ids[as_]): n for true, as_, n in found["confusion"]}) == confused(given, score)


@pytest.mark.parametrize("key", KEYS)
def test_rows_add_up_to_boxes_columns_to_detections_and_the_diagonal_is_the_hits(key: str | int, tmp_path: Path):
    given = scene(key)
    judged = given.judged(tmp_path)
    found = outcome.measure(judged, 0.5)
    pairs, boxes = matched(given)
    names = {category["id"]: category["name"] for category in given.truth["categories"]}
    for number, name in names.items():
        own = [(one, hit) for one, hit in pairs if one["category_id"] == number and one["score"] >= 0.5]
        numbers = {
            "boxes": sum(one["category_id"] == number for one in boxes),
            "detections": len(own),
            "hits": sum(hit is not None for _, hit in own),
        }
        rows = found["confusion"]
        assert numbers["boxes"] == sum(n for true, _, n in rows if true == name)
        assert numbers["detections"] == sum(n for _, as_, n in rows if as_ == name)
        assert numbers["hits"] == sum(n for true, as_, n in rows if true == as_ == name)
        of_class = found["classes"][name]
        assert numbers.items() <= of_class.items()
        assert ("recall" in of_class, "precision" in of_class) == (numbers["boxes"] > 0, numbers["detections"] > 0)
    whole = [sum(each[key] for each in found["classes"].values()) for key in ("boxes", "detections", "hits")]
    expected = {"recall": whole[2] / max(1, whole[0]), "precision": whole[2] / max(1, whole[1])}
    expected["f1"] = 2 * whole[2] / max(1, whole[0] + whole[1])
    assert {name: found.get(name, 0) for name in expected} == pytest.approx(expected, abs=5.1e-5)


@pytest.mark.parametrize("key", KEYS)
def test_the_score_is_the_highest_of_those_with_the_best_f1(key: str | int, tmp_path: Path):
    given = scene(key)
    pairs, boxes = matched(given)

    def f1(score: float) -> float:
        chosen = [hit for one, hit in pairs if one["score"] >= score]
        return 2 * sum(hit is not None for hit in chosen) / (len(chosen) + len(boxes))

    score = outcome.best_score(given.judged(tmp_path))
    best = max(({one["score"] for one, _ in pairs}), key=lambda each: (round(f1(each), 12), each), default=1.0)
    assert score == (best if any(hit for _, hit in pairs) else 1.0)


@pytest.mark.parametrize("key", [*range(6), "crowds", "areas"])
def test_ap_of_full_images_is_what_pycocotools_says_of_these_images_alone(
    key: str | int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(outcome, "FULLNESS", (1, 2, 4, 7))
    given = artificial(key, ties=False) if isinstance(key, int) else scene(key)
    number = Counter(one["image_id"] for one in given.truth["annotations"] if counts(one))
    groups = outcome.measure(given.judged(tmp_path), 0.5)["density"]
    assert sum(group["images"] for group in groups) == len(number)
    for group in groups:
        images = [image for image, n in number.items() if group["least"] <= n <= (group["most"] or np.inf)]
        assert len(images) == group["images"] > 0
        rows = given.truth["annotations"], given.found
        boxes, found = ([one for one in part if one["image_id"] in images] for part in rows)
        assert group["AP"] == pytest.approx(pycocotools(case(images, boxes, found)).stats[0], abs=5.1e-5)


def test_a_second_detection_of_a_box_is_a_false_alarm_and_a_right_class_goes_before_a_better_score(tmp_path: Path):
    found = [detection(1, 2, SQUARE, 0.9), detection(1, 7, SQUARE, 0.8), detection(1, 7, SQUARE, 0.7)]
    given = case([1], [box(1, 7, SQUARE), box(1, 7, AWAY)], found)
    name, other = CLASSES[7], CLASSES[2]
    rows = outcome.measure(given.judged(tmp_path), 0.5)["confusion"]
    expected = [[name, name, 1], [name, None, 1], [None, other, 1], [None, name, 1]]
    assert sorted(rows, key=str) == sorted(expected, key=str)


@pytest.mark.parametrize(("height", "confused_"), [(50, True), (49, False)])
def test_from_an_iou_of_one_half_on_a_detection_of_another_class_is_of_the_box(
    height: float, confused_: bool, tmp_path: Path
):
    given = case([1], [box(1, 7, SQUARE)], [detection(1, 2, (0, 0, 100, height), 0.9)])
    rows = outcome.measure(given.judged(tmp_path), 0.5)["confusion"]
    missed = [[CLASSES[7], None, 1], [None, CLASSES[2], 1]]
    assert sorted(rows, key=str) == sorted([[CLASSES[7], CLASSES[2], 1]] if confused_ else missed, key=str)
