"""Laws of the check before a run: a wrong loss is named by its key; and of the schema, which editors read."""

import copy
import json
from typing import Any

import pytest
from ruamel.yaml import YAML

from ghm import check, params
from ghm.errors import InputError
from tests.conftest import ROOT

TEXT = (ROOT / "params.yaml").read_text()
COMMITTED = YAML(typ="safe").load(TEXT)


def changed(changes: dict[str, Any]) -> params.Params:
    content = copy.deepcopy(COMMITTED)
    for key, value in changes.items():
        *path, last = key.split(".")
        section = content
        for name in path:
            section = section.setdefault(name, {})
        section[last] = value
    return params.parse(content)


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ({"ghmc.bins": 30.5}, ["ghmc.bins must be a whole number, 1 or greater, got 30.5"]),
        ({"focal.loss_weight": -1.0}, ["focal.loss_weight must be 0 or greater and finite, got -1.0"]),
        (
            {"ghmr.bin": 10},
            [
                "ghmr.bin is not a known key, got 10; did you mean bins? allowed: mu, bins, momentum, loss_weight, "
                "reduction, statistics, sync, bias_correction, normalizer, smoothing, check"
            ],
        ),
        (
            {"variants.ghmc_smooth.ghmc.smoothing": -1.0, "ghmr.bins": "few", "smooth_l1.beta": 0},
            [
                "smooth_l1.beta must be greater than 0 and finite, got 0",
                "ghmr.bins must be a whole number, 1 or greater, got 'few'",
                "variants.ghmc_smooth.ghmc.smoothing must be 0 or greater and finite, got -1.0",
            ],
        ),
        (
            {"variants.turned.cls": "smooth_l1", "variants.turned.box": "ghmc"},
            [
                "variants.turned.cls must be a loss for cls, got 'smooth_l1', which is for box",
                "variants.turned.box must be a loss for box, got 'ghmc', which is for cls",
            ],
        ),
        (
            {"focal.type": "ghm.FocolLoss"},
            [
                "focal.type must be one of ghm.GHMC, ghm.GHMR, ghm.FocalLoss, ghm.OHEMLoss, ghm.SmoothL1Loss, or of "
                "mmdet's losses, got 'ghm.FocolLoss'"
            ],
        ),
        (
            {"focal": {"type": "FocalLoss", "gama": 1}},
            [
                "focal is no loss that mmdet can build from type 'FocalLoss': "
                "FocalLoss.__init__() got an unexpected keyword argument 'gama'"
            ],
        ),
    ],
)
def test_wrong_losses_are_named_at_once_by_their_keys(changes: dict[str, Any], sentences: list[str]):
    with pytest.raises(InputError) as caught:
        check.losses(changed(changes))
    assert str(caught.value).splitlines() == sentences


@pytest.mark.parametrize("section", ["focal", "ohem", "cross_entropy", "ghmc", "smooth_l1", "ghmr"])
def test_every_section_of_the_committed_file_holds_a_loss(section: str):
    role = "box" if section in ("smooth_l1", "ghmr") else "cls"
    check.losses(changed({f"variants.fl_sl1.{role}": section}))


def test_the_schema_that_params_yaml_names_is_current_and_knows_losses_and_overrides():
    assert TEXT.startswith(f"# yaml-language-server: $schema={check.SCHEMA}\n")
    schema = json.loads((ROOT / check.SCHEMA).read_text())
    assert check.schema() == schema, "python -m ghm.check --schema"
    assert schema["additionalProperties"] == {"$ref": "#/$defs/Loss"}  # other sections hold losses
    variant, loss, train = (schema["$defs"][name] for name in ("Variant", "Loss", "Train"))
    assert list(variant["properties"]) == variant["required"] == ["cls", "box"]
    assert variant["additionalProperties"] == {"type": "object"}
    assert loss["required"] == ["type"] and loss["additionalProperties"] is True
    assert train["additionalProperties"] is False
