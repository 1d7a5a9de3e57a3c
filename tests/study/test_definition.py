"""Laws of a study's file: what is wrong is said in a sentence with file, key and remedy, before anything is trained."""

import re
from pathlib import Path
from typing import Any

import pytest

from ghm.errors import InputError
from ghm.study import definition
from ghm.study.definition import FOLDER
from tests.study.conftest import ROOT, Trainer, curve, define, run_study

NAMES = sorted(path.stem for path in (ROOT / FOLDER).glob("*.yaml") if path.stem != "dvc")


@pytest.mark.parametrize("name", NAMES)
def test_every_study_asks_for_runs_that_the_parameters_allow(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    study = definition.load(name)
    assert study.question.endswith("?")
    assert definition.splits(study) == ("val", "test")
    assert len(study.seeds) == 3


def test_cells_are_conditions_by_curves_by_values_and_what_is_not_swept_is_one_cell(trainer: Trainer):
    name = define(conditions={"clean": {}, "noisy": {"data.label_noise": 0.3}})
    found = [(cell.condition, cell.curve, cell.value, cell.changes) for cell in definition.load(name).cells()]
    noise = {"data.label_noise": 0.3}
    assert found == [
        ("clean", "FL", None, {}),
        ("clean", "GHM-C", 10, {"ghmc.bins": 10}),
        ("clean", "GHM-C", 20, {"ghmc.bins": 20}),
        ("noisy", "FL", None, noise),
        ("noisy", "GHM-C", 10, {**noise, "ghmc.bins": 10}),
        ("noisy", "GHM-C", 20, {**noise, "ghmc.bins": 20}),
    ]


FL, SWEPT = curve("fl_sl1", swept=False), curve("ghmc_sl1")
TOGETHER = "parameter, values and the curves that are swept must be there or be missing together, got"
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"curvs": {}}, "curvs is not a known key, got {}; did you mean curves. allowed: question, parameter"),
    ({"parameter": "ghmc.bin"}, "ghmc.bin is not a known key, got 10; did you mean bins"),
    ({"parameter": "seeds"}, "seeds must be section.key of params.yaml, whose sections are variants,"),
    ({"curves": {"FL": FL, "GHM-C": curve("ghmc")}}, "curves.GHM-C.variant must be one of fl_sl1, .*got 'ghmc'"),
    ({"values": [0, 10]}, "ghmc.bins must be a whole number, 1 or greater, got 0"),
    ({"parameter": None}, f"{TOGETHER} None, .10, 20. and .'GHM-C'."),
    ({"curves": {"FL": FL, "A": FL}}, f"{TOGETHER} ghmc.bins, .10, 20. and .."),
    ({"values": [10, 10]}, "values must differ from each other and not be null, got .10, 10."),
    ({"curves": {"A": SWEPT, "B": curve("x", variants__x={"cls": "focus", "box": "ghmr"})}}, "variants.x.cls must be"),
    ({"conditions": {"VOC": {"data.name": "voc"}, "digits": {}}}, "data.name must be of .* with the same splits"),
]


@pytest.mark.parametrize(("keys", "words"), WRONG)
def test_a_typing_mistake_is_named_before_anything_is_trained(keys: dict[str, Any], words: str, trainer: Trainer):
    with pytest.raises(InputError, match=rf"^studies/wrong\.yaml: {words}"):
        run_study(define("wrong", **keys))
    assert trainer.trained == []


def test_a_file_that_is_no_yaml_and_one_that_is_not_there_are_named(trainer: Trainer):
    Path("studies", f"{define()}.yaml").write_text("question: [")
    with pytest.raises(InputError, match=re.escape("studies/asked.yaml is not valid YAML (line 1): ")):
        definition.load("asked")
    with pytest.raises(InputError, match="the study must be one of asked, got 'bin'"):
        definition.load("bin")
