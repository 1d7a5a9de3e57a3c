"""Laws of the check before a run: a wrong loss is named by its key, and the schema accepts what the check accepts."""

import copy
import json
from pathlib import Path
from typing import Any

import fastjsonschema
import pytest
from ruamel.yaml import YAML

from ghm import check, params, presets
from ghm.errors import InputError

ROOT = Path(__file__).parents[1]
COMMITTED = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
SCHEMA = json.loads((ROOT / check.SCHEMA).read_text())


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    content = copy.deepcopy(COMMITTED)
    for key, value in changes.items():
        *path, last = key.split(".")
        section = content
        for name in path:
            section = section.setdefault(name, {})
        section[last] = value
    return content


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ({"ghmc.momentum": 1.2}, ["ghmc.momentum must be in [0, 1), got 1.2"]),
        ({"ghmc.bins": 0}, ["ghmc.bins must be a whole number, 1 or greater, got 0"]),
        ({"ghmc.bins": 30.5}, ["ghmc.bins must be a whole number, got 30.5"]),
        ({"ghmc.bins": True}, ["ghmc.bins must be a whole number, got True"]),
        ({"ghmr.mu": 0}, ["ghmr.mu must be greater than 0 and finite, got 0"]),
        ({"focal.gamma": float("nan")}, ["focal.gamma must be a finite number, got nan"]),
        ({"focal.alpha": "a"}, ["focal.alpha must be a number, got 'a'"]),
        ({"ghmc.statistics": "images"}, ["ghmc.statistics must be one of level, batch, got 'images'"]),
        (
            {"focal.use_sigmoid": False},
            ["focal.use_sigmoid must be True, got False: this Focal Loss has one logit a class"],
        ),
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
                "ghmr.bins must be a whole number, got 'few'",
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
def test_all_wrong_losses_are_named_at_once_by_their_keys(changes: dict[str, Any], sentences: list[str]):
    parameters = params.parse(changed(changes))
    with pytest.raises(InputError) as caught:
        check.losses(parameters)
    assert str(caught.value).splitlines() == sentences


@pytest.mark.parametrize("section", ["focal", "ohem", "cross_entropy", "ghmc", "smooth_l1", "ghmr"])
def test_every_section_of_the_committed_file_holds_a_loss(section: str):
    role = "box" if section in ("smooth_l1", "ghmr") else "cls"
    check.losses(params.parse(changed({f"variants.fl_sl1.{role}": section})))


def test_the_committed_schema_is_current():
    assert check.schema() == SCHEMA, "python -m ghm.check --schema"


def test_params_yaml_names_its_schema():
    assert (ROOT / "params.yaml").read_text().startswith(f"# yaml-language-server: $schema={check.SCHEMA}\n")


@pytest.fixture(scope="module")
def accepts() -> Any:
    validate = fastjsonschema.compile(SCHEMA)

    def accept(content: dict[str, Any]) -> bool:
        try:
            validate(content)
        except fastjsonschema.JsonSchemaException:
            return False
        return True

    return accept


def test_the_schema_accepts_the_committed_file_and_what_presets_make_of_it(
    accepts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert accepts(COMMITTED)
    (tmp_path / "presets").symlink_to(ROOT / "presets")
    monkeypatch.chdir(tmp_path)
    for path in (ROOT / "presets").glob("*.yaml"):
        Path("params.yaml").write_text((ROOT / "params.yaml").read_text())
        presets.apply(path.stem)
        assert accepts(YAML(typ="safe").load(Path("params.yaml"))), path.stem


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.lr", 0),
        ("train.lr", "fast"),
        ("train.epoch", 3),
        ("train.epochs", 2.5),
        ("model.head_norm", "LN"),
        ("model.anchors.ratios", [1.0, -1]),
        ("machine.trackers", ["dvclive"]),
        ("seeds", []),
        ("seeds", [-1]),
        ("custom.val", None),
        ("variants", {}),
        ("variants.fl_sl1", {"cls": "focal"}),
        ("variants.fl_sl1.bix", "ghmr"),
        ("variants.fl_sl1.focal", 1),
        ("trian", {"epochs": 3}),
        ("focal.type", 1),
    ],
)
def test_what_the_schema_refuses_is_refused(accepts: Any, key: str, value: object):
    content = changed({key: value})
    assert not accepts(content)
    with pytest.raises(InputError):
        params.parse(content)


@pytest.mark.parametrize(
    "changes",
    [
        {"train.ema_momentum": 0.0002, "train.grad_clip": None, "seeds": [0, 1, 2]},
        {"custom.test": {"annotations": "test.json", "images": "test"}},
        {"variants.fl_giou": {"cls": "focal", "box": "giou", "focal": {"gamma": 1.0}}, "giou": {"type": "GIoULoss"}},
    ],
)
def test_what_is_allowed_the_schema_accepts(accepts: Any, changes: dict[str, Any]):
    content = changed(changes)
    params.parse(content)
    assert accepts(content)
