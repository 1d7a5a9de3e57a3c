"""Laws of presets: one command, comments kept, the difference shown, nothing written when the result is wrong."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML

from ghm import params, presets
from ghm.errors import InputError

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))
OVERRIDES: dict[str, Any] = {  # each is valid with all presets
    "ghmc.bins": 10,
    "variants.ghmc_smooth.ghmc.smoothing": 50.0,
    "seeds": [0, 1, 2],
    "train.image_scale": [96, 64],
    "model.anchors.ratios": [2.0],
    "train.grad_clip": None,
    "train.ema_momentum": 0.0002,
    "machine.trackers": ["tensorboard"],
    "train.lr": 0.003,
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (tmp_path / "presets").mkdir()
    for path in (ROOT / "presets").glob("*.yaml"):
        (tmp_path / "presets" / path.name).write_text(path.read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def comments(text: str) -> list[str]:
    return [line.split("#", 1)[1].strip() for line in text.splitlines() if "#" in line]


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_gives_valid_parameters_and_keeps_every_comment(name: str, place: Path):
    before = (place / "params.yaml").read_text()
    difference = presets.apply(name)
    after = (place / "params.yaml").read_text()
    params.load()
    assert comments(after) == comments(before)
    changed = [line for line in difference.splitlines() if line.startswith("+ ")]
    assert changed
    assert all(line[1:] in {other.rstrip() for other in after.splitlines()} for line in changed)
    assert presets.apply(name) == ""
    assert (place / "params.yaml").read_text() == after


def test_a_preset_means_the_same_whatever_presets_came_before(place: Path):
    fresh = (place / "params.yaml").read_text()

    def result(name: str) -> tuple[object, ...]:
        presets.apply(name)
        loaded = params.load()
        return loaded.data, loaded.model, loaded.train, loaded.evaluate

    alone = {}
    for name in NAMES:
        (place / "params.yaml").write_text(fresh)
        alone[name] = result(name)
    for name in (*NAMES, *reversed(NAMES)):
        if name != "tiny":  # the smallest run of whatever is set
            assert result(name) == alone[name], name


def test_a_preset_on_top_of_another_holds_its_own_values_and_the_others():
    presets.apply("coco_r50_1x")
    base = params.load()
    presets.apply("coco_x101_64x4d_1x")
    built_on = params.load()
    assert (built_on.model.backbone, built_on.model.pretrained) == ("resnext101_64x4d", "openmmlab")
    assert (built_on.train, built_on.data, built_on.evaluate) == (base.train, base.data, base.evaluate)


def test_a_wrong_preset_is_refused_and_nothing_is_written(place: Path):
    before = (place / "params.yaml").read_text()
    (place / "presets" / "wrong.yaml").write_text("train: {lr: -1}\n")
    with pytest.raises(InputError, match=r"train\.lr must be greater than 0, got -1"):
        presets.apply("wrong")
    with pytest.raises(InputError, match="the preset must be one of bccd_r18, coco_r101_1x, .*got 'coco'"):
        presets.apply("coco")
    assert (place / "params.yaml").read_text() == before
    assert sorted(path.name for path in place.iterdir()) == ["params.yaml", "presets"]


def read() -> dict[str, Any]:
    return YAML(typ="safe").load(Path("params.yaml"))


def merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(copy.deepcopy(content))
    for key, value in changes.items():
        result[key] = merged(result[key], value) if isinstance(value, Mapping) else value
    return result


def preset(name: str) -> dict[str, Any]:
    own = YAML(typ="safe").load(ROOT / "presets" / f"{name}.yaml")
    base = own.pop("_base_", None)
    return merged(preset(base), own) if base else own


def nested(key: str, value: object) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value  # type: ignore[return-value]


def override(key: str, value: object) -> None:
    """As `dvc exp run -S key=value` does."""
    apply_overrides("params.yaml", [f"{key}={str(value).replace('None', 'null')}"])


@pytest.mark.parametrize("name", NAMES)
def test_presets_and_overrides_in_any_order_mean_what_they_should(name: str):
    for key, value in OVERRIDES.items():
        before = read()
        override(key, value)
        presets.apply(name)
        assert read() == merged(merged(before, nested(key, value)), preset(name)), key
        override(key, value)
        assert read() == merged(merged(before, preset(name)), nested(key, value)), key
        params.load()


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_leaves_the_form_that_dvc_leaves(name: str, place: Path):
    fresh = (place / "params.yaml").read_text()
    presets.apply(name)
    text = (place / "params.yaml").read_text()
    override("ghmc.bins", 30)
    assert (place / "params.yaml").read_text() == text
    (place / "params.yaml").write_text(fresh)
    for section, values in preset(name).items():
        assert isinstance(values, Mapping)
        for key, value in values.items():
            for inner, item in value.items() if isinstance(value, Mapping) else [("", value)]:
                override(".".join([section, key, inner]).rstrip("."), item)
    assert (place / "params.yaml").read_text() == text


def test_a_file_that_would_come_out_broken_is_refused_and_left_as_it_was(place: Path):
    presets.apply("coco_r50_1x")
    text = (place / "params.yaml").read_text()
    (place / "params.yaml").write_text(text.replace("  lr_steps:\n", "  lr_steps:  # by hand\n"))
    before = (place / "params.yaml").read_bytes()
    with pytest.raises(InputError, match=r"comments that stand beside a list.*; nothing was changed") as caught:
        presets.apply("bccd_r18")
    assert "\n" not in str(caught.value)
    assert (place / "params.yaml").read_bytes() == before
    assert sorted(path.name for path in place.iterdir()) == ["params.yaml", "presets"]
