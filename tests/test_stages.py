"""Laws of the stages at the door: one sentence, exit code 1, nothing half-written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import stages
from ghm.data import sets
from stages import backbone, data, evaluate, report, train

ALL = {"data": data, "backbone": backbone, "train": train, "evaluate": evaluate, "report": report}
ROOT = Path(__file__).parents[1]


def ends_with(stage: str, words: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [stage, *arguments])
    with pytest.raises(SystemExit) as caught:
        stages.run(ALL[stage].main)
    assert str(caught.value.code).startswith("error: ")
    assert words in str(caught.value.code)
    assert "\n" not in str(caught.value.code)


@pytest.mark.parametrize("stage", ALL)
def test_a_missing_and_a_malformed_parameter_file_end_every_stage(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    ends_with(stage, "params.yaml is missing", monkeypatch, "fl_sl1")
    (tmp_path / "params.yaml").write_text("train: [")
    ends_with(stage, "params.yaml is not valid YAML (line 1)", monkeypatch, "fl_sl1")
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_the_exit_code_is_one_and_no_trace_is_shown(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "stages.data"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: params.yaml is missing: run from the repository's root")
    assert done.stderr.count("\n") == 1


def set_data(folder: Path, old: str, new: str) -> None:
    path = folder / "params.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1).replace("split: test", "split: val"))


def test_an_unknown_data_set_is_refused(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    set_data(workspace, "name: digits", "name: imagenet")
    ends_with("data", "data.name must be one of digits, bccd, voc, coco, custom, got 'imagenet'", monkeypatch)


def test_a_data_set_without_images_is_refused_and_no_manifest_is_left(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    root = workspace / "copy"
    set_data(workspace, "name: digits", "name: coco")
    set_data(workspace, "  root:", f"  root: {root}")
    ends_with("data", f"{root} is no copy of coco: annotations/instances_train2017.json,", monkeypatch)
    for split in sets.COCO_SPLITS.values():
        (root / split.annotations).parent.mkdir(parents=True, exist_ok=True)
        (root / split.annotations).write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
        (root / split.folder).mkdir()
    ends_with("data", "holds no images", monkeypatch)
    assert not (workspace / "data" / "coco.json").exists()


def test_an_unknown_variant_is_refused(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    for stage in ("train", "evaluate"):
        ends_with(
            stage, "the variant must be one of fl_sl1, ghmc_sl1, ghmc_ghmr, ghmc_smooth, got 'fl'", monkeypatch, "fl"
        )


def test_a_model_that_is_not_there_is_named(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    ends_with("evaluate", "runs/fl_sl1/seed_0/model.pth is missing: run `dvc repro", monkeypatch, "fl_sl1")
    assert not (workspace / "detections").exists() or not list((workspace / "detections").iterdir())
    assert not (workspace / "metrics").exists()


def test_data_that_is_not_what_the_manifest_says_stops_the_training(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    manifest = json.loads((workspace / "data" / "digits.json").read_text())
    manifest["splits"]["val"]["annotations_sha256"] = "0"
    (workspace / "data" / "digits.json").write_text(json.dumps(manifest))
    ends_with("train", "the data are not those that data/digits.json describes: ", monkeypatch, "fl_sl1")
