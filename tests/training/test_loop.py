"""Laws of a run's steps: what moves the weights, what stops them, and what is written down."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.faults import VARIANT, Trainer, differences
from ghm import data, params
from ghm.errors import InputError
from ghm.evaluation import run as evaluation
from ghm.runs import DENSITY, GRADIENT_NORMS, LOG, MODEL, VALIDATION
from tests.training.conftest import Change, checkpoints, log, record, result


@pytest.fixture
def images(workspace: Path, change: Change) -> Path:
    """A copy of the data set, to break images in. The folder of the training images."""
    link, own = workspace / "data" / "digits", workspace / "own"
    shutil.copytree(link.resolve(), own)
    link.unlink()
    link.symlink_to(own)
    change(data__root=str(own))
    return own / "train"


def weights(workspace: Path) -> dict[str, torch.Tensor]:
    return torch.load(result(workspace) / MODEL, weights_only=True)["state_dict"]


def test_a_loss_that_is_not_finite_stops_within_a_step(workspace: Path, change: Change, trainer: Trainer):
    change(train__lr=1e30, machine__checkpoint_minutes=1e-6)
    assert trainer.run(workspace) == 1
    assert "error: loss is nan" in log(workspace)
    assert "at step 2 (epoch 1)" in log(workspace)
    assert "a lower train.lr than 1e+30" in log(workspace)
    assert "data/digits/train/" in log(workspace)
    assert not checkpoints(workspace)  # that of step 1 would be written when step 2 is sound
    assert not result(workspace).exists()


def test_mixed_precision_learns_with_weights_in_float32(workspace: Path, change: Change, trainer: Trainer):
    change(train__precision="bf16", train__val_images=0)
    trainer.finish(workspace)
    loss = pd.read_csv(result(workspace) / LOG)["loss"]
    assert loss.iloc[-1] < loss.iloc[0]
    floating = {value.dtype for value in weights(workspace).values() if value.is_floating_point()}
    assert floating == {torch.float32}


def test_a_killed_run_in_fp16_goes_on_with_the_scale_of_its_loss(
    workspace: Path, change: Change, trainer: Trainer, other: Callable[[], Path]
):
    change(train__precision="fp16", train__val_images=0, machine__checkpoint_minutes=1e-6, train__epochs=4)
    alone = other()
    trainer.finish(alone)
    assert trainer.run(workspace, signal.SIGKILL, 1.0, at_write=True) == -signal.SIGKILL
    trainer.finish(workspace)
    assert list(differences(workspace, alone)) == []


def test_the_moving_average_of_the_weights_is_the_result(workspace: Path, change: Change, trainer: Trainer):
    change(train__ema_momentum=0.5)
    trainer.finish(workspace)
    content = torch.load(checkpoints(workspace)[-1], weights_only=True)
    name = "bbox_head.retina_cls.weight"
    weight = weights(workspace)[name]
    assert torch.equal(weight, content["ema"][name])
    assert not torch.equal(weight, content["state_dict"][name])


def test_the_tables_have_what_a_run_did(workspace: Path, trainer: Trainer):
    trainer.finish(workspace)
    table = {name: pd.read_csv(result(workspace) / name) for name in (LOG, DENSITY, GRADIENT_NORMS, VALIDATION)}
    steps = table[LOG]
    assert steps["step"].tolist() == [6, 12]
    assert steps["epoch"].tolist() == [1, 2]
    assert np.allclose(steps["loss"], steps["loss_cls"] + steps["loss_bbox"], atol=1e-5, rtol=0)
    assert (steps[["lr", "grad_norm", "positives"]].to_numpy() > 0).all()
    assert table[DENSITY].groupby(["step", "kind"]).size().to_dict() == {
        (step, kind): count for step in (6, 12) for kind, count in (("cls", 30), ("box", 10))
    }
    norms = table[GRADIENT_NORMS]
    assert norms["epoch"].unique().tolist() == [0, 1, 2]
    counts: Any = norms.query("kind == 'cls'").groupby("epoch")["count"].sum()
    assert counts.nunique() == 1
    assert table[VALIDATION]["epoch"].tolist() == [1, 2]
    assert table[VALIDATION]["AP"].between(0, 1).all()


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
    assert "image cannot be read and data.max_bad_images is 0" in log(workspace)
    change(data__max_bad_images=2)
    trainer.finish(workspace)
    for path in (first, second):
        assert f"({Path('data/digits/train') / path.name})" in log(workspace)
    assert log(workspace).count("left out: image") >= 2
    assert record(workspace).unreadable_images == 2
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
