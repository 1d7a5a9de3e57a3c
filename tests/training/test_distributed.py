"""Laws of a run on several processes, as torchrun starts them, on gloo."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch

from benchmarks.faults import ROOT, VARIANT, Trainer
from ghm.runs import LOG
from ghm.training import state
from tests.training.conftest import Change, checkpoints, log, record, result


def test_two_processes_that_are_killed_end_with_the_bits_of_two_left_alone():
    arguments = ["--preset", "tiny", "--processes", "2", "--kills", "2"]
    command = [sys.executable, "-m", "benchmarks.faults", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["different"] == []
    assert report["kills"] >= 1


def test_with_sync_two_processes_of_batch_2_are_one_of_batch_4(
    workspace: Path, change: Change, trainer: Trainer, torchrun: Trainer
):
    # Without batch statistics, which each process has of its own images.
    change(model__norm_eval=True, ghmc__sync=True, ghmr__sync=True)
    change(train__optimizer="sgd", train__lr=1e-9, train__val_images=0)
    trainer.finish(workspace)
    expected = pd.read_csv(result(workspace) / LOG)
    # The optimiser's momentum is a sum of the gradients of all steps.
    sums = state.read(checkpoints(workspace)[-1])["optimizer"]["state"]
    (workspace / ".state").rename(workspace / "one")
    change(machine__launcher="pytorch")
    torchrun.finish(workspace)
    assert record(workspace).processes == 2
    pd.testing.assert_frame_equal(pd.read_csv(result(workspace) / LOG), expected, rtol=1e-4)
    assert (expected["positives"].to_numpy() > 0).all()
    for number, moment in state.read(checkpoints(workspace)[-1])["optimizer"]["state"].items():
        found, wanted = moment["momentum_buffer"], sums[number]["momentum_buffer"]
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4, msg=str(number))


def test_a_process_that_dies_takes_the_run_down_and_leaves_the_checkpoint(
    workspace: Path, change: Change, torchrun: Trainer
):
    change(machine__launcher="pytorch", train__epochs=40, machine__checkpoint_minutes=1e-6)
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
    os.kill(max(map(int, children)), signal.SIGKILL)
    said = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert re.search(r"exitcode\s*: -9", said)
    newest = state.newest(checkpoints(workspace)[0].parent)
    assert newest
    assert newest[1]["meta"]["step"] >= 1
    assert len(newest[1]["processes"]) == 2


def test_a_batch_that_the_processes_cannot_share_is_refused(workspace: Path, change: Change, torchrun: Trainer):
    change(machine__launcher="pytorch", train__batch_size=3)
    assert torchrun.run(workspace) == 1
    assert "error: train.batch_size must be a multiple of the 2 processes, got 3" in log(workspace)


def test_a_checkpoint_of_two_processes_goes_on_in_one_with_a_warning(
    workspace: Path, change: Change, trainer: Trainer, torchrun: Trainer
):
    # At the sight of a checkpoint: before the first step a process ends as any program does.
    change(machine__launcher="pytorch", train__epochs=6, machine__checkpoint_minutes=1e-6)
    assert torchrun.run(workspace, signal.SIGTERM, at_write=True, group=False) != 0
    change(machine__launcher="none")
    trainer.finish(workspace)
    assert "stopped by SIGTERM after step" in log(workspace)
    assert "the checkpoint is of 2 processes and there are 1 now" in log(workspace)
