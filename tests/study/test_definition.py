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


def test_the_studies_of_the_paper_have_its_figures(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    published = {name: definition.load(name).published for name in NAMES}
    assert [published["bins"][0].of("GHM-C", value) for value in (5, 10, 20, 30, 40)] == [33.4, 34.6, 35.2, 35.8, 35.4]
    momentum = [published["momentum"][0].of("GHM-C, 10 bins", value) for value in (0.0, 0.5, 0.75, 0.9)]
    assert momentum == [None, 34.4, 34.6, "NaN"]
    assert [source.of("GHM-C + GHM-R", None) for source in published["regression"]] == [36.4, 37.0]
    assert [source.of("GHM-C + ASL1", None) for source in published["regression"]] == [35.7, None]
    assert published["losses"][0].ap == {"Focal Loss": 35.6, "cross entropy": 28.6, "OHEM": 31.1, "GHM-C": 35.8}


def test_cells_are_conditions_by_curves_by_values_and_what_is_not_swept_is_one_cell(trainer: Trainer):
    name = define(conditions={"clean": {}, "noisy": {"data.label_noise": 0.3}})
    found = [(cell.condition, cell.curve, cell.value, cell.changes) for cell in definition.cells(definition.load(name))]
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
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"curvs": {}}, "curvs is not a known key, got {}; did you mean curves. allowed: question, parameter"),
    ({"parameter": "ghmc.bin"}, "ghmc.bin is not a known key, got 10; did you mean bins"),
    ({"parameter": "seeds"}, "seeds must be section.key of params.yaml, whose sections are variants,"),
    ({"curves": {"FL": FL, "GHM-C": curve("ghmc")}}, "curves.GHM-C.variant must be one of fl_sl1, .*got 'ghmc'"),
    ({"conditions": {"dirty": {"data.noise": 0.3}}}, "data.noise is not a known key, got 0.3"),
    ({"values": [0, 10]}, "ghmc.bins must be a whole number, 1 or greater, got 0"),
    ({"values": []}, "values must be .. without a parameter and hold some with one, got .."),
    ({"parameter": None}, "values must be .. without a parameter and hold some with one, got .10, 20."),
    ({"parameter": None, "values": []}, "curves.<name>.swept must be .* of none without one, got .'GHM-C'."),
    ({"curves": {"FL": FL, "A": FL}}, "curves.<name>.swept must be true of some curve with a parameter, .*, got .."),
    ({"curves": {"FL": FL}}, "curves must be a list or section with at least 2 entr"),
    ({"values": [10, 10]}, "values must differ from each other and not be null, got .10, 10."),
    ({"seeds": [0, 0]}, "seeds must differ from each other, got .0, 0."),
    ({"curves": {"A": SWEPT, "B": curve("x", variants__x={"cls": "focus", "box": "ghmr"})}}, "variants.x.cls must be"),
    ({"conditions": {"VOC": {"data.name": "voc"}, "digits": {}}}, "data.name must be of .* with the same splits"),
]
PUBLISHED: list[tuple[dict[str, Any], str]] = [
    ({"GHM": 35.8}, "GHM must be of one of the curves: FL, GHM-C"),
    ({"GHM-C": 35.8}, "GHM-C must hold the AP of each value if its curve is swept, else one AP, got 35.8"),
    ({"GHM-C": {30: 35.8}}, "GHM-C.30 must be of one of the values: 10, 20"),
    ({"GHM-C": {10: float("nan")}}, 'GHM-C must hold percents, or texts such as "NaN", got nan'),
]
WRONG += [
    ({"published": [{"dataset": "COCO", "source": "a paper", "ap": ap}]}, f"published.0..ap.{words}")
    for ap, words in PUBLISHED
]


@pytest.mark.parametrize(("keys", "words"), WRONG)
def test_a_typing_mistake_is_named_before_anything_is_trained(keys: dict[str, Any], words: str, trainer: Trainer):
    with pytest.raises(InputError, match=rf"^studies/wrong\.yaml: {words}"):
        run_study(define("right"), define("wrong", **keys))
    assert trainer.trained == []


def test_a_file_that_is_no_yaml_and_one_that_is_not_there_are_named(trainer: Trainer):
    Path("studies", f"{define()}.yaml").write_text("question: [")
    with pytest.raises(InputError, match=re.escape("studies/asked.yaml is not valid YAML (line 1): ")):
        definition.load("asked")
    with pytest.raises(InputError, match="the study must be one of asked, got 'bin'"):
        definition.load("bin")
