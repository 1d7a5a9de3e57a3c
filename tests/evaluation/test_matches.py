"""Laws of AP under weights: ones are pycocotools, whole numbers are a data set with its images repeated."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from ghm.evaluation import judge, matches
from ghm.evaluation.matches import CURVE_IOUS, RECALLS_R, Matches, Weighted, weighted
from tests.evaluation.cases import CLASSES, KEYS, Case, artificial, case, hard_or_artificial, pycocotools

SUMMARY = {"AP": 0, "AP50": 1, "AP75": 2}  # name -> place in COCOeval.stats


def found_in(given: Case) -> Matches:
    evaluation = pycocotools(given)
    settings = evaluation.params
    return matches.together(settings.imgIds, settings.catIds, matches.of_classes(evaluation))


def ones(found: Matches) -> np.ndarray:
    return np.ones((1, len(found.image_id_I)), np.int32)


def mean(precision: np.ndarray) -> float:
    return float(precision[precision > -1].mean()) if (precision > -1).any() else -1.0


def assert_is_what_pycocotools_says(measured: Weighted, row: int, given: Case) -> None:
    evaluation = pycocotools(given)
    precision_TRK = evaluation.eval["precision"][:, :, :, 0, -1]
    assert evaluation.params.recThrs.tolist() == RECALLS_R.tolist()
    names = [name for _, name in sorted((entry["id"], entry["name"]) for entry in given.truth["categories"])]
    summary = {name: value_B[row] for name, value_B in measured.summary(names).items()}
    expected = {name: evaluation.stats[place] for name, place in SUMMARY.items()}
    expected |= {f"AP_{name}": mean(precision_TRK[:, :, place]) for place, name in enumerate(names)}
    assert summary == pytest.approx(expected, abs=1e-12, rel=0)
    for curve_R, (iou, place) in zip(measured.curve_BUR[row], CURVE_IOUS.items(), strict=True):
        assert evaluation.params.iouThrs[place] == pytest.approx(iou)
        expected_R = [mean(precision_K) for precision_K in precision_TRK[place]]
        np.testing.assert_allclose(curve_R, expected_R, atol=1e-12, rtol=0)


@pytest.mark.parametrize("key", KEYS)
def test_each_image_once_is_what_pycocotools_says(key: str | int):
    given = hard_or_artificial(key)
    found = found_in(given)
    assert_is_what_pycocotools_says(weighted(found, ones(found)), 0, given)


def repeated(given: Case, times: dict[int, int]) -> Case:
    """Each image so many times, in the order of the ids; a copy has the boxes and the detections of its image."""
    images, boxes, found = [], [], []
    for image in sorted(entry["id"] for entry in given.truth["images"]):
        for _ in range(times[image]):
            copy = {"image_id": len(images) + 1}
            images.append(copy["image_id"])
            boxes += [{**entry, **copy} for entry in given.truth["annotations"] if entry["image_id"] == image]
            found += [{**entry, **copy} for entry in given.found if entry["image_id"] == image]
    boxes = [{**entry, "id": number + 1} for number, entry in enumerate(boxes)]
    return case(images, boxes, found)


@pytest.mark.parametrize("seed", range(10))
def test_a_whole_number_counts_an_image_so_many_times(seed: int):
    rng = np.random.default_rng(100 + seed)
    given = artificial(rng, images=6, ties=False)
    found = found_in(given)
    weight_BI = rng.integers(0, 4, (3, 6)).astype(np.int32)
    measured = weighted(found, weight_BI)
    assert {tuple(row) for row in weight_BI} - {(1,) * 6}
    for row, weight_I in enumerate(weight_BI.tolist()):
        times = dict(zip(found.image_id_I.tolist(), weight_I, strict=True))
        assert_is_what_pycocotools_says(measured, row, repeated(given, times))


def test_weights_of_0_alone_leave_nothing_defined():
    found = found_in(artificial(np.random.default_rng(0)))
    measured = weighted(found, np.zeros((2, len(found.image_id_I)), np.int32))
    assert {tuple(value_B) for value_B in measured.summary(sorted(CLASSES.values())).values()} == {(-1.0, -1.0)}
    assert (measured.curve_BUR == -1).all()


def synthetic(rng: np.random.Generator, images: int = 8, classes: int = 3) -> Matches:
    """Matches without any boxes and IoU behind them."""
    images_of, hits, ignored, boxes = [], [], [], []
    for number in range(classes):
        true = np.repeat(np.arange(images), rng.integers(0, 4, images))
        image_D = np.concatenate([true, rng.integers(0, images, rng.integers(0, 20))])
        hit_TD = rng.random(len(image_D)) > np.linspace(0.2, 0.9, 10)[:, None]
        hit_TD[:, len(true) :] = False
        order = rng.permutation(len(image_D))
        images_of.append(image_D[order])
        hits.append(hit_TD[:, order])
        ignored.append(~hits[-1] & (rng.random(hit_TD.shape) < 0.1))
        boxes += [(image, number) for image in true]
    box_G2 = np.array(boxes, np.int32).reshape(-1, 2)
    image_D = np.concatenate(images_of)
    return Matches(
        image_id_I=np.arange(images),
        class_id_K=np.arange(classes),
        start_K=np.cumsum([0, *map(len, images_of)]),
        image_D=image_D,
        detection_D=np.arange(len(image_D)),
        box_D=np.zeros(len(image_D), np.int64),
        hit_TD=np.concatenate(hits, axis=1),
        ignored_TD=np.concatenate(ignored, axis=1),
        box_image_G=box_G2[:, 0],
        box_class_G=box_G2[:, 1],
    )


def test_how_many_rows_are_measured_at_a_time_does_not_matter(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(5)
    found = synthetic(rng)
    weight_BI = rng.integers(0, 4, (7, len(found.image_id_I))).astype(np.int32)
    at_once = weighted(found, weight_BI)
    for cells in (1, 2 * len(found.image_D) // 3, 10**9):
        monkeypatch.setattr(matches, "CELLS", cells)
        parts = weighted(found, weight_BI)
        np.testing.assert_array_equal(parts.ap_BKT, at_once.ap_BKT)
        np.testing.assert_array_equal(parts.curve_BUR, at_once.curve_BUR)


@pytest.mark.parametrize("at_once", [1, 2, 3])
@pytest.mark.parametrize("key", ["nothing", "no detections", "crowds", 0, 1])
def test_matches_of_some_classes_at_a_time_join_to_those_of_all(
    key: str | int, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    given = hard_or_artificial(key)
    monkeypatch.setattr(judge, "AT_ONCE", at_once)
    parts, whole = given.judged(tmp_path).matches, found_in(given)
    for field in fields(Matches):
        np.testing.assert_array_equal(getattr(parts, field.name), getattr(whole, field.name), err_msg=field.name)
        assert getattr(parts, field.name).dtype == getattr(whole, field.name).dtype, field.name


@pytest.mark.parametrize("key", KEYS)
def test_what_is_saved_says_what_each_detection_hits_also_among_the_best_alone(key: str | int, tmp_path: Path):
    given = hard_or_artificial(key)
    best = sorted(range(len(given.found)), key=lambda number: -given.found[number]["score"])[: len(given.found) // 2]
    saved = []
    for number, found in enumerate((given.found, [given.found[number] for number in best])):
        folder = tmp_path / str(number)
        folder.mkdir()
        Case(given.truth, found).judged(folder).matches.save(len(found), folder)
        saved.append(matches.read(folder))
        assert saved[-1].shape == (len(found),)
    np.testing.assert_array_equal(saved[0][best], saved[1])
    expected = found_in(given)
    hit_D = expected.hit_TD[0]
    np.testing.assert_array_equal(saved[0][expected.detection_D[hit_D]], expected.box_D[hit_D])
    np.testing.assert_array_equal(saved[0][expected.detection_D[expected.ignored_TD[0]]], -1)
    assert (saved[0] != 0).sum() == (hit_D | expected.ignored_TD[0]).sum()
