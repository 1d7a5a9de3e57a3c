"""Laws of the check before a run: a wrong loss is named by its key; and of the schema, which editors read."""

import json
import re
from contextlib import nullcontext
from typing import Any

import fastjsonschema
import pytest
from ruamel.yaml import YAML

from ghm import check, params
from ghm.errors import InputError
from tests.conftest import ROOT, changed

TEXT = (ROOT / "params.yaml").read_text()
COMMITTED = YAML(typ="safe").load(TEXT)
SCHEMA = json.loads((ROOT / check.SCHEMA).read_text())


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ({"ghmc.bins": 30.5}, ["ghmc.bins must be a whole number, 1 or greater, got 30.5"]),
        ({"focal.loss_weight": -1.0}, ["focal.loss_weight must be 0 or greater and finite, got -1.0"]),
        (
            {"ghmr.bin": 10},
            [
                "ghmr.bin is not a known key, got 10; did you mean bins? allowed: mu, bins, momentum, loss_weight, "
                "reduction, statistics, sync, bias_correction, normalizer, smoothing"
            ],
        ),
        (
            {"variants.ghmc_smooth.ghmc.smoothing": -1.0, "ghmr.bins": "few", "smooth_l1.beta": 0},
            [
                "smooth_l1.beta must be greater than 0 and finite, got 0",
                "ghmr.bins must be a whole number, 1 or greater, got 'few'",
                "variants.ghmc_smooth.ghmc.smoothing must be positives, or 0 or greater and finite, got -1.0",
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
        check.whole(params.parse(changed(COMMITTED, changes)))
    assert str(caught.value).splitlines() == sentences


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"augment": [{"type": "PhotoMetricDistortion"}, {"type": "RandomResise"}]},
            "train.augment[1].type must be a transform of mmdet, or torchvision.<name> of it, got 'RandomResise'; did "
            "you mean RandomResize or RandomChoiceResize or RandomChoice?",
        ),
        ({"augment": [{"type": "ColorJitter"}]}, "train.augment[0].type .* did you mean torchvision.ColorJitter or "),
        ({"augment": [{"brightness": 0.3}]}, "train.augment[0].type .* got None"),
        ({"augment": ["RandomCrop"]}, "train.augment[0] must be a section, got 'RandomCrop'"),
        (
            {"augment": [{"type": "RandomCrop", "crop_sizes": [3, 3]}]},
            "train.augment[0].crop_sizes is not a known key, got [3, 3]; did you mean crop_size?",
        ),
        (
            {"augment": [{"type": "RandomCrop"}]},
            "train.augment[0] .* missing .* argument: 'crop_size'",
        ),
        (
            {"augment": [{"type": "RandomResize", "scale": [128, 128], "keep_ration": True}]},
            "train.augment[0] must be .* unexpected keyword argument 'keep_ration'",
        ),
        (
            {"augment": [{"type": "torchvision.ColorJitter", "brightness": -3}]},
            "train.augment[0] .* got {'type': 'torchvision.ColorJitter', 'brightness': -3}: .* must be non negative",
        ),
        ({"augment": [{"type": "Mosaic"}]}, "train.augment[0].type: Mosaic mixes images"),
        ({"augment": [{"type": "CachedMixUp"}]}, "train.augment[0].type: CachedMixUp mixes images"),
        (
            {"augment": [{"type": "PackDetInputs"}]},
            "train.augment[0] .* leaves no image of three channels",
        ),
        (
            {"augment": [{"type": "Normalize", "mean": [9.0, 9.0, 9.0], "std": [50.0, 50.0, 50.0]}]},
            "train.augment[0] must leave an image .* pixels that are not from 0 to 255",
        ),
        (
            {"optimizer_options": {"beta": [0.9, 0.95], "lr": 1.0}},
            "train.optimizer_options.beta is not a known key, got [0.9, 0.95]; did you mean betas? allowed: betas, ",
        ),
        (
            {"optimizer_options": {"betas": [0.9, 1.5]}},
            "train.optimizer_options must suit AdamW, .*: Invalid beta parameter at index 1: 1.5",
        ),
        (
            {"optimizer": "sgd", "optimizer_options": {"momentum": 0.0, "nesterov": True}},
            "train.optimizer_options must suit SGD, .*: Nesterov momentum requires a momentum and zero dampening",
        ),
        ({"optimizer_options": {"momentum": 0.8}}, "train.optimizer_options.momentum is not a known key"),
    ],
)
def test_wrong_transforms_and_options_of_the_optimiser_are_named_at_once(changes: dict[str, Any], words: str):
    pattern = re.escape(words).replace(r"\.\*", ".*")
    with pytest.raises(InputError, match=f"^{pattern}"):
        check.whole(params.parse(changed(COMMITTED, {f"train.{name}": value for name, value in changes.items()})))


@pytest.mark.parametrize("section", ["focal", "ohem", "cross_entropy", "ghmc", "smooth_l1", "ghmr", "giou"])
def test_every_section_of_the_committed_file_holds_a_loss(section: str):
    role = "box" if section in ("smooth_l1", "ghmr", "giou") else "cls"
    check.whole(params.parse(changed(COMMITTED, {f"variants.fl_sl1.{role}": section})))


def test_the_schema_that_params_yaml_names_is_current():
    assert TEXT.startswith(f"# yaml-language-server: $schema={check.SCHEMA}\n")
    assert check.schema() == SCHEMA, "python -m ghm.check --schema"


PAIR = {"annotations": "a.json", "images": "a"}
DIOU = {"variants.fl_diou": {"cls": "focal", "box": "diou", "focal": {"gamma": 1.0}}, "diou": {"type": "DIoULoss"}}


@pytest.mark.parametrize(
    ("values", "is_right"),
    [
        ({"train.ema_momentum": 0.0002, "train.grad_clip": None, "seeds": [0, 1, 2]}, True),
        ({"custom.train": PAIR, "custom.val": PAIR}, True),
        (DIOU, True),
        ({"train.lr": 0}, False),
        ({"train.epoch": 3}, False),
        ({"model.head_norm": "LN"}, False),
        ({"model.anchors.ratios": [1.0, -1]}, False),
        ({"seeds": []}, False),
        ({"custom.val_share": 1.0}, False),
        ({"variants.fl_sl1": {"cls": "focal"}}, False),
        ({"variants.fl_sl1.focal": 1}, False),
        ({"trian": {"epochs": 3}}, False),
    ],
)
def test_the_schema_accepts_what_is_allowed_and_refuses_what_is_refused(values: dict[str, Any], is_right: bool):
    content = changed(COMMITTED, values)
    with nullcontext() if is_right else pytest.raises(InputError):
        params.parse(content)
    with nullcontext() if is_right else pytest.raises(fastjsonschema.JsonSchemaException):
        fastjsonschema.validate(SCHEMA, content)
