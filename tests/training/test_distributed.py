"""Laws of a training on several processes, as torchrun starts them, on gloo."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from ruamel.yaml import YAML

from benchmarks.faults import ROOT, VARIANT, Trainer
from ghm.training import state


def change(folder: Path, changes: dict[str, Any]) -> None:
    """Set `section.key` in the parameters."""
    yaml = YAML()
    content = yaml.load(folder / "params.yaml")
    for name, value in changes.items():
        section, key = name.split(".")
        content[section][key] = value
    yaml.dump(content, folder / "params.yaml")


def test_two_processes_that_are_killed_end_with_the_bits_of_two_left_alone():
    words = ["--preset", "tiny", "--processes", "2", "--kills", "2"]
    command = [sys.executable, "-m", "benchmarks.faults", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["different"] == []
    assert found["kills"] >= 1


def test_with_sync_two_processes_of_batch_2_are_one_of_batch_4(workspace: Path, tmp_path: Path, trainer: Trainer):
    # Without batch statistics, which each process has of its own images.
    exact = {"model.norm_eval": True, "ghmc.sync": True, "ghmr.sync": True}
    change(workspace, {**exact, "train.optimizer": "sgd", "train.lr": 1e-9, "train.val_images": 0})
    trainer.finish(workspace)
    one = workspace.joinpath("runs").rename(workspace / "one") / VARIANT / "seed_0"
    change(workspace, {"machine.launcher": "pytorch", "train.resume_from": None})
    sums = state.read(state.by_age(next(workspace.glob(".state/*-seed_0-*/")))[-1])["optimizer"]["state"]
    next(workspace.glob(".state/*/result")).rename(workspace / "result")
    for path in workspace.glob(".state/*/step_*"):
        path.unlink()
    with Trainer(2, GHM_DATA_ROOT=trainer.environment["GHM_DATA_ROOT"]) as torchrun:
        torchrun.finish(workspace)
    two = workspace / "runs" / VARIANT / "seed_0"
    assert json.loads((two / "context.json").read_text())["processes"] == 2
    expected, found = (pd.read_csv(run / "log.csv") for run in (one, two))
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4)
    assert expected["positives"].min() > 0
    # The optimiser's momentum is a sum of the gradients of all steps.
    gradients = state.read(state.by_age(next(workspace.glob(".state/*-seed_0-*/")))[-1])["optimizer"]["state"]
    for number, moment in gradients.items():
        torch.testing.assert_close(
            moment["momentum_buffer"], sums[number]["momentum_buffer"], rtol=1e-3, atol=1e-4, msg=str(number)
        )


def test_a_process_that_dies_takes_the_job_down_and_leaves_the_checkpoint(workspace: Path, trainer: Trainer):
    change(workspace, {"machine.launcher": "pytorch", "train.epochs": 40, "machine.checkpoint_minutes": 1e-6})
    with Trainer(2, GHM_DATA_ROOT=trainer.environment["GHM_DATA_ROOT"]) as torchrun:
        process = subprocess.Popen(
            [sys.executable, "-m", "stages.train", VARIANT],
            cwd=workspace,
            env=torchrun.environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        while not list(workspace.glob(".state/*/step_*")):
            assert process.poll() is None
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        second = max(int(child) for child in children)
        os.kill(second, signal.SIGKILL)
        said = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert re.search(r"exitcode\s*: -9", said)
    (found,) = workspace.glob(".state/*-seed_0-*/")
    newest = state.newest(found)
    assert newest
    assert newest[1]["meta"]["step"] >= 1
    assert len(newest[1]["processes"]) == 2


def test_a_batch_that_the_processes_cannot_share_is_refused(workspace: Path, trainer: Trainer):
    change(workspace, {"machine.launcher": "pytorch", "train.batch_size": 3})
    with Trainer(2, GHM_DATA_ROOT=trainer.environment["GHM_DATA_ROOT"]) as torchrun:
        assert torchrun.run(workspace) == 1
    assert "error: train.batch_size must be a multiple of the 2 processes, got 3" in (workspace / "log.txt").read_text()


def test_a_checkpoint_of_two_processes_goes_on_in_one_with_a_warning(workspace: Path, trainer: Trainer):
    # At the sight of a checkpoint: before the first step a process ends as any program does.
    change(workspace, {"machine.launcher": "pytorch", "train.epochs": 6, "machine.checkpoint_minutes": 1e-6})
    with Trainer(2, GHM_DATA_ROOT=trainer.environment["GHM_DATA_ROOT"]) as torchrun:
        assert torchrun.run(workspace, signal.SIGTERM, at_write=True, group=False) != 0
    change(workspace, {"machine.launcher": "none"})
    trainer.finish(workspace)
    said = (workspace / "log.txt").read_text()
    assert "stopped by SIGTERM after step" in said
    assert "the checkpoint is of 2 processes and there are 1 now" in said
