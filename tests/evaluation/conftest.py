"""A data set of images of mixed shapes for the detector of the tiny run."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ghm import data, params
from tests.conftest import override_file
from tests.trained import truth

# Width and height. Scaled into 160 x 96 or 96 x 160 they are padded to six sizes.
SHAPES = ((160, 96), (96, 160), (70, 70), (150, 60), (160, 96), (60, 150), (100, 80), (160, 90), (70, 71), (90, 30))
IMAGES = 26  # in the test split
BROKEN = (3, 9)  # images of it that cannot be read: among eight at a time one in each of two processes


@pytest.fixture
def mixed(place: Path) -> Path:
    """The folder of the trained detector, with `data.name: custom` of the classes of digits."""
    rng, categories = np.random.default_rng(0), truth("test")["categories"]
    for split, count in (("train", 2), ("val", 7), ("test", IMAGES)):
        folder = place / "mixed" / split
        folder.mkdir(parents=True)
        images, boxes = [], []
        for number in range(1, count + 1):
            width, height = SHAPES[int(rng.integers(len(SHAPES)))]
            coarse = Image.fromarray(rng.integers(0, 255, (height // 10, width // 10, 3), np.uint8))
            coarse.resize((width, height)).save(folder / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
            box = {"id": number, "image_id": number, "bbox": [2, 3, 20, 25], "area": 500, "iscrowd": 0}
            boxes.append({**box, "category_id": categories[number % len(categories)]["id"]})
        content = {"images": images, "annotations": boxes, "categories": categories}
        (place / "mixed" / f"{split}.json").write_text(json.dumps(content))
    values = {
        f"custom.{split}": {"annotations": f"{split}.json", "images": split} for split in ("train", "val", "test")
    }
    values |= {"data.name": "custom", "data.root": str(place / "mixed"), "train.image_scale": [160, 96]}
    override_file(Path("params.yaml"), {**values, "machine.check_images": "none"})
    return place


def prepare(broken: tuple[int, ...] = ()) -> params.Params:
    """Prepare the mixed images, of which these cannot be read."""
    for number in broken:
        path = Path(f"mixed/test/{number}.png")
        path.write_bytes(path.read_bytes()[:50])
    data.prepare(params.load())
    return params.load()
