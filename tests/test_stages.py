"""Laws of the stages at the door: one sentence, exit code 1, nothing half-written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import stages
from ghm.data import sets
from stages import backbone, data, evaluate, inspect, report, train
from tests.conftest import ROOT, override_file

ALL = {"data": data, "inspect": inspect, "backbone": backbone, "train": train, "evaluate": evaluate, "report": report}


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
    command, environment = [sys.executable, "-m", "stages.data"], {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: params.yaml is missing: run from the repository's root")
    assert done.stderr.count("\n") == 1


def test_a_data_set_without_images_is_refused_and_no_manifest_is_left(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    root = workspace / "copy"
    override_file(Path("params.yaml"), {"data.name": "coco", "data.root": str(root), "evaluate.split": "val"})
    for split in sets.COCO_SPLITS.values():
        (root / split.annotations).parent.mkdir(parents=True, exist_ok=True)
        (root / split.annotations).write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
        (root / split.folder).mkdir()
    ends_with("data", "holds no images", monkeypatch)
    assert not (workspace / "data" / "coco.json").exists()


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_an_unknown_variant_is_refused(stage: str, workspace: Path, monkeypatch: pytest.MonkeyPatch):
    ends_with(stage, "the variant must be one of fl_sl1, ghmc_sl1, ghmc_ghmr, ", monkeypatch, "fl")
