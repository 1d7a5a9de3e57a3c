"""Small data sets in COCO's format with detections, easy ones and hard ones, and what pycocotools says of them."""

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ghm.evaluation import matches
from ghm.evaluation.judge import Judged, judge
from ghm.evaluation.matches import Matches

Record = dict[str, Any]
Box = tuple[float, float, float, float]  # left, top, width, height
CLASSES = {30: "a", 7: "b", 2: "c", 11: "d", 5: "e"}  # with gaps, and not in the order of their ids


@dataclass(frozen=True)
class Case:
    """The content of an annotation file and of a file of detections."""

    truth: Record
    found: list[Record]

    def files(self, folder: Path) -> tuple[Path, Path]:
        """Write both."""
        paths = folder / "truth.json", folder / "detections.json"
        for path, content in zip(paths, (self.truth, self.found), strict=True):
            path.write_text(json.dumps(content))
        return paths

    def judged(self, folder: Path) -> Judged:
        return judge(*self.files(folder))


def case(images: list[int], boxes: list[Record], found: list[Record], classes: dict[int, str] = CLASSES) -> Case:
    """Number the boxes and give them the area that they have."""
    numbered = [
        {"id": n + 1, "iscrowd": 0, "area": box["bbox"][2] * box["bbox"][3]} | box for n, box in enumerate(boxes)
    ]
    sides = {"width": 640, "height": 640}
    return Case(
        {
            "images": [{"id": image, "file_name": f"{image}.jpg", **sides} for image in images],
            "annotations": numbered,
            "categories": [{"id": number, "name": name} for number, name in classes.items()],
        },
        found,
    )


def box(image: int, category: int, bbox: Box, **more: Any) -> Record:
    return {"image_id": image, "category_id": category, "bbox": list(bbox), **more}


def detection(image: int, category: int, bbox: Box, score: float) -> Record:
    return box(image, category, bbox, score=score)


