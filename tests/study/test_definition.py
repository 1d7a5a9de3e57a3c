"""Laws of a study's file: what is wrong is said in a sentence with file, key and remedy, before anything is trained."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ghm import sections
from ghm.errors import InputError
from ghm.study import __main__ as command
from ghm.study import definition
from tests.study.conftest import ROOT, Trainer, curve

NAMES = sorted(path.stem for path in (ROOT / "studies").glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_study_asks_for_trainings_that_the_parameters_allow(name: str):
    study = definition.load(name, ROOT)
    assert study.question.endswith("?")
    assert definition.splits(study, ROOT) == ("val", "test")
    assert len(study.seeds) == 3


def test_the_studies_of_the_paper_have_its_figures():
    published = {name: definition.load(name, ROOT).published for name in NAMES}
    assert [published["bins"][0].of("GHM-C", value) for value in (5, 10, 20, 30, 40)] == [33.4, 34.6, 35.2, 35.8, 35.4]
    assert [published["momentum"][0].of("GHM-C, 10 bins", value) for value in (0.0, 0.5, 0.75, 0.9)] == [
        None, 34.4, 34.6, "NaN",
    ]  # fmt: skip
    assert [each.of("GHM-C + GHM-R", None) for each in published["regression"]] == [36.4, 37.0]
    assert [each.of("GHM-C + ASL1", None) for each in published["regression"]] == [35.7, None]
    assert published["losses"][0].ap == {"Focal Loss": 35.6, "cross entropy": 28.6, "OHEM": 31.1, "GHM-C": 35.8}


def test_cells_are_conditions_by_curves_by_values_and_what_is_not_swept_is_one_cell(define: Callable[..., str]):
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


def test_a_variant_of_the_study_is_among_the_changes_of_its_curve_alone(define: Callable[..., str]):
    curves = {"FL": curve("fl_sl1", swept=False), "CE": curve("ce_sl1", swept=False)}
    name = define(
        parameter=None, values=[], variants={"ce_sl1": {"cls": "cross_entropy", "box": "smooth_l1"}}, curves=curves
    )
    changes = [cell.changes for cell in definition.cells(definition.load(name))]
    assert changes == [{}, {"variants.ce_sl1": {"cls": "cross_entropy", "box": "smooth_l1"}}]


FL, SWEPT = curve("fl_sl1", swept=False), curve("ghmc_sl1")
COCO = {"dataset": "COCO", "source": "a paper"}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"curvs": {}}, "study.curvs is not a known key, got {}; did you mean curves. allowed: question, parameter"),
    ({"parameter": "ghmc.bin"}, "parameter: ghmc.bin is no parameter of params.yaml; ghmc has type, bins, momentum,"),
    ({"parameter": "ghm.bins"}, "parameter: ghm.bins must be section.key of params.yaml, whose sections are variants,"),
    ({"parameter": "seeds"}, "parameter: seeds must be section.key of params.yaml, whose sections are variants,"),
    (
        {"curves": {"FL": FL, "GHM-C": curve("ghmc")}},
        "curves.GHM-C.variant must be one of fl_sl1, ghmc_sl1, .*got 'ghmc'",
    ),
    (
        {"curves": {"FL": FL, "GHM-C": curve("ghmc_sl1", ghmc__smooth=1.0)}},
        "curves.GHM-C.changes: ghmc.smooth is no parameter of params.yaml; ghmc has .*smoothing",
    ),
    (
        {"conditions": {"dirty": {"data.noise": 0.3}}},
        "conditions.dirty: data.noise is no parameter of params.yaml; data has",
    ),
    ({"values": [0, 10]}, "ghmc.bins must be a whole number, 1 or greater, got 0"),
    ({"values": [10, "many"]}, "ghmc.bins must be a whole number, got 'many'"),
    ({"values": []}, "values must be .. without a parameter and hold some with one, got .."),
    ({"parameter": None}, "values must be .. without a parameter and hold some with one, got .10, 20."),
    ({"parameter": None, "values": []}, "curves.GHM-C.swept must be false without a parameter, got true"),
    ({"curves": {"FL": FL, "A": FL}}, "curves.<name>.swept must be true of some curve with parameter: ghmc.bins"),
    ({"curves": {"FL": FL}}, "study.curves must be at least two curves, got"),
    ({"values": [10, 10]}, "values must differ from each other and not be null, got .10, 10."),
    ({"seeds": [0, 0]}, "seeds must differ from each other, got .0, 0."),
    ({"seeds": []}, "study.seeds must be at least one seed, got .."),
    ({"conditions": {}}, "study.conditions must be at least one condition, got {}"),
    (
        {"variants": {"x": {"cls": "focus", "box": "ghmr"}}, "curves": {"FL": FL, "X": curve("x")}},
        "variants.x.cls must be",
    ),
    (
        {"conditions": {"VOC": {"data.name": "voc"}, "digits": {}}},
        "data.name must be of data sets with the same splits",
    ),
    ({"published": [{**COCO, "ap": {"GHM": 35.8}}]}, "published.0..ap.GHM must be of one of the curves: FL, GHM-C"),
    (
        {"published": [{**COCO, "ap": {"GHM-C": 35.8}}]},
        "published.0..ap.GHM-C must hold the AP of each value, for its curve",
    ),
    (
        {"published": [{**COCO, "ap": {"FL": {10: 35.6}}}]},
        "published.0..ap.FL must be one AP, for its curve is not swept",
    ),
    (
        {"published": [{**COCO, "ap": {"GHM-C": {30: 35.8}}}]},
        "published.0..ap.GHM-C.30 must be of one of the values: 10, 20",
    ),
    (
        {"published": [{**COCO, "ap": {"GHM-C": {10: float("nan")}}}]},
        '.*GHM-C must hold percents, or texts such as "NaN", got nan',
    ),
]


@pytest.mark.parametrize(("keys", "words"), WRONG)
def test_a_typing_mistake_is_named_before_anything_is_trained(
    keys: dict[str, Any], words: str, define: Callable[..., str], trainer: Trainer, monkeypatch: pytest.MonkeyPatch
):
    define("wrong", **keys)
    monkeypatch.setattr(sys, "argv", ["study", define("right"), "wrong"])
    with pytest.raises(InputError, match=rf"^studies/wrong\.yaml: {words}") as raised:
        command.main()
    assert "\n" not in str(raised.value)
    assert trainer.trained == []


def test_a_file_that_is_no_yaml_and_one_that_is_not_there_are_named(define: Callable[..., str]):
    Path("studies", f"{define()}.yaml").write_text("question: [")
    with pytest.raises(InputError, match=re.escape("studies/asked.yaml is not valid YAML (line 1): ")):
        definition.load("asked")
    with pytest.raises(InputError, match="the study must be one of asked, got 'bin'"):
        definition.load("bin")


def test_a_study_may_vary_a_switch() -> None:
    switch = {"variant": "ghmc_sl1", "changes": {"ghmc.bias_correction": True}, "swept": False}
    assert sections.build(definition.Curve, switch).changes == {"ghmc.bias_correction": True}
