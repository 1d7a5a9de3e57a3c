"""Laws of a study's file: what is wrong is said in a sentence with file, key and remedy, before anything is trained."""

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


FL = curve("fl_sl1", swept=False)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"curvs": {}}, "curvs is not a known key, got {}; did you mean curves. allowed: question, parameter"),
    ({"parameter": "seeds"}, "seeds must be section.key of params.yaml, whose sections are variants,"),
    ({"curves": {"FL": FL, "GHM-C": curve("ghmc")}}, "curves.GHM-C.variant must be one of fl_sl1, .*got 'ghmc'"),
    ({"values": [0, 10]}, "ghmc.bins must be a whole number, 1 or greater, got 0"),
    ({"parameter": None}, "parameter, values and the curves .* missing together, got None,"),
    ({"values": [10, 10]}, "values must differ from each other and not be null, got .10, 10."),
    ({"conditions": {"VOC": {"data.name": "voc"}, "digits": {}}}, "data.name must be of .* with the same splits"),
]


@pytest.mark.parametrize(("keys", "words"), WRONG)
def test_a_typing_mistake_is_named_before_anything_is_trained(keys: dict[str, Any], words: str, trainer: Trainer):
    with pytest.raises(InputError, match=rf"^studies/wrong\.yaml: {words}"):
        run_study(define("wrong", **keys))
    assert trainer.trained == []


def test_a_study_that_is_not_there_is_named(trainer: Trainer):
    define("asked")
    with pytest.raises(InputError, match="the study must be one of asked, got 'bin'"):
        definition.load("bin")
