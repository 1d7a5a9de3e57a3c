"""Laws of AP under weights: ones are pycocotools, whole numbers are a data set with its images repeated."""

from pathlib import Path

import numpy as np
import pytest

from ghm.evaluation import matches
from ghm.evaluation.matches import CURVE_IOUS, weighted
from tests.evaluation.cases import CLASSES, KEYS, Case, artificial, case, matched, pycocotools, scene


def mean(precision: np.ndarray) -> float:
    return float(precision[precision > -1].mean()) if (precision > -1).any() else -1.0


def require_pycocotools(means: dict[str, np.ndarray], curve_BUR: np.ndarray, row: int, given: Case) -> None:
    """What was measured with classes named in the order of their ids."""
    evaluation = pycocotools(given)
    precision_TRK = evaluation.eval["precision"][:, :, :, 0, -1]
    expected = dict(zip(("AP", "AP50", "AP75"), evaluation.stats, strict=False))
    expected |= {f"AP_{number}": mean(precision_TRK[:, :, number]) for number in range(precision_TRK.shape[2])}
    assert {name: value_B[row] for name, value_B in means.items()} == pytest.approx(expected, abs=1e-12, rel=0)
    for curve_R, (iou, number) in zip(curve_BUR[row], CURVE_IOUS.items(), strict=True):
        assert evaluation.params.iouThrs[number] == pytest.approx(iou)
        expected_R = [mean(precision_K) for precision_K in precision_TRK[number]]
        np.testing.assert_allclose(curve_R, expected_R, atol=1e-12, rtol=0)


def names(given: Case) -> list[str]:
    return [str(number) for number in range(len(given.truth["categories"]))]


@pytest.mark.parametrize("key", KEYS)
def test_each_image_once_is_what_pycocotools_says(key: str | int):
    given = scene(key)
    ones = np.ones((1, len(given.truth["images"])), np.int32)
    require_pycocotools(*weighted(matched(given), ones, names(given)), 0, given)


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


@pytest.mark.parametrize("seed", range(4))
def test_a_whole_number_counts_an_image_so_many_times(seed: int):
    given = artificial(100 + seed, images=6, ties=False)
    found = matched(given)
    weight_BI = np.random.default_rng(seed).integers(0, 4, (3, 6)).astype(np.int32)
    measured = weighted(found, weight_BI, names(given))
    for row, weight_I in enumerate(weight_BI.tolist()):
        times = dict(zip(found.image_id_I.tolist(), weight_I, strict=True))
        require_pycocotools(*measured, row, repeated(given, times))


def test_weights_of_0_alone_leave_nothing_defined():
    means, curve_BUR = weighted(matched(artificial(0)), np.zeros((2, 9), np.int32), sorted(CLASSES.values()))
    assert {tuple(value_B) for value_B in means.values()} == {(-1.0, -1.0)}
    assert (curve_BUR == -1).all()


def test_how_many_rows_are_measured_at_a_time_does_not_matter(monkeypatch: pytest.MonkeyPatch):
    found = matched(artificial(5))
    weight_BI = np.random.default_rng(5).integers(0, 4, (7, 9)).astype(np.int32)
    means, curve_BUR = weighted(found, weight_BI)
    for cells in (1, 2 * len(found.image_D) // 3):
        monkeypatch.setattr(matches, "CELLS", cells)
        parts = weighted(found, weight_BI)
        np.testing.assert_array_equal(parts[0]["AP"], means["AP"])
        np.testing.assert_array_equal(parts[1], curve_BUR)


@pytest.mark.parametrize("key", KEYS)
def test_what_is_saved_says_what_each_detection_hits_also_among_the_best_alone(key: str | int, tmp_path: Path):
    given = scene(key)
    best = sorted(range(len(given.found)), key=lambda number: -given.found[number]["score"])[: len(given.found) // 2]
    saved = []
    for found in (given.found, [given.found[number] for number in best]):
        Case(given.truth, found).judged(tmp_path).matches.save(len(found), tmp_path)
        saved.append(matches.read(tmp_path))
        assert saved[-1].shape == (len(found),)
    np.testing.assert_array_equal(saved[0][best], saved[1])
    expected = matched(given)
    hit_D, ignored_D = expected.hit_TD[0], expected.ignored_TD[0]
    np.testing.assert_array_equal(saved[0][expected.detection_D[hit_D]], expected.box_D[hit_D])
    np.testing.assert_array_equal(saved[0][expected.detection_D[ignored_D]], -1)
    assert (saved[0] != 0).sum() == (hit_D | ignored_D).sum()
