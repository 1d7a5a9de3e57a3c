"""Laws of the gallery: which images it shows, and what it calls found, wrong and missed."""

from ghm.report.inputs import Record
from ghm.report.matching import choose, compare

BOX = [10.0, 10.0, 20.0, 20.0]
FAR = [70.0, 70.0, 20.0, 20.0]


def kinds(truth: list[tuple[list[float], int]], found: list[tuple[list[float], int, float]]) -> list[tuple[str, int]]:
    marks = compare(
        [{"bbox": bbox, "category_id": category} for bbox, category in truth],
        [{"bbox": bbox, "category_id": category, "score": score} for bbox, category, score in found],
    )
    return [(mark.kind, mark.box["category_id"]) for mark in marks]


def test_a_box_of_the_right_class_at_the_right_place_is_found() -> None:
    assert kinds([(BOX, 1)], [(BOX, 1, 0.9)]) == [("found", 1)]


def test_a_box_of_another_class_is_wrong_and_the_true_one_missed() -> None:
    assert kinds([(BOX, 1)], [(BOX, 2, 0.9)]) == [("missed", 1), ("wrong", 2)]


def test_a_box_elsewhere_is_wrong() -> None:
    assert kinds([(BOX, 1)], [(FAR, 1, 0.9)]) == [("missed", 1), ("wrong", 1)]


def test_a_true_box_is_found_once_by_the_highest_score() -> None:
    assert kinds([(BOX, 1)], [(BOX, 1, 0.4), (BOX, 1, 0.9)]) == [("found", 1), ("wrong", 1)]


def test_two_true_boxes_of_a_class_are_found_by_two_detections() -> None:
    shifted = [12.0, 10.0, 20.0, 20.0]
    assert kinds([(BOX, 1), (shifted, 1)], [(BOX, 1, 0.9), (BOX, 1, 0.8)]) == [("found", 1), ("found", 1)]


def test_nothing_found_is_all_missed_and_nothing_there_is_all_wrong() -> None:
    assert kinds([(BOX, 1)], []) == [("missed", 1)]
    assert kinds([], [(BOX, 1, 0.9)]) == [("wrong", 1)]
    assert kinds([], []) == []


def annotations(*boxes: tuple[int, int]) -> list[Record]:
    return [{"image_id": image, "iscrowd": crowd} for image, crowd in boxes]


def test_images_are_evenly_spaced_by_id_whatever_their_order() -> None:
    images = [{"id": number} for number in (9, 3, 1, 5, 7)]
    boxes = annotations(*((image["id"], 0) for image in images))
    assert [image["id"] for image in choose(images, boxes, 3)] == [1, 5, 9]


def test_images_without_boxes_or_with_crowds_are_not_shown() -> None:
    images = [{"id": number} for number in range(4)]
    boxes = annotations((0, 0), (1, 0), (1, 1), (3, 0))
    assert [image["id"] for image in choose(images, boxes, 9)] == [0, 3]
