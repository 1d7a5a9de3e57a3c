"""A trained detector, photographs to look at, and the command."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ghm.detect import __main__ as module
from ghm.detect.detector import find_run
from tests.trained import RUN, VARIANT

TEST = Path("data/digits/test")
Command = Callable[..., dict[str, Any]]


@pytest.fixture
def photos(place: Path) -> Path:
    """Images of three sizes in two folders, with a name that is there twice, and a file that is none."""
    folder = place / "photos"
    sizes = {"a.jpg": (64, 64), "b.png": (100, 60), "deep/a.JPG": (64, 64), "deep/c.jpg": (50, 90)}
    (folder / "deep").mkdir(parents=True)
    for number, (name, size) in enumerate(sizes.items(), start=1):
        with Image.open(TEST / f"{number:06d}.jpg") as image:
            image.resize(size).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `python -m ghm.detect`, and return the content of the COCO file where one is written."""

    def call(*words: object, variant: str | None = VARIANT, out: str = "out") -> dict[str, Any]:
        chosen = ["--variant", variant] if variant else []
        monkeypatch.setattr(sys, "argv", ["detect", *chosen, *map(str, words), "--out", out])
        module.main()
        path = Path(out, "detections.json")
        return json.loads(path.read_text()) if path.is_file() else {}

    return call


def by_image(content: dict[str, Any]) -> dict[str, list[tuple[str, float, list[float]]]]:
    """File name -> class, score and box of what is found on it."""
    classes = {category["id"]: category["name"] for category in content["categories"]}
    names = {image["id"]: Path(image["file_name"]).name for image in content["images"]}
    found: dict[str, list[Any]] = {name: [] for name in names.values()}
    for box in content["annotations"]:
        found[names[box["image_id"]]].append((classes[box["category_id"]], box["score"], box["bbox"]))
    return found


def require_equal(found: list[Any], expected: list[Any]) -> None:
    """The same classes, scores and boxes, but for rounding."""
    assert len(found) == len(expected) > 0
    found, expected = (sorted(rows, key=lambda row: (-round(row[1], 5), row[0], row[2])) for rows in (found, expected))
    for one, other in zip(found, expected, strict=True):
        assert one[0] == other[0]
        assert one[1] == pytest.approx(other[1], abs=1e-5)
        assert one[2] == pytest.approx(other[2], abs=1e-3)


def foreign(**changes: Any) -> tuple[Path, Path]:
    """The trained detector as a config and a checkpoint of mmdet's own, changed."""
    config = find_run(VARIANT, 0)[0].read_text().replace("'ghm.LoadImage'", "'LoadImageFromFile'")
    for old, new in changes.get("config", {}).items():
        assert old in config
        config = config.replace(old, new)
    content = torch.load(RUN / "model.pth", weights_only=True)
    content["meta"] = changes.get("meta", {})
    Path("foreign.py").write_text(config)
    torch.save(content, "foreign.pth")
    return Path("foreign.py"), Path("foreign.pth")


def words_for(source: tuple[Path, Path]) -> tuple[object, ...]:
    return "--config", source[0], "--checkpoint", source[1]
