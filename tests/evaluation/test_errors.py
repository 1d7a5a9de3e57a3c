"""Laws of the kinds of errors: each false positive has one, and each costs what AP50 gains when it is mended."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ghm.evaluation.errors import KINDS, analyse, false_positives
from ghm.evaluation.matches import RECALLS_R
from tests.evaluation.cases import (
    SQUARE,
    Box,
    Case,
    Record,
    artificial,
    box,
    case,
    detection,
    pycocotools,
)

OWN, OTHER, THIRD = 7, 2, 5  # classes
AWAY: Box = (400, 400, 50, 50)
HALF, STEP = 51 / 101, 50 / 101  # of the recalls that AP averages: those up to a half, and those above


def analysed(given: Case, folder: Path) -> dict[str, float]:
    return analyse(given.truth, given.found, given.judged(folder).matches)


def costs(given: Case, folder: Path) -> dict[str, Any]:
    """What is not 0."""
    return {name: pytest.approx(value) for name, value in analysed(given, folder).items() if abs(value) > 1e-12}


def kinds(given: Case, folder: Path) -> list[tuple[int, str, int | None]]:
    boxes = {entry["id"]: entry for entry in given.truth["annotations"] if not entry["iscrowd"]}
    errors = false_positives(boxes, given.found, given.judged(folder).matches)
    return sorted((error.detection, error.kind, error.box) for error in errors)


def overlapping(iou: float) -> Box:
    """A box in SQUARE that has this IoU with it."""
    return (0, 0, 100, 100 * iou)


@pytest.mark.parametrize(
    ("category", "place", "kind", "blamed"),
    [
        (OTHER, SQUARE, "classification", True),
        (OTHER, overlapping(0.5), "classification", True),
        (OWN, overlapping(0.49), "localisation", True),
        (OWN, overlapping(0.1), "localisation", True),
        (OTHER, overlapping(0.49), "both", False),
        (OTHER, overlapping(0.1), "both", False),
        (OWN, overlapping(0.09), "background", False),
        (OTHER, overlapping(0.09), "background", False),
        (OWN, AWAY, "background", False),
        (OTHER, AWAY, "background", False),
    ],
)
def test_overlap_and_class_make_the_kind(tmp_path: Path, category: int, place: Box, kind: str, blamed: bool):
    given = case([1, 2], [box(1, OWN, SQUARE)], [detection(1, category, place, 0.5)])
    assert kinds(given, tmp_path) == [(0, kind, 1 if blamed else None)]
    # What is meant for the box finds it when it is mended; what is not leaves it missed.
    assert costs(given, tmp_path) == (
        {kind: 1.0, f"false_positives_{kind}": 1.0}
        if blamed
        else {f"false_positives_{kind}": 1.0, "missed": 1.0, "boxes_missed": 1.0}
    )


@pytest.mark.parametrize(
    ("iou_own", "iou_other", "found_already", "kind"),
    [
        (0.3, 0.8, False, "localisation"),  # before classification
        (0.3, 0.3, False, "localisation"),  # before both
        (0.8, 0.6, True, "classification"),  # before duplicate
        (0.8, 0.3, True, "duplicate"),  # before both
        (0.05, 0.8, False, "classification"),
        (0.05, 0.3, False, "both"),
    ],
)
def test_where_several_kinds_fit_the_first_one_is_taken(
    tmp_path: Path, iou_own: float, iou_other: float, found_already: bool, kind: str
):
    boxes = [box(1, OWN, overlapping(iou_own)), box(1, OTHER, overlapping(iou_other))]
    better = [detection(1, OWN, overlapping(iou_own), 0.9)] if found_already else []
    given = case([1], boxes, [detection(1, OWN, SQUARE, 0.5), *better])
    found = kinds(given, tmp_path)
    assert [(place, own) for place, own, _ in found] == [(0, kind)]
    assert found[0][2] == {"localisation": 1, "classification": 2}.get(kind)


def test_no_detections_miss_everything_and_without_boxes_there_is_nothing_to_lose(tmp_path: Path):
    boxes = [box(1, OWN, SQUARE), box(2, OTHER, SQUARE), box(2, OTHER, AWAY)]
    assert costs(case([1, 2], boxes, []), tmp_path) == {"missed": 1.0, "boxes_missed": 3.0}
    assert costs(case([1, 2], [], []), tmp_path) == {}
    alarms = [detection(1, OWN, SQUARE, 0.5), detection(2, OTHER, SQUARE, 0.4)]
    assert costs(case([1, 2], [], alarms), tmp_path) == {"false_positives_background": 2.0}
    false = {"missed": 1.0, "boxes_missed": 3.0, "false_positives_background": 1.0}
    assert costs(case([1, 2], boxes, [detection(1, OWN, AWAY, 0.5)]), tmp_path) == false


def test_the_truth_itself_has_no_errors(tmp_path: Path):
    given = artificial(np.random.default_rng(0))
    found = [
        detection(entry["image_id"], entry["category_id"], entry["bbox"], 0.5) for entry in given.truth["annotations"]
    ]
    perfect = analysed(Case(given.truth, found), tmp_path)
    assert len(found) > 20
    assert perfect == pytest.approx(dict.fromkeys(perfect, 0.0))
    assert perfect.keys() == {*KINDS, *(f"false_positives_{kind}" for kind in KINDS[:-1]), "boxes_missed"}


def test_a_crowd_is_not_missed_and_what_it_covers_is_wrong_only_with_another_class(tmp_path: Path):
    boxes = [box(1, OWN, SQUARE, iscrowd=1), box(1, OWN, AWAY)]
    inside: list[Box] = [(10, 10, 20, 20), (50, 50, 30, 30)]
    found = [detection(1, OWN, AWAY, 0.5), *(detection(1, OWN, place, 0.9) for place in inside)]
    given = case([1], boxes, found)
    assert kinds(given, tmp_path) == []
    assert costs(given, tmp_path) == {}
    other = case([1], boxes, [*found, detection(1, OTHER, SQUARE, 0.9)])
    assert kinds(other, tmp_path) == [(3, "background", None)]


def test_boxes_that_pycocotools_does_not_count_are_not_missed_nor_found_wrongly(tmp_path: Path):
    boxes = [box(1, OWN, SQUARE), box(2, OWN, SQUARE, area=-1), box(3, OWN, SQUARE, area=2e10)]
    right, wrong = detection(1, OWN, SQUARE, 0.5), [detection(image, OTHER, SQUARE, 0.4) for image in (2, 3)]
    assert costs(case([1, 2, 3], boxes, [right]), tmp_path) == {}
    assert costs(case([1, 2, 3], boxes, [right, *wrong]), tmp_path) == {"false_positives_background": 2.0}


def test_what_comes_after_a_hundred_detections_is_no_error(tmp_path: Path):
    found = [detection(1, OWN, AWAY, 0.9 - n / 1000) for n in range(120)]
    given = case([1, 2], [box(1, OWN, SQUARE)], [*found, detection(1, OTHER, AWAY, 0.1)])
    assert [place for place, _, _ in kinds(given, tmp_path)] == [*range(100), 120]


# What follows is the same once more, box by box, as slowly as it is plain.


def iou(own: Record, other: Record, crowd: bool = False) -> float:
    (a, b, c, d), (e, f, g, h) = own["bbox"], other["bbox"]
    shared = max(0.0, min(a + c, e + g) - max(a, e)) * max(0.0, min(b + d, f + h) - max(b, f))
    return shared / (c * d if crowd else c * d + g * h - shared)


def matched(given: Case) -> list[dict[str, Any]]:
    """What counts of the detections, class after class, image after image: place, score, class, box that it hits."""
    found: list[dict[str, Any]] = []
    for category in sorted(entry["id"] for entry in given.truth["categories"]):
        for image in sorted(entry["id"] for entry in given.truth["images"]):
            here = {"image_id": image, "category_id": category}
            own = [entry for entry in given.truth["annotations"] if here.items() <= entry.items()]
            places = [place for place, entry in enumerate(given.found) if here.items() <= entry.items()]
            taken: set[int] = set()
            for place in sorted(places, key=lambda place: -given.found[place]["score"])[:100]:
                entry = given.found[place]
                free = [each for each in own if not each["iscrowd"] and each["id"] not in taken]
                best = max(free, key=lambda each: iou(entry, each), default=None)
                hit = best["id"] if best and iou(entry, best) >= 0.5 else None
                if hit is None and any(each["iscrowd"] and iou(entry, each, True) >= 0.5 for each in own):
                    continue
                taken |= {hit} if hit else set()
                found.append({"place": place, "score": entry["score"], "category": category, "box": hit})
    return found


def kind_of(entry: Record, boxes: list[Record]) -> tuple[str, int | None]:
    here = [each for each in boxes if each["image_id"] == entry["image_id"]]
    own = [each for each in here if each["category_id"] == entry["category_id"]]
    others = [each for each in here if each["category_id"] != entry["category_id"]]
    right = max((iou(entry, each) for each in own), default=0.0)
    wrong = max((iou(entry, each) for each in others), default=0.0)
    if 0.1 <= right < 0.5:
        return "localisation", max(own, key=lambda each: iou(entry, each))["id"]
    if wrong >= 0.5:
        return "classification", max(others, key=lambda each: iou(entry, each))["id"]
    return ("duplicate" if right >= 0.5 else "both" if wrong >= 0.1 else "background"), None


def ap50(found: list[dict[str, Any]], boxes: list[Record]) -> float:
    averages = []
    for category, number in Counter(each["category_id"] for each in boxes).items():
        ranked = sorted((each for each in found if each["category"] == category), key=lambda each: -each["score"])
        points, hits = [], 0
        for rank, each in enumerate(ranked):
            hits += each["box"] is not None
            points.append((hits / number, hits / (rank + 1)))
        averages.append(sum(max((p for r, p in points if r >= wanted), default=0.0) for wanted in RECALLS_R) / 101)
    return sum(averages) / len(averages)


def by_hand(given: Case, base: float) -> dict[str, float]:
    boxes = [each for each in given.truth["annotations"] if not each["iscrowd"]]
    category_of = {each["id"]: each["category_id"] for each in boxes}
    counted = matched(given)
    hit = {each["box"] for each in counted} - {None}
    named = {each["place"]: kind_of(given.found[each["place"]], boxes) for each in counted if each["box"] is None}
    result: dict[str, float] = {}
    for kind in KINDS[:-1]:
        taken, mended = set(hit), []
        for each in sorted(counted, key=lambda each: -each["score"]):
            own, target = named.get(each["place"], (None, None))
            if own != kind:
                mended.append(each)
            elif target is not None and target not in taken:
                taken.add(target)
                mended.append({**each, "box": target, "category": category_of[target]})
        result[kind] = ap50(mended, boxes) - base
        result[f"false_positives_{kind}"] = sum(own == kind for own, _ in named.values())
    seen = hit | {target for _, target in named.values()}
    left = [each for each in boxes if each["id"] in seen]
    return result | {"missed": ap50(counted, left) - base, "boxes_missed": len(boxes) - len(left)}


@pytest.mark.parametrize("seed", range(25))
def test_costs_are_those_of_mending_box_by_box_from_the_ap50_of_pycocotools(seed: int, tmp_path: Path):
    rng = np.random.default_rng(1000 + seed)
    given = artificial(rng, ties=False, spread=float(rng.choice([0.05, 0.15, 0.3])))
    base = float(pycocotools(given).stats[1])
    assert analysed(given, tmp_path) == pytest.approx(by_hand(given, base), abs=1e-12)
