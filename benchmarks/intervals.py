"""Time and memory of the intervals at the size of COCO val: 5,000 images, 80 classes, 100 detections an image.

    python -m benchmarks.intervals

Two artificial results are judged by pycocotools, which also matches them, then 1,000 resamples of the images give the
intervals of AP, AP50, AP75 and of their differences. Writes `benchmarks/results/intervals.json`.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ghm import files
from ghm.evaluation import bootstrap
from ghm.evaluation.judge import judge
from ghm.evaluation.matches import weighted
from ghm.training import run

RESULT = Path(__file__).parent / "results" / "intervals.json"
Record = dict[str, Any]


def truth(images: int, classes: int, rng: np.random.Generator) -> Record:
    """Boxes as in COCO: 7.3 an image, few classes with many, 1 % crowds."""
    share = 1 / np.arange(1, classes + 1) ** 0.9
    boxes = []
    for image in range(1, images + 1):
        for _ in range(rng.poisson(7.3)):
            side = np.exp(rng.normal(4.2, 0.9, 2)).clip(8, 400)
            left, top = rng.uniform(0, 640 - side[0]), rng.uniform(0, max(1.0, 480 - side[1]))
            category = int(rng.choice(classes, p=share / share.sum())) + 1
            boxes.append(
                {"id": len(boxes) + 1, "image_id": image, "category_id": category, "iscrowd": int(rng.random() < 0.01),
                 "bbox": [left, top, *side.tolist()], "area": float(side.prod())}
            )  # fmt: skip
    return {
        "images": [{"id": image, "file_name": "", "width": 640, "height": 480} for image in range(1, images + 1)],
        "annotations": boxes,
        "categories": [{"id": number + 1, "name": f"class {number}"} for number in range(classes)],
    }  # fmt: skip


def detections(content: Record, spread: float, each: int, rng: np.random.Generator) -> list[Record]:
    """Most boxes found, up to `spread` of their size aside, and false alarms up to `each` detections an image."""
    classes = len(content["categories"])
    of_image: dict[int, list[Record]] = {image["id"]: [] for image in content["images"]}
    for box in content["annotations"]:
        of_image[box["image_id"]].append(box)
    found = []
    for image, boxes in of_image.items():
        for number in range(each):
            if number < 2 * len(boxes):
                box = boxes[number // 2]
                scale = np.array([*box["bbox"][2:], *box["bbox"][2:]])
                place = np.array(box["bbox"]) + spread * rng.normal(size=4) * scale
                category = box["category_id"] if rng.random() < 0.85 else int(rng.integers(1, classes + 1))
                score = rng.beta(3, 2)
            else:
                place = np.array([*rng.uniform(0, 400, 2), *rng.uniform(10, 200, 2)])
                category, score = int(rng.integers(1, classes + 1)), rng.beta(1, 6)
            place[2:] = place[2:].clip(1)
            found.append(
                {"image_id": image, "category_id": category, "bbox": place.tolist(), "score": round(float(score), 4)}
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--each", type=int, default=100, help="detections an image")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    content = truth(arguments.images, arguments.classes, rng)
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        annotations = Path(folder) / "truth.json"
        annotations.write_text(json.dumps(content))
        results = [Path(folder) / f"{number}.json" for number in range(2)]
        for path, spread in zip(results, (0.1, 0.11), strict=True):
            path.write_text(json.dumps(detections(content, spread, arguments.each, rng)))
        weight_BI = bootstrap.weights(arguments.images)
        rows = []
        for path in results:
            start = time.monotonic()
            judged = judge(annotations, path)
            middle = time.monotonic()
            rows.append(weighted(judged.matches, weight_BI)[0])
            seconds = {"judge": round(middle - start, 1), "resample": round(time.monotonic() - middle, 1)}
            error = max(abs(rows[-1][name][0] - judged.stats[place]) for place, name in enumerate(bootstrap.METRICS))
            print(f"judged in {seconds['judge']} s, resampled in {seconds['resample']} s, {error:.1e} from pycocotools")
            assert error < 1e-12
    context = run.context()
    record = {
        "images": arguments.images,
        "classes": arguments.classes,
        "detections": arguments.images * arguments.each,
        "resamples": bootstrap.RESAMPLES,
        "judge_seconds": seconds["judge"],
        "resample_seconds": seconds["resample"],
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "device": context["device"],
        "versions": context["versions"],
    }
    for name in bootstrap.METRICS:
        difference = bootstrap.difference(rows[1][name][None], rows[0][name][None], arguments.images)
        assert difference, "the split has boxes"
        print(f"{name}: {100 * difference.estimate:+.2f} [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]")
    print(json.dumps(record, indent=1))
    files.write_json(RESULT, record)


if __name__ == "__main__":
    main()
