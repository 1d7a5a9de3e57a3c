"""Laws of the fingerprint of a run: it covers what shapes the weights, nothing else, and says what changed."""

import copy
import json
import os
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config

import ghm
from ghm import backbones, data, fingerprint, params, training

HOME = Path(ghm.__file__).parent


def config(given: params.Params | None = None, variant: str = "ghmc_ghmr", seed: int = 0) -> Config:
    return training.build_config(given or params.load(), variant, seed)


def parts(cfg: Config | None = None, resume_from: Path | None = None) -> dict[str, Any]:
    """The shape of a training of the tiny preset in the workspace as it is."""
    given = params.load()
    return fingerprint.fingerprint(
        cfg or config(), data.read_manifest(given), backbones.read_record(given), resume_from
    )


def key(cfg: Config | None = None, resume_from: Path | None = None) -> str:
    return fingerprint.key(parts(cfg, resume_from))


def trained(**changes: Any) -> Config:
    """The config with other values in the section `train`."""
    given = params.load()
    return config(replace(given, train=replace(given.train, **changes)))


def evaluated(**changes: Any) -> Config:
    given = params.load()
    return config(replace(given, evaluate=replace(given.evaluate, **changes)))


def test_the_same_training_has_the_same_key_of_12_hex_digits(workspace: Path):
    first = key()
    assert len(first) == 12 and int(first, 16) >= 0
    assert key() == first


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 3},
        {"batch_size": 2},
        {"optimizer": "sgd"},
        {"lr": 0.1},
        {"weight_decay": 0.1},
        {"schedule": "step", "lr_steps": (1,)},
        {"warmup_iters": 1},
        {"image_scale": (96, 96)},
        {"flip": 0.5},
        {"filter_empty": True},
        {"precision": "bf16"},
        {"channels_last": False},
        {"compile": True},
        {"tf32": False},
        {"ema_momentum": 0.01},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_parameter_that_shapes_the_training_changes_the_key(workspace: Path, changes: dict[str, Any]):
    assert key(trained(**changes)) != key()


def test_the_glance_at_the_validation_split_keeps_the_key(workspace: Path):
    assert key(trained(val_images=1)) == key()


