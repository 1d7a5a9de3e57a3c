"""Time and memory of the stage `data` on a large YOLO data set of one's own, sizes read from headers.

    python -m benchmarks.import_yolo

Makes 50,000 JPEG images of 320 x 240 pixels with 400,000 boxes of 20 classes in a temporary folder, 400 MB, and runs
`python -m stages.data` in a copy of this repository: with the splits in folders of their own; without splits, which are
then made, all images compared with each other; once more with nothing changed; and with 500 images added, whose splits
are made while the others keep theirs. All of the stage counts: the start of Python, labels, sizes, the conversion,
checksums, and the checks before training. Writes `benchmarks/results/import_yolo.json`.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.losses import processor
from benchmarks.scale import copy_repository, set_params

RESULT = Path(__file__).parent / "results" / "import_yolo.json"
IMAGES, ADDED, BOXES, CLASSES = 50_000, 500, 8, 20
SIDES = (320, 240)
# Runs the stage and prints its seconds and its peak memory in kilobytes.
STAGE = """
import resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run([sys.executable, "-m", "stages.data"], check=True)
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="ghm-import-") as folder:
        place = Path(folder)
        record: dict[str, Any] = {
            "device": f"{processor()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "images": IMAGES,
            "boxes": IMAGES * BOXES,
        }
        write(place / "plain", range(IMAGES))
        split = place / "split"
        (split / "images").mkdir(parents=True)
        (split / "classes.txt").symlink_to(place / "plain" / "classes.txt")
        for number, name in enumerate(sorted((place / "plain" / "images").iterdir())):
            part = "val" if number % 10 == 0 else "test" if number % 10 == 1 else "train"
            for kind, file in (("images", name), ("labels", place / "plain" / "labels" / f"{name.stem}.txt")):
                (split / kind / part).mkdir(parents=True, exist_ok=True)
                os.link(file, split / kind / part / file.name)
        clone = place / "clone"
        copy_repository(clone)
        record |= measured(clone, "with_splits", split, place / "store")
        record |= measured(clone, "splits_made", place / "plain", place / "store")
        record |= measured(clone, "nothing_changed", place / "plain", place / "store")
        write(place / "plain", range(IMAGES, IMAGES + ADDED))
        record |= measured(clone, "images_added", place / "plain", place / "store")
    RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))


def write(root: Path, numbers: range) -> None:
    """Write images, all different, and their labels."""
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("".join(f"class {number}\n" for number in range(CLASSES)))
    rng = np.random.default_rng(numbers.start)
    for _ in numbers:
        colours = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8))
        name = f"{rng.integers(1 << 60):015x}"
        colours.resize(SIDES, Image.Resampling.BICUBIC).save(root / "images" / f"{name}.jpg", quality=50)
        lines = np.column_stack([rng.uniform(0.2, 0.8, (BOXES, 2)), rng.uniform(0.02, 0.3, (BOXES, 2))])
        labels = rng.integers(0, CLASSES, BOXES)
        text = "".join(
            f"{label} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for label, (x, y, w, h) in zip(labels, lines, strict=True)
        )
        (root / "labels" / f"{name}.txt").write_text(text)


def measured(clone: Path, name: str, root: Path, store: Path) -> dict[str, float]:
    """Seconds and peak memory of the stage in the copy of the repository."""
    set_params(clone, "tiny", {"name": "custom", "root": str(root)})
    environment = {**os.environ, "GHM_DATA_ROOT": str(store)}
    done = subprocess.run(
        [sys.executable, "-c", STAGE], cwd=clone, env=environment, check=True, capture_output=True, text=True
    )
    seconds, kilobytes = done.stdout.split()[-2:]
    return {f"{name}_seconds": round(float(seconds), 1), f"{name}_peak_gb": round(int(kilobytes) / 1e6, 2)}


if __name__ == "__main__":
    main()
