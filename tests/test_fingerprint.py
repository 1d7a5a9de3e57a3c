"""Laws of the fingerprint of a run: it covers what shapes the weights, nothing else, and says what changed."""

import copy
import json
import os
import shutil
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config

import ghm
from ghm import backbones, data, fingerprint, params
from ghm.config import for_run

HOME = Path(ghm.__file__).parent


def config(parameters: params.Params | None = None, variant: str = "ghmc_ghmr", seed: int = 0) -> Config:
    return for_run(parameters or params.load(), variant, seed)


def parts(cfg: Config | None = None, resume_from: Path | None = None) -> dict[str, Any]:
    """The fingerprint of a training run of the tiny preset in the workspace as it is."""
    parameters = params.load()
    manifest, backbone = data.read_manifest(parameters), backbones.read_record(parameters)
    return fingerprint.fingerprint(cfg or config(), manifest, backbone, resume_from)


def key(cfg: Config | None = None, resume_from: Path | None = None) -> str:
    return fingerprint.key(parts(cfg, resume_from))


def with_section(name: str, **changes: Any) -> Config:
    """The config with other values in a section of the parameters."""
    parameters = params.load()
    return config(replace(parameters, **{name: replace(getattr(parameters, name), **changes)}))


def test_the_same_run_has_the_same_key_of_12_hex_digits_and_its_config_stays_as_it_is(workspace: Path):
    cfg = config()
    before = copy.deepcopy(cfg.to_dict())
    first = key(cfg)
    assert len(first) == 12 and int(first, 16) >= 0
    assert key() == first
    assert cfg.to_dict() == before


OTHERS: dict[str, dict[str, Any]] = {
    "anchors": {"anchors": params.Anchors(3.0, 3, (1.0,))},
    "ema_momentum": {"ema_momentum": 0.01},
    "head_channels": {"head_channels": 128},
    "head_norm": {"head_norm": "BN"},
    "image_scale": {"image_scale": (96, 96)},
    "optimizer": {"optimizer": "sgd"},
    "precision": {"precision": "bf16"},
    "schedule": {"schedule": "step", "lr_steps": (1,)},
}
# Steps are part of the schedule; what a run starts from counts by its content.
CONTENT = {"val_images", "lr_steps", "resume_from", "backbone", "pretrained", "pretrained_sha256", "load_from"}


@pytest.mark.parametrize("section", fingerprint.PARAMETERS)
def test_every_parameter_that_shapes_the_weights_changes_the_key(workspace: Path, section: str):
    first, now = key(), getattr(params.load(), section)
    for name in {field.name for field in fields(now)} - CONTENT:
        value = getattr(now, name)
        other = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else None
        other = (value + 1) / 2 if isinstance(value, float) else other
        assert key(with_section(section, **OTHERS.get(name, {name: other}))) != first, name


def test_variant_and_seed_change_the_key(workspace: Path):
    keys = [key(), key(config(seed=1)), key(config(variant="ghmc_sl1")), key(config(variant="ghmc_smooth"))]
    assert len(set(keys)) == 4


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("train", {"val_images": 1}),
        ("machine", {"workers": 7, "check_images": "all", "checkpoint_minutes": 1.0, "trackers": ("tensorboard",)}),
        ("machine", {"launcher": "pytorch"}),
        ("evaluate", {"nms_iou": 0.1, "score_threshold": 0.3, "max_per_image": 7, "split": "val"}),
    ],
)
def test_what_watches_starts_and_measures_keeps_the_key(workspace: Path, section: str, changes: dict[str, Any]):
    assert key(with_section(section, **changes)) == key()


def test_another_loss_keeps_the_key(workspace: Path):
    parameters = params.load()
    focal = params.Loss("ghm.FocalLoss", {"gamma": 1.0})
    other = replace(parameters, losses={**parameters.losses, "focal": focal})
    assert key(config(other)) == key()
    assert key(config(other, "fl_sl1")) != key(config(variant="fl_sl1"))


def test_the_data_to_train_on_change_the_key_and_no_others_do(workspace: Path):
    first = parts()
    manifest = Path("data/digits.json")
    content = json.loads(manifest.read_text())
    content["splits"]["test"]["annotations_sha256"] = content["splits"]["val"]["files_sha256"] = "0"
    content["splits"]["train"]["warnings"] = {"images_of_other_size": 3}
    manifest.write_text(json.dumps(content))
    assert parts() == first
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
    for name, content in (("a", b"a"), ("same", b"a"), ("b", b"b")):
        Path(name).write_bytes(content)
    a, same, b = (key(resume_from=Path(name)) for name in ("a", "same", "b"))
    assert a == same
    assert len({a, b, key()}) == 3
    text = fingerprint.difference(parts(), parts(resume_from=Path("a")))
    assert text.startswith('resume_from was null and is "ca978112ca1b')


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


def test_a_parameter_that_changed_is_said_with_both_values(workspace: Path):
    changed = config()
    changed.train_cfg.max_epochs = 3
    assert fingerprint.difference(parts(), parts(changed)) == "train_cfg.max_epochs was 2 and is 3"
    changed.model.backbone.depth = 34
    text = fingerprint.difference(parts(), parts(changed))
    assert set(text.split(", ")) == {"model.backbone.depth was 18 and is 34", "train_cfg.max_epochs was 2 and is 3"}


VALUES = st.booleans() | st.integers() | st.text(max_size=60) | st.lists(st.integers(), max_size=20)
TREES = st.dictionaries(st.sampled_from("abcde"), VALUES | st.dictionaries(st.sampled_from("fghi"), VALUES))
PARTS = st.fixed_dictionaries(
    {"config": TREES, "code": st.dictionaries(st.sampled_from(["a.py", "b/c.py"]), st.sampled_from(["1", "2"]))}
)


@given(PARTS, PARTS)
@settings(deadline=None)
def test_a_difference_is_said_where_there_is_one_and_never_at_length(before: dict[str, Any], after: dict[str, Any]):
    text = fingerprint.difference(before, after)
    assert (text == "") == (before == after)
    assert len(text) < 500 and "\n" not in text


def test_three_differences_are_said_and_the_others_counted():
    before, after = ({"config": dict.fromkeys("abcde", value)} for value in (1, 2))
    words = "a was 1 and is 2, b was 1 and is 2, c was 1 and is 2 and 2 more"
    assert fingerprint.difference(before, after) == words


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
    other = fingerprint.conditions(parts(with_section("train", lr=0.1)))
    assert {name for name in first if first[name] != other[name]} == {"config"}
    changed = parts()
    changed["code"]["head.py"] = "otherwise"
    assert {name for name, value in fingerprint.conditions(changed).items() if value != first[name]} == {"code"}
