"""Laws of `studies/dvc.yaml`: a study runs again when, and only when, something that shapes its result has changed."""

import pytest
from ruamel.yaml import YAML

from ghm import sections
from ghm.study import definition, trials
from tests.study.conftest import ROOT
from tests.study.test_definition import NAMES

STAGES = YAML(typ="safe").load(ROOT / "studies" / "dvc.yaml")["stages"]
ROOT_STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]


@pytest.mark.parametrize("name", NAMES)
def test_a_study_depends_on_the_code_that_shapes_weights_and_metrics(name: str) -> None:
    wanted = {*ROOT_STAGES["train"]["do"]["deps"], *ROOT_STAGES["evaluate"]["do"]["deps"]}
    code = {path for path in wanted if path.startswith("ghm/")}
    compared = {"ghm/report/comparison.py", "ghm/study/comparison.py", "ghm/study/pooled.py"}
    assert set(STAGES[name]["deps"]) == {*code, *compared, "data/${data.name}.json", "weights"}


@pytest.mark.parametrize("name", NAMES)
def test_a_study_depends_on_the_parameters_that_its_trials_have(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    content = sections.read(definition.PARAMS)
    wanted = {f"data.{key}" for key in content["data"]} - {f"data.{key}" for key in trials.ELSEWHERE}
    wanted |= {*trials.SECTIONS} - {"data"}
    chosen = set()
    for cell in definition.load(name).cells():
        variant = definition.applied(content, cell.changes)["variants"][cell.variant]
        wanted |= {variant["cls"], variant["box"]}
        wanted |= {f"variants.{cell.variant}"} if cell.variant in content["variants"] else set()
        chosen |= {cell.changes["preset"]} if "preset" in cell.changes else set()
    shared, study, own, *merged = STAGES[name]["params"]
    assert {*shared["params.yaml"], *own["params.yaml"]} == wanted
    assert study == {f"studies/{name}.yaml": None}, "all of its file"
    assert merged == [{f"presets/{preset}.yaml": None} for preset in sorted(chosen)]


@pytest.mark.parametrize("name", NAMES)
def test_a_study_runs_in_the_root_and_leaves_its_three_files_to_git(name: str) -> None:
    stage = STAGES[name]
    assert (stage["cmd"], stage["wdir"]) == (f"python -m ghm.study {name}", "..")
    kept = {"cache": False, "persist": True}
    assert stage["outs"] == [{f"reports/studies/{name}.{ending}": kept} for ending in ("json", "md", "png")]
