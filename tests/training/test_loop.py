"""Laws of a training's steps: what moves the weights, what stops them, and what is written down."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML

from benchmarks.faults import VARIANT, Trainer, differences
from ghm import data, params
from ghm.errors import InputError
from ghm.evaluation import run as evaluation

Change = Callable[..., None]


@pytest.fixture
def change(workspace: Path) -> Change:
    """Set `section__key` in the parameters of the workspace."""

    def apply(**values: Any) -> None:
        yaml = YAML()
        content = yaml.load(workspace / "params.yaml")
        for name, value in values.items():
            section, key = name.split("__")
            content[section][key] = value
        yaml.dump(content, workspace / "params.yaml")

    return apply


@pytest.fixture
def images(workspace: Path) -> Path:
    """A copy of the data set, to break images in. The folder of the training images."""
    link = workspace / "data" / "digits"
    own = workspace / "own"
    own.mkdir()
    root = link.resolve()
    for path in root.rglob("*"):
        target = own / path.relative_to(root)
        target.mkdir(parents=True) if path.is_dir() else target.write_bytes(path.read_bytes())
    link.unlink()
    link.symlink_to(own)
    yaml = YAML()
    content = yaml.load(workspace / "params.yaml")
    content["data"]["root"] = str(own)
    yaml.dump(content, workspace / "params.yaml")
    return own / "train"


def run_folder(workspace: Path) -> Path:
    return workspace / "runs" / VARIANT / "seed_0"


def weights(workspace: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_folder(workspace) / "model.pth", weights_only=True)["state_dict"]


def said(workspace: Path) -> str:
    return (workspace / "log.txt").read_text()


def test_a_loss_that_is_not_finite_stops_within_a_step_and_is_written_down(
    workspace: Path, change: Change, trainer: Trainer
):
    change(train__lr=1e30, machine__checkpoint_minutes=1e-6)
    assert trainer.run(workspace) == 1
    assert "error: loss is nan" in said(workspace)
    assert "at step 2 (epoch 1)" in said(workspace)
    assert "a lower train.lr than 1e+30" in said(workspace)
    assert "Traceback" not in said(workspace)
    (path,) = workspace.glob(".state/*/non_finite_step_2_rank_0.json")
    assert str(path.relative_to(workspace)) in said(workspace)
    found = json.loads(path.read_text())
    assert len(found["images"]) == 4
    assert ", ".join(str(image["img_id"]) for image in found["images"]) in said(workspace)
    assert found["weights"]["finite"], "they are those of the step before"
    (newest,) = workspace.glob(".state/*/step_*")
    assert newest.name.startswith("step_00000001_")
    assert not (workspace / "runs" / VARIANT).exists()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns_with_weights_in_float32(
    workspace: Path, change: Change, trainer: Trainer, precision: str
):
    change(train__precision=precision, train__val_images=0)
    trainer.finish(workspace)
    log = pd.read_csv(run_folder(workspace) / "log.csv")
    assert log["loss"].iloc[-1] < log["loss"].iloc[0]
    floating = {value.dtype for value in weights(workspace).values() if value.is_floating_point()}
    assert floating == {torch.float32}


def test_a_killed_training_in_fp16_goes_on_with_the_scale_of_its_loss(
    workspace: Path, change: Change, trainer: Trainer, tmp_path: Path
):
    change(train__precision="fp16", train__val_images=0, machine__checkpoint_minutes=1e-6, train__epochs=4)
    other = tmp_path / "other"
    shutil.copytree(workspace, other, symlinks=True, ignore=shutil.ignore_patterns("other"))
    trainer.finish(other)
    assert trainer.run(workspace, signal.SIGKILL, 1.0, at_write=True) == -signal.SIGKILL
    trainer.finish(workspace)
    assert list(differences(workspace, other)) == []
    content = torch.load(max(workspace.glob(".state/*/step_*")), weights_only=True)
    assert content["scaler"]["scale"] >= 1


def test_the_moving_average_of_the_weights_is_the_result(workspace: Path, change: Change, trainer: Trainer):
    change(train__ema_momentum=0.5)
    trainer.finish(workspace)
    content = torch.load(max(workspace.glob(".state/*/step_*epoch_2*")), weights_only=True)
    own = weights(workspace)
    name = "bbox_head.retina_cls.weight"
    assert torch.equal(own[name], content["ema"][f"module.{name}"])
    assert not torch.equal(own[name], content["state_dict"][name])
    assert int(content["ema"]["steps"]) == 12


def test_the_log_has_what_a_training_did(workspace: Path, trainer: Trainer):
    trainer.finish(workspace)
    log = pd.read_csv(run_folder(workspace) / "log.csv")
    assert log["step"].tolist() == [6, 12]
    assert log["epoch"].tolist() == [1, 2]
    assert (log["loss"] - log["loss_cls"] - log["loss_bbox"]).abs().max() < 1e-5
    assert (log[["lr", "grad_norm", "positives"]] > 0).all().all()
    density = pd.read_csv(run_folder(workspace) / "density.csv")
    assert density.groupby(["step", "kind"]).size().to_dict() == {
        (step, kind): count for step in (6, 12) for kind, count in (("cls", 30), ("box", 10))
    }
    norms = pd.read_csv(run_folder(workspace) / "gradient_norms.csv")
    assert norms["epoch"].unique().tolist() == [0, 1, 2]
    assert (norms.query("kind == 'cls'").groupby("epoch")["count"].sum().nunique()) == 1
    validation = pd.read_csv(run_folder(workspace) / "validation.csv")
    assert validation["epoch"].tolist() == [1, 2]
    assert validation["AP"].between(0, 1).all()


def test_images_that_cannot_be_read_are_left_out_named_and_counted_up_to_a_number(
    images: Path, workspace: Path, change: Change, trainer: Trainer
):
    first, second = sorted(images.iterdir())[:2]
    first.write_bytes(first.read_bytes()[:-200])
    second.unlink()
    change(data__max_bad_images=2)
    data.prepare(params.load())
    change(data__max_bad_images=0)
    assert trainer.run(workspace) == 1
    assert "image cannot be read and data.max_bad_images is 0" in said(workspace)
    change(data__max_bad_images=2)
    trainer.finish(workspace)
    for path in (first, second):
        assert f"({Path('data/digits/train') / path.name})" in said(workspace)
    assert said(workspace).count("left out: image") >= 2
    context = json.loads((run_folder(workspace) / "context.json").read_text())
    assert context["unreadable_images"] == 2
    metrics = evaluation.evaluate(params.load(), VARIANT, Path("runs") / VARIANT, Path("detections") / VARIANT)
    assert metrics["unreadable_images"] == []
    broken = sorted((images.parent / "test").iterdir())[0]
    broken.write_bytes(b"no image")
    data.prepare(params.load())
    metrics = evaluation.evaluate(params.load(), VARIANT, Path("runs") / VARIANT, Path("detections") / VARIANT)
    assert metrics["unreadable_images"] == [broken.name]
    change(data__max_bad_images=0)
    with pytest.raises(InputError, match=r"1 image cannot be read and data\.max_bad_images is 0: image .*test"):
        evaluation.evaluate(params.load(), VARIANT, Path("runs") / VARIANT, Path("detections") / VARIANT)
    assert data.read_manifest(params.load())["splits"]["test"]["images"] == 12