def test_variant_and_seed_change_the_key(workspace: Path):
    keys = [key(), key(config(seed=1)), key(config(variant="ghmc_sl1")), key(config(variant="fl_sl1"))]
    assert len(set(keys)) == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"workers": 7},
        {"launcher": "pytorch"},
        {"checkpoint_minutes": 1.0},
        {"check_images": "all"},
        {"trackers": ("tensorboard",)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_no_machine_setting_changes_the_key(workspace: Path, changes: dict[str, Any]):
    given = params.load()
    assert key(config(replace(given, machine=replace(given.machine, **changes)))) == key()


@pytest.mark.parametrize(
    "changes", [{"nms_iou": 0.1}, {"score_threshold": 0.3}, {"max_per_image": 7}, {"split": "val"}]
)
def test_the_test_half_keeps_the_key(workspace: Path, changes: dict[str, Any]):
    given = config()
    changed = evaluated(**changes)
    assert changed.to_dict() != given.to_dict()
    assert key(changed) == key(given)


def test_another_loss_keeps_the_key(workspace: Path):
    given = params.load()
    other = replace(given, losses={**given.losses, "focal": params.Loss("ghm.FocalLoss", {"gamma": 1.0})})
    assert key(config(other)) == key()
    assert key(config(other, "fl_sl1")) != key(config(variant="fl_sl1"))


def test_the_config_that_is_given_stays_as_it_is(workspace: Path):
    cfg = config()
    before = copy.deepcopy(cfg.to_dict())
    parts(cfg)
    assert cfg.to_dict() == before


def test_the_data_set_changes_the_key(workspace: Path):
    first = parts()
    manifest = Path("data/digits.json")
    content = json.loads(manifest.read_text())
    content["splits"]["train"]["annotations_sha256"] = "0"
    manifest.write_text(json.dumps(content))
    assert fingerprint.key(parts()) != fingerprint.key(first)
    assert fingerprint.difference(first, parts()).startswith("annotations_sha256 was ")


def test_the_backbone_changes_the_key(workspace: Path):
    first = parts()
    [record] = Path("weights").glob("*.json")
    content = json.loads(record.read_text())
    assert first["backbone"] == content
    name = next(name for name, value in content.items() if isinstance(value, str))
    record.write_text(json.dumps({**content, name: "another"}))
    assert fingerprint.key(parts()) != fingerprint.key(first)
    assert fingerprint.difference(first, parts()).endswith('and is "another"')


def test_the_checkpoint_to_go_on_from_counts_by_its_content(workspace: Path):
    Path("a.pth").write_bytes(b"a")
    Path("same.pth").write_bytes(b"a")
    Path("b.pth").write_bytes(b"b")
    a, same, b = (key(resume_from=Path(name)) for name in ("a.pth", "same.pth", "b.pth"))
    assert a == same
    assert len({a, b, key()}) == 3


@pytest.fixture
def code(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package that the fingerprint is taken of."""
    copied = workspace / "ghm"
    shutil.copytree(HOME, copied, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "HOME", copied)
    return copied


def test_a_copy_of_the_code_is_the_same_code(code: Path, monkeypatch: pytest.MonkeyPatch):
    copied = parts()
    monkeypatch.setattr(fingerprint, "HOME", HOME)
    assert parts() == copied


def test_each_file_of_the_code_changes_the_key_and_is_named(code: Path):
    first = parts()
    assert {"head.py", "config.py", "training/loop.py", "training/samples.py", "losses/ghmc.py"} <= first["code"].keys()
    for name in first["code"]:
        path = code / name
        content = path.read_bytes()
        path.write_bytes(content + b"\nx = 1\n")
        changed = parts()
        assert fingerprint.key(changed) != fingerprint.key(first), name
        assert fingerprint.difference(first, changed) == f"ghm/{name} changed"
        path.write_bytes(content)
    assert parts() == first


def test_a_comment_a_docstring_and_an_empty_line_retrain_nothing(code: Path):
    first = parts()
    for name in first["code"]:
        path = code / name
        lines = path.read_text().splitlines()
        path.write_text("\n".join(["# A comment.", *(f"{line}  " for line in lines), "", "# Another."]) + "\n")
        path.write_text(path.read_text().replace('"""', '"""Really: ', 1))
    assert parts() == first


def test_a_loss_that_a_variant_does_not_use_does_not_retrain_it(code: Path):
    cfg = {name: config(variant=name) for name in ("fl_sl1", "ghmc_sl1", "ghmc_ghmr")}
    first = {name: key(own) for name, own in cfg.items()}
    with (code / "losses" / "ghmr.py").open("a") as file:
        file.write("x = 1\n")
    assert {name for name, own in cfg.items() if key(own) != first[name]} == {"ghmc_ghmr"}


@pytest.mark.parametrize("name", [name for name in fingerprint.WITHOUT_EFFECT if name.endswith(".py")])
def test_what_checks_watches_and_shows_retrains_nothing(code: Path, name: str):
    first = parts()
    with (code / name).open("a") as file:
        file.write("x = 1\n")
    assert parts() == first


def test_data_that_are_not_trained_on_and_findings_about_them_keep_the_key(workspace: Path):
    first = key()
    path = Path("data/digits.json")
    content = json.loads(path.read_text())
    content["splits"]["test"]["annotations_sha256"] = content["splits"]["val"]["files_sha256"] = "0"
    content["splits"]["train"]["warnings"] = {"images_of_other_size": 3}
    path.write_text(json.dumps(content))
    assert key() == first


@pytest.mark.parametrize("name", ["torch", "torchvision", "mmdet", "mmengine", "mmcv-lite", "numpy"])
def test_each_library_changes_the_key_and_is_named(workspace: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    """Another release that is installed in front of the one there is."""
    before, first, cfg = version(name), parts(), config()
    folder = workspace / "site" / f"{name.replace('-', '_')}-99.1.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.1\n")
    monkeypatch.syspath_prepend(str(workspace / "site"))
    assert version(name) == "99.1"
    changed = parts(cfg)
    assert fingerprint.key(changed) != fingerprint.key(first)
    assert fingerprint.difference(first, changed) == f'{name} was "{before}" and is "99.1"'


def test_a_shape_is_the_same_after_it_was_written_and_read(workspace: Path):
    first = parts(trained(ema_momentum=0.01))
    again = json.loads(json.dumps(first))
    assert again == first
    assert fingerprint.key(again) == fingerprint.key(first)
    assert fingerprint.difference(first, again) == ""


def test_a_parameter_that_changed_is_said_with_both_values(workspace: Path):
    changed = config()
    changed.train_cfg.max_epochs = 3
    assert fingerprint.difference(parts(), parts(changed)) == "train_cfg.max_epochs was 2 and is 3"
    changed.model.backbone.depth = 34
    text = fingerprint.difference(parts(), parts(changed))
    assert set(text.split(", ")) == {"model.backbone.depth was 18 and is 34", "train_cfg.max_epochs was 2 and is 3"}
    assert fingerprint.difference(parts(changed), parts()).count(" and is ") == 2


def test_a_checkpoint_to_go_on_from_that_is_new_is_said(workspace: Path):
    Path("a.pth").write_bytes(b"a")
    text = fingerprint.difference(parts(), parts(resume_from=Path("a.pth")))
    assert text.startswith('resume_from was null and is "ca978112ca1b')


VALUES = st.booleans() | st.integers() | st.text(max_size=60) | st.lists(st.integers(), max_size=20)
TREES = st.dictionaries(st.sampled_from(["a", "b"]), VALUES | st.dictionaries(st.sampled_from(["c", "d"]), VALUES))
SHAPES = st.fixed_dictionaries(
    {
        "config": TREES,
        "code": st.dictionaries(st.sampled_from(["a.py", "b/c.py"]), st.sampled_from(["1", "2"])),
    }
)


@given(SHAPES, SHAPES)
@settings(deadline=None)
def test_a_difference_is_said_where_there_is_one(before: dict[str, Any], after: dict[str, Any]):
    text = fingerprint.difference(before, after)
    assert (text == "") == (before == after)
    assert len(text) < 500 and "\n" not in text


@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=4), st.integers(), min_size=1, max_size=9))
@settings(deadline=None)
def test_three_differences_are_said_and_the_others_counted(values: dict[str, int]):
    before = {"config": values}
    after = {"config": {name: value + 1 for name, value in values.items()}}
    words = [f"{name} was {value} and is {value + 1}" for name, value in values.items()]
    more = f" and {len(words) - 3} more" if len(words) > 3 else ""
    assert fingerprint.difference(before, after) == ", ".join(words[:3]) + more


def write(folder: Path, name: str, content: dict[str, Any], age: float) -> None:
    path = folder / name / fingerprint.FILE
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    os.utime(path, (1e9 - age, 1e9 - age))


def test_the_latest_training_of_a_name_is_the_youngest(tmp_path: Path):
    assert fingerprint.latest(tmp_path, "a-seed_1-") is None
    for name, age in [("a-seed_1-0", 3), ("a-seed_1-1", 1), ("a-seed_1-2", 2), ("a-seed_10-0", 0), ("b-seed_1-0", 0)]:
        write(tmp_path, name, {"name": name}, age)
    (tmp_path / "a-seed_1-3").mkdir()
    assert fingerprint.latest(tmp_path, "a-seed_1-") == {"name": "a-seed_1-1"}
    assert fingerprint.latest(tmp_path, "c-seed_1-") is None
    assert fingerprint.latest(tmp_path / "none", "a-seed_1-") is None


def test_conditions_are_those_of_another_seed_and_of_other_losses(workspace: Path):
    first = fingerprint.conditions(parts(config(variant="fl_sl1")))
    assert fingerprint.conditions(parts(config(variant="ghmc_ghmr", seed=7))) == first


def test_conditions_name_what_is_otherwise(workspace: Path):
    first = fingerprint.conditions(parts())
    other = fingerprint.conditions(parts(trained(lr=0.1)))
    assert {name for name in first if first[name] != other[name]} == {"config"}
    changed = parts()
    changed["code"]["head.py"] = "otherwise"
    assert {name for name, value in fingerprint.conditions(changed).items() if value != first[name]} == {"code"}
