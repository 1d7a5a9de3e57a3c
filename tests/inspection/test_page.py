"""Laws of the page on the data: whole, the same each time, true to the training, and there whatever the data are."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ghm import data, params
from ghm.data import annotations
from ghm.data.annotations import Annotations
from ghm.inspection import page, sheets
from ghm.inspection.anchors import POSITIVE, Setting, best_iou, used
from stages import inspect as stage
from tests.conftest import override_file
from tests.inspection.conftest import write_set

PICTURES = {"true_boxes.jpg", "batch.jpg", "sizes.png"}


def written() -> str:
    stage.main()
    return Path("reports/data.md").read_text()


def require_whole(text: str) -> None:
    """Each picture is on the page, and what is on the page is there."""
    shown = re.findall(r"!\[.{20,}?\]\(data/([\w.]+)\)", text)
    assert {*shown} == {path.name for path in Path("reports/data").iterdir()} == PICTURES
    for name in shown:
        with Image.open(Path("reports/data", name)) as picture:
            picture.load()


def test_the_page_counts_every_split_and_class_and_is_the_same_each_time(workspace: Path):
    text = written()
    require_whole(text)
    manifest = json.loads(Path("data/digits.json").read_text())
    for name, split in manifest["splits"].items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} "))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        sizes = split["boxes_per_size"]
        numbers = [split[key] for key in ("images", "images_without_boxes", "boxes")]
        assert cells[1:7] == [str(number) for number in (*numbers, sizes["small"], sizes["medium"], sizes["large"])]
    counts = {name: split["boxes_per_class"]["7"] for name, split in manifest["splits"].items()}
    assert re.search(rf"^\| 7 +\| +{counts['train']} \| +{counts['val']} \| +{counts['test']} \|$", text, re.MULTILINE)
    before = {path: path.read_bytes() for path in Path("reports/data").iterdir()}
    assert written() == text
    assert {path: path.read_bytes() for path in Path("reports/data").iterdir()} == before


def test_the_assigner_of_the_head_agrees_with_the_best_ious(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    own = write_set(workspace / "own", 12, ["a"], boxes=2, size=(64, 64), side=9)
    override_file(Path("params.yaml"), {**own, "train.image_scale": [128, 128]})
    data.prepare(params.load())
    parameters = params.load()
    monkeypatch.setattr(sheets, "CELLS", 12)  # all images
    _, boxes, reached = sheets.batch(parameters, data.read_manifest(parameters))
    content = annotations.read(data.annotation_file(parameters, "train"), Annotations)
    good = int((best_iou(used(content), Setting.of(parameters)) >= POSITIVE).sum())
    assert boxes == 24
    assert 0 < reached < boxes  # or this would show nothing
    assert good - 2 <= reached <= good  # an anchor that is best for two boxes stands for one


def test_what_is_drawn_is_what_was_trained_on(workspace: Path):
    """White boxes and the image itself: the preprocessor's numbers are turned back, flips and all."""
    root = workspace / "own"
    override_file(Path("params.yaml"), {**write_set(root, 1, ["a"], boxes=1, size=(64, 64)), "train.flip": 1.0})
    data.prepare(params.load())
    sheet, _, _ = sheets.batch(params.load(), data.read_manifest(params.load()))
    with Image.open(root / "train" / "1.png") as image:
        expected = np.asarray(image)[:, ::-1]
    factor = sheet.width // 64
    found = np.asarray(sheet)[factor // 2 :: factor, factor // 2 :: factor]
    same = (np.abs(found.astype(int) - expected) <= 1).all(axis=2)
    assert same.mean() > 0.5  # all but boxes and anchors


CASES: dict[str, dict[str, Any]] = {
    "one image": {"images": 1, "classes": ["a"]},
    "one box": {"images": 1, "classes": ["a", "without boxes"], "boxes": 1},
    "80 classes": {"images": 4, "classes": [f"class {number}" for number in range(80)], "boxes": 25},
    "names of 40 letters": {"images": 3, "classes": ["|*_`$<b>" + "long" * 8, "x" * 40]},
    "an image that is all box": {"images": 2, "classes": ["a"], "size": (33, 33), "side": 32},
    "long images": {"images": 2, "classes": ["a"], "size": (900, 24), "side": 20},
}


@pytest.mark.parametrize("case", CASES)
def test_whatever_the_data_there_is_a_page(case: str, workspace: Path):
    override_file(Path("params.yaml"), write_set(workspace / "own", **CASES[case]))
    data.prepare(params.load())
    text = written()
    require_whole(text)
    assert ("<summary>Boxes of 80 classes</summary>" in text) == (case == "80 classes")


def test_an_image_that_may_be_left_out_is_left_out(workspace: Path):
    root = workspace / "own"
    override_file(Path("params.yaml"), {**write_set(root, 3, ["a"]), "data.max_bad_images": 1})
    (root / "train" / "2.png").write_bytes(b"")
    data.prepare(params.load())
    require_whole(written())


def test_a_page_that_fails_leaves_the_old_one(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    before = written()
    Path("data/digits").unlink()
    with pytest.raises(Exception, match="digits"):
        page.write(params.load())
    assert Path("reports/data.md").read_text() == before
    assert {path.name for path in Path("reports").iterdir()} == {"data", "data.done", "data.md"}
