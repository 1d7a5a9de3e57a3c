"""Laws of `dvc.yaml`: a stage runs again when, and only when, something that shapes its outs has changed."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from ghm import fingerprint, losses, params
from ghm.inspection.page import DONE
from tests.conftest import ROOT

DVC = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
STAGES = {name: stage.get("do", stage) for name, stage in DVC["stages"].items()}
LOSSES = {name for loss in losses.__all__ for name in fingerprint.loss_sources(f"ghm.{loss}")}
# Found by their registered names, not imported.
REGISTERED = ["head.py", "losses/*.py", "norms.py", "training/samples.py"]
# Run through by a training run, and without effect on a weight.
WITHOUT_EFFECT = (
    *("augment.py", "backbones.py", "data/", "pretraining.py"),  # what they make is in the fingerprint
    *("check.py", "losses/checks.py", "params.py", "sections.py", "training/guards.py"),  # they check
    *("predict.py", "training/gradient_norms.py", "training/validation.py"),  # they watch
    *("training/cost.py", "training/progress.py"),  # so do these
    *("files.py", "fingerprint.py", "runs.py", "truth.py"),  # they read and save
    *("training/run.py", "training/state.py"),  # so do these
    *("__init__.py", "losses/__init__.py", "registry.py", "training/__init__.py"),  # they name others
    *("cli.py", "devices.py", "errors.py", "training/processes.py", "words.py"),  # they start and speak
    "side_by_side.py",  # so does this
)


def imported(start: list[Path]) -> set[str]:
    """The files of the package behind the imports of some files, and behind theirs."""
    found, waiting = set(start), list(start)
    while waiting:
        for node in ast.walk(ast.parse(waiting.pop().read_text())):
            names: list[str] = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                parts = name.split(".")
                if parts[0] != "ghm":
                    continue
                packages = [ROOT.joinpath(*parts[:end], "__init__.py") for end in range(1, len(parts) + 1)]
                files = [path for path in (ROOT.joinpath(*parts).with_suffix(".py"), *packages) if path.is_file()]
                waiting += [path for path in files if path not in found]
                found.update(files)
    return {str(path.relative_to(ROOT / "ghm")) for path in found if ROOT / "ghm" in path.parents}


def listed(stage: str) -> set[str]:
    """The files of the package that a stage lists."""
    found: set[str] = set()
    for dependency in STAGES[stage]["deps"]:
        path = ROOT / dependency
        if dependency.startswith("ghm/"):
            assert path.exists(), dependency
            found |= {str(file.relative_to(ROOT / "ghm")) for file in (path.glob("*.py") if path.is_dir() else [path])}
    return found


def test_a_training_run_depends_on_what_its_fingerprint_is_taken_of():
    assert listed("train") == {*fingerprint.SOURCES, *LOSSES}
    own = ["${item.cls}", "${item.box}", "variants.${key}"]
    assert STAGES["train"]["params"] == ["seeds", "data.max_bad_images", *fingerprint.PARAMETERS, *own]
    assert listed("backbone") == {
        *("backbones.py", "checkpoints.py", "config.py", "pretraining.py", "data/digits.py", "data/digits_render.py")
    }


def test_the_data_are_seen_before_anything_is_trained_and_what_is_seen_makes_nothing_train_again():
    (waited_for,) = {path for path in STAGES["backbone"]["deps"] if path.startswith("reports/")}
    assert waited_for in {name for out in STAGES["inspect"]["outs"] for name in out}
    assert {*STAGES["backbone"]["outs"]} <= {*STAGES["train"]["deps"]}
    assert (ROOT / waited_for).read_text() == DONE  # a constant: no parameter and no data are in it


def test_no_file_of_the_losses_imports_another_loss():
    modules = {getattr(losses, name).__module__ for name in losses.__all__}
    for path in {*(ROOT / "ghm" / "losses").glob("*.py")} - {ROOT / "ghm" / "losses" / "__init__.py"}:
        assert not modules & set(re.findall(r"^ *from (\S+) import", path.read_text(), re.MULTILINE)), path


def test_every_file_that_a_training_run_goes_through_shapes_its_weights_or_is_said_not_to():
    start = [ROOT / "stages" / "train.py", *(path for name in REGISTERED for path in (ROOT / "ghm").glob(name))]
    known = {*fingerprint.SOURCES, *LOSSES}
    rest = imported(start) - known
    assert {name for name in rest if not name.startswith(WITHOUT_EFFECT)} == set()
    for name in WITHOUT_EFFECT:
        assert any(file.startswith(name) for file in rest), name


@pytest.mark.parametrize("stage", ["inspect", "backbone", "evaluate", "report"])
def test_a_stage_lists_files_that_it_runs_through(stage: str):
    start = [ROOT / "stages" / f"{stage}.py"]
    if stage in ("inspect", "evaluate"):
        start += [ROOT / "ghm" / name for name in ("head.py", "norms.py", "training/samples.py")]
    needed = imported(start)
    assert listed(stage) <= needed
    room = {"inspect": "inspection/", "evaluate": "evaluation/", "report": "report/"}.get(stage, "backbones.py")
    assert {name for name in needed if name.startswith(room)} <= listed(stage)


def test_no_stage_depends_on_a_setting_of_the_machine_or_on_where_the_data_lie():
    for name, stage in STAGES.items():
        names = set(stage.get("params", []))
        assert not {"data", "data.root", "data.source"} & names, name
        assert not [each for each in names if each.startswith("machine")], name
    fields = {f"data.{field.name}" for field in dataclasses.fields(params.Data)} - {"data.root", "data.source"}
    assert fields == {name for name in STAGES["data"]["params"] if name.startswith("data.")}


def test_every_variant_of_params_yaml_has_its_model_as_an_artifact():
    variants = YAML(typ="safe").load((ROOT / "params.yaml").read_text())["variants"]
    assert {name: entry["path"] for name, entry in DVC["artifacts"].items()} == {
        name: f"runs/{name}/seed_0/model.pth" for name in variants
    }
