"""Laws of the file for COCO's evaluation server."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ghm import data, params
from ghm.errors import InputError
from ghm.evaluation import run as evaluation
from tests.detect.conftest import Command
from tests.trained import RUN, VARIANT, truth


def use_coco(place: Path) -> params.Params:
    """The digits laid out as COCO 2017, its test split without annotations; make it the data set."""
    root = place / "coco"
    (root / "annotations").mkdir(parents=True)
    for name in ("train", "val", "test"):
        (root / f"{name}2017").symlink_to((Path("data/digits") / name).resolve())
        content: dict[str, Any] = truth(name)
        if name == "test":
            del content["annotations"]
        file = "image_info_test-dev2017" if name == "test" else f"instances_{name}2017"
        (root / "annotations" / f"{file}.json").write_text(json.dumps(content))
    text = Path("params.yaml").read_text()
    for old, new in (("name: digits", "name: coco"), ("  root: ", f"  root: {root} "), ("split: test", "split: val")):
        assert old in text
        text = text.replace(old, new, 1)
    Path("params.yaml").write_text(text.replace("test2017: false", "test2017: true", 1))
    given = params.load()
    data.prepare(given)
    return given


def test_a_split_without_labels_is_written_as_the_server_of_coco_takes_it(place: Path, command: Command):
    expected, _ = evaluation.detect(params.load(), VARIANT, 0, RUN / "model.pth", "test")
    use_coco(place)
    command("--split", "test-dev")
    stem = f"detections_test-dev2017_{VARIANT}_results"
    assert sorted(path.name for path in Path("out").iterdir()) == [f"{stem}.json", f"{stem}.zip"]
    with zipfile.ZipFile(f"out/{stem}.zip") as archive:
        assert archive.namelist() == [f"{stem}.json"]
        found = json.loads(archive.read(f"{stem}.json"))
    assert found == json.loads(Path(f"out/{stem}.json").read_text())
    for box, other in zip(found, expected, strict=True):
        assert box == {
            "image_id": other["image_id"],
            "category_id": other["category_id"],
            "bbox": pytest.approx(other["bbox"], abs=0.006),
            "score": pytest.approx(other["score"], abs=1e-5),
        }


def test_a_split_that_is_not_there_says_how_to_get_it(place: Path, command: Command):
    given = use_coco(place)
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("test2017: true", "test2017: false", 1))
    data.prepare(replace(given, data=replace(given.data, test2017=False)))
    with pytest.raises(InputError, match="got 'test-dev': set data.test2017 to true and run `dvc repro data`"):
        command("--split", "test-dev")
    Path("data/coco.json").unlink()
    with pytest.raises(InputError, match="data/coco.json is missing: run `dvc repro data`"):
        command("--split", "val")


def test_a_model_of_other_parameters_says_so(place: Path, command: Command):
    text = Path("params.yaml").read_text()
    assert "head_channels: 64" in text
    Path("params.yaml").write_text(text.replace("head_channels: 64", "head_channels: 32"))
    with pytest.raises(InputError, match=f"does not fit params.yaml .*`dvc repro train@{VARIANT}`"):
        command("--split", "val")
    assert not Path("out").exists()
