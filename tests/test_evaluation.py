"""Laws of the evaluation: what is written is what pycocotools says of the stored detections."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ghm.evaluation import SUMMARY, coco_metrics, voc_ap50


def truth(tmp_path: Path, *, boxes: bool = True) -> Path:
    """Six images, three classes; small boxes only, none of class `c`."""
    random = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    for number in range(24 if boxes else 0):
        x, y, w, h = (float(value) for value in random.uniform([0, 0, 8, 8], [60, 60, 25, 25]))
        annotations.append(
            {
                "id": number + 1,
                "image_id": number % 6 + 1,
                "category_id": 5 + number % 2,
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
            }
        )
    path = tmp_path / "truth.json"
    content = {
        "images": [{"id": number, "file_name": f"{number}.jpg", "width": 100, "height": 100} for number in range(1, 7)],
        "annotations": annotations,
        "categories": [{"id": 5 + number, "name": name} for number, name in enumerate("abc")],
    }
    path.write_text(json.dumps(content))
    return path


def detections(tmp_path: Path, found: list[dict[str, Any]]) -> Path:
    path = tmp_path / "detections.json"
    path.write_text(json.dumps(found))
    return path


def shaken(annotations: Path, spread: float) -> list[dict[str, Any]]:
    random = np.random.default_rng(1)
    return [
        {
            "image_id": box["image_id"],
            "category_id": box["category_id"],
            "bbox": [float(value) for value in np.array(box["bbox"]) + random.normal(0, spread, 4)],
            "score": float(random.uniform()),
        }
        for box in json.loads(annotations.read_text())["annotations"]
    ]


def test_no_detections_are_zero_and_no_missing_key(tmp_path: Path):
    metrics, curve = coco_metrics(truth(tmp_path), detections(tmp_path, []))
    assert set(metrics) == {*SUMMARY, "AP_a", "AP_b", "AP_c"}
    assert {metrics[name] for name in ("AP", "AP50", "AP75", "APs", "AR100", "AP_a", "AP_b")} == {0.0}
    assert (curve["precision"] == 0).all()


def test_what_the_split_has_no_box_of_is_minus_one(tmp_path: Path):
    metrics, _ = coco_metrics(truth(tmp_path), detections(tmp_path, []))
    assert metrics["APl"] == metrics["AP_c"] == -1.0
    nothing, curve = coco_metrics(truth(tmp_path, boxes=False), detections(tmp_path, []))
    assert set(nothing.values()) == {-1.0}
    assert (curve["precision"] == -1).all()


def test_the_truth_itself_scores_one(tmp_path: Path):
    path = truth(tmp_path)
    metrics, curve = coco_metrics(path, detections(tmp_path, shaken(path, 0.0)))
    assert metrics["AP"] == pytest.approx(1.0)
    assert metrics["AP_a"] == pytest.approx(1.0)
    assert curve["precision"].to_numpy() == pytest.approx(1.0)


def test_metrics_are_pycocotools_and_consistent_with_each_other(tmp_path: Path):
    path = truth(tmp_path)
    found = detections(tmp_path, shaken(path, 2.0))
    metrics, curve = coco_metrics(path, found)
    judge = COCO(str(path))
    evaluation = COCOeval(judge, judge.loadRes(str(found)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert [metrics[name] for name in SUMMARY] == [evaluation.stats[place] for place in SUMMARY.values()]
    assert 0.1 < metrics["AP"] < 0.9
    assert metrics["AP"] == pytest.approx((metrics["AP_a"] + metrics["AP_b"]) / 2)
    for iou, name in ((0.5, "AP50"), (0.75, "AP75")):
        assert curve[curve["iou"] == iou]["precision"].mean() == pytest.approx(metrics[name])


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
        for detection in sorted(found, key=lambda each: -each["score"]):
            if detection["category_id"] == category["id"]:
                same = [box for box in boxes if box["image_id"] == detection["image_id"]]
                best = max(same, key=lambda box: overlap(box["bbox"], detection["bbox"]), default=None)
                if best is None or overlap(best["bbox"], detection["bbox"]) < 0.5:
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
    annotations = truth(tmp_path)
    content = json.loads(annotations.read_text())
    for box in content["annotations"][::5]:
        box["iscrowd"] = 1
    annotations.write_text(json.dumps(content))
    found = shaken(annotations, spread) + shaken(annotations, spread / 2)[::2]
    for number, detection in enumerate(found):
        detection["score"] = 0.9 - number / 100
    measured = voc_ap50(annotations, detections(tmp_path, found))
    assert measured == pytest.approx(voc_by_hand(content, found), abs=1e-6)
    assert voc_ap50(annotations, detections(tmp_path, [])) == 0
