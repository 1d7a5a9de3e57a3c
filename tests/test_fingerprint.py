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
from mmengine.config import Config

import ghm
from ghm import backbones, data, files, fingerprint, params
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


OTHERS: dict[str, dict[str, Any]] = {
    "anchors": {"anchors": params.Anchors(3.0, 3, (1.0,))},
    "augment": {"augment": ({"type": "PhotoMetricDistortion"},)},
    "ema_momentum": {"ema_momentum": 0.01},
    "head_channels": {"head_channels": 128},
    "head_norm": {"head_norm": "BN"},
    "image_scale": {"image_scale": (96, 96)},
    "optimizer": {"optimizer": "sgd"},
    "optimizer_options": {"optimizer_options": {"eps": 1e-6}},
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


def test_variant_and_seed_change_the_key_of_12_hex_digits(workspace: Path):
    cfg = config()
    before = copy.deepcopy(cfg.to_dict())
    keys = [key(cfg), key(config(seed=1)), key(config(variant="ghmc_sl1")), key(config(variant="ghmc_smooth"))]
    assert len(set(keys)) == 4 and key() == keys[0]
    assert len(keys[0]) == 12 and int(keys[0], 16) >= 0
    assert cfg.to_dict() == before


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("train", {"val_images": 1}),
        ("machine", {"workers": 7, "check_images": "all", "checkpoint_minutes": 1.0}),
        ("machine", {"launcher": "pytorch"}),
        ("evaluate", {"nms_iou": 0.1, "score_threshold": 0.3, "max_per_image": 7, "split": "val"}),
        ("evaluate", {"batch_size": 3, "precision": "bf16"}),
    ],
)
def test_what_watches_starts_and_measures_keeps_the_key(workspace: Path, section: str, changes: dict[str, Any]):
    assert key(with_section(section, **changes)) == key()


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


def test_what_a_run_starts_from_counts_by_its_content(workspace: Path):
    first = parts()
    [record] = Path("weights").glob("*.json")
    content = json.loads(record.read_text())
    assert first["backbone"] == content
    record.write_text(json.dumps({**content, "accuracy": 2.0}))
    assert fingerprint.difference(first, parts()).endswith("accuracy was 'absent' and is 2.0")
    for name, text in (("a", "a"), ("same", "a"), ("b", "b")):
        Path(name).write_text(text)
    a, same, b = (key(resume_from=Path(name)) for name in ("a", "same", "b"))
    assert a == same
    assert len({a, b, key(), fingerprint.key(first)}) == 4


@pytest.fixture
def code(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package that the fingerprint is taken of."""
    copied = workspace / "ghm"
    shutil.copytree(HOME, copied, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "HOME", copied)
    return copied


def test_each_file_of_the_code_changes_the_key_and_is_named(code: Path):
    first, cfg = parts(), config()
    assert {"head.py", "config.py", "training/loop.py", "training/samples.py", "losses/ghmc.py"} <= first["code"].keys()
    for name in first["code"]:
        path = code / name
        content = path.read_bytes()
        path.write_bytes(content + b"\nif x:\n    x = 1\n    y = 1\n")
        changed = parts(cfg)
        assert fingerprint.key(changed) != fingerprint.key(first), name
        assert fingerprint.difference(first, changed) == f"ghm/{name} changed"
        if path.suffix == ".py":  # to C indents are nothing
            path.write_bytes(content + b"\nif x:\n    x = 1\ny = 1\n")
            assert parts(cfg)["code"][name] != changed["code"][name]
        path.write_bytes(content)
    assert parts() == first


def test_a_comment_a_docstring_and_an_empty_line_retrain_nothing(code: Path):
    first = parts()
    for name in first["code"]:
        path = code / name
        lines = path.read_text().splitlines()
        first_line, last_line = (
            ("# A comment.", "# Another.") if path.suffix == ".py" else ("/* A comment. */", "/* */")
        )
        path.write_text("\n".join([first_line, *(f"{line}  " for line in lines), "", last_line]) + "\n")
        path.write_text(path.read_text().replace('"""', '"""Really: ', 1))
    assert parts() == first


def test_a_loss_that_a_variant_does_not_use_does_not_retrain_it(code: Path):
    configs = {name: config(variant=name) for name in ("fl_sl1", "ghmc_sl1", "ghmc_ghmr")}
    first = {name: key(cfg) for name, cfg in configs.items()}
    with (code / "losses" / "ghmr.py").open("a") as file:
        file.write("x = 1\n")
    assert {name for name, cfg in configs.items() if key(cfg) != first[name]} == {"ghmc_ghmr"}


@pytest.mark.parametrize("name", ["torch", "mmcv-lite", "numpy"])
def test_each_library_changes_the_key_and_is_named(workspace: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    """Another release that is installed in front of the one there is."""
    before, first, cfg = version(name), parts(), config()
    folder = workspace / "site" / f"{name.replace('-', '_')}-99.1.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.1\n")
    monkeypatch.syspath_prepend(str(workspace / "site"))
    changed = parts(cfg)
    assert fingerprint.key(changed) != fingerprint.key(first)
    assert fingerprint.difference(first, changed) == f"{name} was '{before}' and is '99.1'"


def test_three_differences_are_said_shortly_and_the_others_counted():
    before, after = ({"config": {"a": dict.fromkeys("bcdef", value)}} for value in (1, ["long"] * 99))
    text = fingerprint.difference(before, after)
    assert text.startswith("a.b was 1 and is ['long', 'long', ")
    assert text.endswith(" and 2 more") and len(text) < 300
    assert fingerprint.difference(before, before) == ""


def test_the_latest_run_of_a_name_is_the_youngest(tmp_path: Path):
    for age, name in enumerate(("a-seed_10-0", "b-seed_1-0", "a-seed_1-1", "a-seed_1-2")):
        (tmp_path / name).mkdir()
        files.write_json(tmp_path / name / fingerprint.FILE, {"name": name})
        os.utime(tmp_path / name / fingerprint.FILE, (1e9 - age, 1e9 - age))
    assert fingerprint.latest(tmp_path, "a-seed_1-") == {"name": "a-seed_1-1"}
    assert fingerprint.latest(tmp_path, "c-seed_1-") is None


def test_conditions_are_those_of_another_seed_and_of_other_losses_and_name_what_is_otherwise(workspace: Path):
    first = fingerprint.conditions(parts(config(variant="fl_sl1")))
    assert fingerprint.conditions(parts(config(variant="ghmc_ghmr", seed=7))) == first
    changed = parts(with_section("train", lr=0.1))
    changed["code"]["head.py"] = "otherwise"
    other = fingerprint.conditions(changed)
    assert {name for name in first if first[name] != other[name]} == {"config", "code"}
