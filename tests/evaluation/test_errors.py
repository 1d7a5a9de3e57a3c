"""Laws of the kinds of errors: each false positive has one, and each costs what AP50 gains when it is mended."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ghm.evaluation.errors import KINDS, analyse
from ghm.evaluation.matches import RECALLS_R
from ghm.truth import Record
from tests.evaluation.cases import SQUARE, Box, Case, artificial, box, case, detection, matched, overlap, pycocotools

OWN, OTHER = 7, 2  # classes
AWAY: Box = (400, 400, 50, 50)


def costs(given: Case, folder: Path) -> dict[str, Any]:
    """What is not 0."""
    found = analyse(given.truth, given.found, given.judged(folder).matches)
    return {name: pytest.approx(value) for name, value in found.items() if abs(value) > 1e-12}


def overlapping(iou: float) -> Box:
    """A box in SQUARE that has this IoU with it."""
    return (0, 0, 100, 100 * iou)


@pytest.mark.parametrize(
    ("category", "bbox", "kind", "meant"),
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
    ],
)
def test_overlap_and_class_make_the_kind(tmp_path: Path, category: int, bbox: Box, kind: str, meant: bool):
    """What is meant for the box finds it when it is mended; what is not leaves it missed."""
    given = case([1, 2], [box(1, OWN, SQUARE)], [detection(1, category, bbox, 0.5)])
    rest = {kind: 1.0} if meant else {"missed": 1.0, "boxes_missed": 1.0}
    assert costs(given, tmp_path) == {f"false_positives_{kind}": 1.0, **rest}


def test_no_detections_miss_everything_and_without_boxes_there_is_nothing_to_lose(tmp_path: Path):
    boxes = [box(1, OWN, SQUARE), box(2, OTHER, SQUARE), box(2, OTHER, AWAY)]
    assert costs(case([1, 2], boxes, []), tmp_path) == {"missed": 1.0, "boxes_missed": 3.0}
    assert costs(case([1, 2], [], []), tmp_path) == {}
    alarms = [detection(1, OWN, SQUARE, 0.5), detection(2, OTHER, SQUARE, 0.4)]
    assert costs(case([1, 2], [], alarms), tmp_path) == {"false_positives_background": 2.0}


def test_boxes_that_pycocotools_does_not_count_are_not_missed_nor_found_wrongly(tmp_path: Path):
    """Crowds, which cover what has their class alone, and areas that cannot be."""
    boxes = [box(1, OWN, SQUARE), box(2, OWN, SQUARE, area=-1), box(3, OWN, SQUARE, iscrowd=1)]
    right, covered = detection(1, OWN, SQUARE, 0.5), detection(3, OWN, (10, 10, 20, 20), 0.9)
    wrong = [detection(image, OTHER, SQUARE, 0.4) for image in (2, 3)]
    assert costs(case([1, 2, 3], boxes, [right, covered]), tmp_path) == {}
    assert costs(case([1, 2, 3], boxes, [right, covered, *wrong]), tmp_path) == {"false_positives_background": 2.0}


# What follows is the same once more, box by box, as slowly as it is plain.


def kind_of(entry: Record, boxes: list[Record]) -> tuple[str, int | None]:
    here = [other for other in boxes if other["image_id"] == entry["image_id"]]
    same = [other for other in here if other["category_id"] == entry["category_id"]]
    others = [other for other in here if other["category_id"] != entry["category_id"]]
    right = max((overlap(entry["bbox"], other["bbox"]) for other in same), default=0.0)
    wrong = max((overlap(entry["bbox"], other["bbox"]) for other in others), default=0.0)
    if 0.1 <= right < 0.5:
        return "localisation", max(same, key=lambda other: overlap(entry["bbox"], other["bbox"]))["id"]
    if wrong >= 0.5:
        return "classification", max(others, key=lambda other: overlap(entry["bbox"], other["bbox"]))["id"]
    return ("duplicate" if right >= 0.5 else "both" if wrong >= 0.1 else "background"), None


def ap50(found: list[dict[str, Any]], boxes: list[Record]) -> float:
    averages = []
    for category, number in Counter(entry["category_id"] for entry in boxes).items():
        ranked = sorted((row for row in found if row["category"] == category), key=lambda row: -row["score"])
        points, hits = [], 0
        for rank, row in enumerate(ranked, start=1):
            hits += row["box"] is not None
            points.append((hits / number, hits / rank))
        averages.append(sum(max((p for r, p in points if r >= wanted), default=0.0) for wanted in RECALLS_R) / 101)
    return sum(averages) / len(averages)


def by_hand(given: Case, base: float) -> dict[str, float]:
    boxes = [entry for entry in given.truth["annotations"] if not entry["iscrowd"]]
    category_of = {entry["id"]: entry["category_id"] for entry in boxes}
    found = matched(given)
    counted = []
    for number, hit, box_id, ignored in zip(
        found.detection_D.tolist(), found.hit_TD[0], found.box_D.tolist(), found.ignored_TD[0], strict=True
    ):
        entry = given.found[number]
        row: Record = {"score": entry["score"], "category": entry["category_id"], "box": box_id if hit else None}
        row["kind"], row["meant"] = (None, None) if hit else kind_of(entry, boxes)
        counted += [] if ignored else [row]
    hit_boxes = {row["box"] for row in counted} - {None}
    result: dict[str, float] = {}
    for kind in KINDS[:-1]:
        taken, mended = set(hit_boxes), []
        for row in sorted(counted, key=lambda row: -row["score"]):
            if row["kind"] != kind:
                mended.append(row)
            elif row["meant"] and row["meant"] not in taken:
                taken.add(row["meant"])
                mended.append({**row, "box": row["meant"], "category": category_of[row["meant"]]})
        result[kind] = ap50(mended, boxes) - base
        result[f"false_positives_{kind}"] = sum(row["kind"] == kind for row in counted)
    seen = hit_boxes | {row["meant"] for row in counted}
    left = [entry for entry in boxes if entry["id"] in seen]
    return result | {"missed": ap50(counted, left) - base, "boxes_missed": len(boxes) - len(left)}


@pytest.mark.parametrize("seed", range(12))
def test_costs_are_those_of_mending_box_by_box_from_the_ap50_of_pycocotools(seed: int, tmp_path: Path):
    given = artificial(1000 + seed, ties=False, spread=(0.05, 0.15, 0.3)[seed % 3])
    expected = by_hand(given, base=float(pycocotools(given).stats[1]))
    judged = given.judged(tmp_path)
    assert analyse(given.truth, given.found, judged.matches) == pytest.approx(expected, abs=1e-12)
    assert all(expected[f"false_positives_{kind}"] for kind in ("classification", "background"))
