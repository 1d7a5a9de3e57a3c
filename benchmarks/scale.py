"""Time and memory of the data stage, of its check and of `dvc status` on a data set as large as COCO.

    python -m benchmarks.scale

Makes a COCO data set of 118,287 + 5,000 images, with 860,000 boxes whose polygons make the annotation file as long as
COCO's (450 MB), in a temporary folder, 1.2 GB. The images are hard links to small files, so that 200 a split can be
decoded as by default. Then, in a copy of this repository, as a user would run them: `dvc repro data` for the first time
and again, when nothing has changed; `dvc status`; and the check that each later stage makes before it reads images,
alone. How fast checksums are made is measured on a gigabyte of files as large as COCO's images.
Writes `benchmarks/results/scale.json`.
"""

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from ruamel.yaml import YAML

from benchmarks.losses import processor
from ghm.data import content

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "scale.json"
IMAGES = {"train": 118_287, "val": 5_000}
BOXES = {"train": 825_000, "val": 35_000}
CLASSES = 80
POINTS = 24  # of a polygon, on average: COCO's file has about as many bytes a box then
SIDES = (640, 480)
LINKS = 1000  # names a file on disk has
FILES, BYTES = 6_600, 160_000  # a gigabyte, in files as large as COCO's


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="ghm-scale-") as folder:
        root, clone = Path(folder) / "coco", Path(folder) / "clone"
        rng = np.random.default_rng(0)
        for number, split in enumerate(IMAGES):
            make(root, split, 1_000_000 * number, rng)
        copy_repository(clone)
        set_params(clone, "coco_r50_1x", {"root": str(root)})
        record = {
            "device": f"{processor()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "images": sum(IMAGES.values()),
            "boxes": sum(BOXES.values()),
            "annotations_mb": round(sum(path.stat().st_size for path in root.glob("annotations/*")) / 1e6),
            **measured(clone),
            "checksums_gb_per_second": checksum_rate(Path(folder) / "files"),
        }
    RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))


def make(root: Path, split: str, first: int, rng: np.random.Generator) -> None:
    """Write one split; ids begin after `first`."""
    folder = root / f"{split}2017"
    folder.mkdir(parents=True)
    names = [f"{first + number:012d}.jpg" for number in range(1, IMAGES[split] + 1)]
    for number, name in enumerate(names):
        source = folder / names[number - number % LINKS]
        if number % LINKS == 0:
            Image.new("L", SIDES, number % 251).save(source, quality=30)
        else:
            os.link(source, folder / name)
    width, height = SIDES
    path = root / "annotations" / f"instances_{split}2017.json"
    path.parent.mkdir(exist_ok=True)
    owner = np.sort(rng.integers(1, IMAGES[split] + 1, BOXES[split]))
    corner = rng.uniform(0, 0.8, (BOXES[split], 2)) * SIDES
    side = rng.uniform(0.005, 0.2, (BOXES[split], 2)) * SIDES
    category = rng.integers(1, CLASSES + 1, BOXES[split])
    polygons = [", ".join(f"{value:.2f}" for value in rng.uniform(0, height, 2 * POINTS)) for _ in range(1000)]
    with path.open("w", encoding="utf-8") as file:
        images = (
            f'{{"license": 3, "file_name": "{name}", "coco_url": "http://images.cocodataset.org/{split}2017/{name}", '
            f'"height": {height}, "width": {width}, "date_captured": "2013-11-14 11:18:45", "id": {first + number}}}'
            for number, name in enumerate(names, start=1)
        )
        file.write('{"info": {}, "images": [' + ",\n".join(images) + '],\n"annotations": [')
        for box in range(BOXES[split]):
            (x, y), (w, h) = corner[box].round(2).tolist(), side[box].round(2).tolist()
            file.write(
                f'{", " if box else ""}{{"segmentation": [[{polygons[box % 1000]}]], "area": {w * h:.4f}, '
                f'"iscrowd": 0, "image_id": {first + owner[box]}, "bbox": [{x}, {y}, {w}, {h}], '
                f'"category_id": {category[box]}, "id": {first + box + 1}}}'
            )
        categories = [{"supercategory": "thing", "id": n, "name": f"class {n}"} for n in range(1, CLASSES + 1)]
        file.write(f'],\n"categories": {json.dumps(categories)}}}\n')


def copy_repository(place: Path) -> None:
    """Make a repository at `place` with the files of this one, changed ones as they are."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)
    subprocess.run(["git", "init", "--quiet"], cwd=place, check=True)


def set_params(clone: Path, preset: str, data: dict[str, Any]) -> None:
    """Apply a preset in a copy of the repository, and set values of its section `data`."""
    subprocess.run([sys.executable, "-m", "ghm.presets", preset], cwd=clone, check=True, capture_output=True)
    yaml = YAML()
    content = yaml.load(clone / "params.yaml")
    content["data"].update(data)
    yaml.dump(content, clone / "params.yaml")


def measured(clone: Path) -> dict[str, Any]:
    """Seconds and peak memory of the commands, the start of Python and all imports included."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def seconds(*words: str) -> float:
        start = time.perf_counter()
        subprocess.run(words, cwd=clone, env=environment, check=True)
        return round(time.perf_counter() - start, 1)

    stage = seconds("dvc", "repro", "data")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6  # kilobytes on Linux
    check = "import time; from ghm import data, params; p = params.load(); t = time.time(); data.ensure(p)"
    ensured = subprocess.run(
        [sys.executable, "-c", f"{check}; print(time.time() - t)"],
        cwd=clone, env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return {
        "stage_seconds": stage,
        "stage_peak_gb": round(peak, 2),
        "stage_again_seconds": seconds("dvc", "repro", "data"),
        "check_seconds": round(float(ensured.stdout), 1),
        "status_seconds": seconds("dvc", "status"),
    }


def checksum_rate(folder: Path) -> float:
    """Gigabytes per second that the content of images is read and summed at, from the page cache."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = [f"{number}.jpg" for number in range(FILES)]
    for name in names:
        (folder / name).write_bytes(rng.bytes(BYTES))
    start = time.perf_counter()
    content.contents(folder / "index", folder, names, images=False)
    return round(FILES * BYTES / (time.perf_counter() - start) / 1e9, 2)


if __name__ == "__main__":
    main()