def pycocotools(given: Case) -> COCOeval:
    """All classes at once, as its manual has it."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        truth.dataset = json.loads(json.dumps(given.truth))
        truth.createIndex()
        if given.found:
            found = truth.loadRes(json.loads(json.dumps(given.found)))
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def matched(given: Case) -> Matches:
    evaluation = pycocotools(given)
    settings = evaluation.params
    return matches.together(settings.imgIds, settings.catIds, matches.of_classes(evaluation))


def overlap(one: list[float], other: list[float]) -> float:
    """IoU."""
    ious: Any = mask.iou([one], [other], [0])  # type: ignore[arg-type]
    return float(ious[0, 0])


def artificial(
    seed: int, *, images: int = 9, ties: bool = True, boxes: float = 4, spread: float = 0.12, crowds: float = 0.15
) -> Case:
    """Boxes of all sizes in images of odd ids: many found, some twice or with another class, and false alarms.

    The last class has no boxes, the one before no detections. With `ties`, scores have one digit, else all differ.
    """
    rng = np.random.default_rng(seed)
    ids = [int(number) for number in 3 * rng.permutation(images) + 4]
    numbers = list(CLASSES)
    truth, found = [], []
    for image in ids:
        for _ in range(rng.poisson(boxes) * int(rng.random() < 0.85)):
            side = np.exp(rng.normal(4, 1, 2)).clip(4, 400)
            bbox = (*rng.uniform(0, 640 - side).tolist(), *side.tolist())
            category = int(rng.choice(numbers[:-1]))
            truth.append(box(image, category, bbox, iscrowd=int(rng.random() < crowds)))
            for _ in range(rng.choice(3, p=[0.2, 0.6, 0.2])):
                moved = np.array(bbox) + spread * rng.normal(size=4) * np.tile(side, 2)
                label = category if rng.random() < 0.8 else int(rng.choice(numbers))
                found.append(detection(image, label, moved.clip(1).tolist(), float(rng.beta(3, 2))))
        for _ in range(rng.poisson(2)):
            alarm = (*rng.uniform(0, 400, 2).tolist(), *rng.uniform(5, 200, 2).tolist())
            found.append(detection(image, int(rng.choice(numbers)), alarm, float(rng.beta(2, 3))))
    found = [found[n] for n in rng.permutation(len(found)) if found[n]["category_id"] != numbers[-2]]
    for entry, rank in zip(found, rng.permutation(len(found)).tolist(), strict=True):
        entry["score"] = round(entry["score"], 1) if ties else (rank + 1) / (len(found) + 1)
    return case(ids, truth, found)


SQUARE: Box = (0, 0, 100, 100)


def _crowds() -> Case:
    crowd = box(2, 7, SQUARE, iscrowd=1)
    boxes = [crowd, box(2, 7, (60, 60, 30, 30)), box(2, 5, SQUARE, iscrowd=1), box(9, 7, (0, 0, 50, 50))]
    places: list[Box] = [(60, 60, 30, 30), (61, 60, 30, 30), (5, 5, 20, 20), (5, 5, 22, 20), (90, 90, 40, 40)]
    found = [detection(2, label, place, 0.9 - n / 10) for label in (7, 5) for n, place in enumerate(places)]
    return case([9, 2], boxes, [*found, detection(9, 7, (0, 0, 50, 45), 0.75), detection(9, 5, SQUARE, 0.3)])


def _more_than_a_hundred() -> Case:
    places: list[Box] = [(4.0 * n, 0, 3.5, 100) for n in range(130)]
    found = [detection(4, 7, place, 0.3 + ((n * 37) % 130) / 260) for n, place in enumerate(places)]
    return case(
        [4, 6], [box(4, 7, place) for place in places] + [box(6, 7, SQUARE)], [*found, detection(6, 7, SQUARE, 0.2)]
    )


def _iou_exactly_on_a_threshold() -> Case:
    images = list(range(11))
    found = [detection(n, 7, (0, 0, 100, 50 + 5 * n), 0.9 - n / 20) for n in images]
    return case(images, [box(n, 7, SQUARE) for n in images], found)


def _areas() -> Case:
    """Of no area, negative, on the edges of COCO's sizes and beyond the largest."""
    sides = [0.0, 31.9, 32.0, 32.1, 96.0, 96.1, 120_000.0]
    boxes = [box(n, 7, (0, 0, side, side)) for n, side in enumerate(sides)]
    boxes.append(box(7, 7, SQUARE, area=-1))
    found = [detection(n, label, (0, 0, side, side), 0.9 - n / 20) for n, side in enumerate(sides) for label in (7, 2)]
    return case(list(range(8)), boxes, [*found, detection(7, 7, SQUARE, 0.95)])


HARD: dict[str, Callable[[], Case]] = {
    "crowds": _crowds,
    "only crowds in a class": lambda: case(
        [1, 2], [box(1, 7, SQUARE, iscrowd=1), box(1, 2, SQUARE)], [detection(1, n, SQUARE, 0.5) for n in CLASSES]
    ),
    "more than a hundred detections": _more_than_a_hundred,
    "IoU exactly on a threshold": _iou_exactly_on_a_threshold,
    "areas": _areas,
    "one image": lambda: artificial(3, images=1, boxes=25),
    "no detections": lambda: case([1, 2], [box(1, 7, SQUARE), box(2, 2, SQUARE)], []),
    "no boxes": lambda: case([1, 2], [], [detection(1, 7, SQUARE, 0.5)]),
    "one class": lambda: case([1], [box(1, 4, SQUARE)], [detection(1, 4, (0, 0, 100, 70), 0.5)], {4: "only"}),
}


def scene(key: str | int) -> Case:
    """One of HARD by its name, or an artificial one by its seed."""
    return HARD[key]() if isinstance(key, str) else artificial(key)


KEYS: list[str | int] = [*HARD, *range(6)]
