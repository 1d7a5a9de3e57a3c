"""Laws of a stopped training: it goes on, to the bits of one that was left alone, or says why it does not."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.faults import BEGUN, ROOT, VARIANT, Trainer, unequal
from ghm.runs import COLUMNS, CONFIG, MODEL, RECORD
from ghm.training import state
from tests.training.conftest import Change, checkpoints, log, result


def model(folder: Path) -> bytes:
    return (result(folder) / MODEL).read_bytes()


def test_a_training_that_is_killed_at_random_moments_ends_with_the_bits_of_one_left_alone():
    command = [sys.executable, "-m", "benchmarks.faults", "--preset", "tiny", "--kills", "6"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["different"] == []
    assert found["kills"] >= 3
    assert found["while_writing"] >= 1
    assert found["went_on_from_a_checkpoint"] >= 1


def test_the_comparison_of_two_trainings_sees_one_bit():
    one = {"a": [torch.zeros(3), {"b": (1, 2.0)}], "c": "text"}
    assert list(unequal(one, one, name="it")) == []
    assert list(unequal({"a": torch.tensor([0.0])}, {"a": torch.tensor([-0.0])}, name="it")) == ["it.a"]
    assert list(unequal({"a": [1, (2,)]}, {"a": [1, (3,)]}, name="it")) == ["it.a.1.0"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_all_processes_ends_the_step_saves_and_exits_with_the_usual_code(
    workspace: Path, change: Change, trainer: Trainer, number: signal.Signals, code: int
):
    change(
        train__epochs=4,
        machine__workers=2,
        train__ema_momentum=0.01,
        train__flip=0.5,
        machine__checkpoint_minutes=1e-6,
    )
    assert trainer.run(workspace, number, at_write=True) == code
    assert f"stopped by {number.name} after step" in log(workspace)
    assert "Traceback" not in log(workspace)
    assert not result(workspace).exists()
    newest = checkpoints(workspace)[-1]
    assert state.read(newest)["meta"]["step"] > 0
    change(machine__workers=0)
    trainer.finish(workspace)
    assert f"going on from .state/{newest.parent.name}/{newest.name}" in log(workspace)


def test_a_finished_training_is_not_repeated(workspace: Path, trainer: Trainer):
    trainer.finish(workspace)
    whole = {path.name: path.read_bytes() for path in result(workspace).iterdir()}
    assert {MODEL, CONFIG, RECORD, *COLUMNS} == whole.keys()
    shutil.rmtree(workspace / "runs")
    trainer.finish(workspace)
    assert "already trained under these conditions" in log(workspace)
    assert log(workspace).count(BEGUN) == 1
    for path in result(workspace).iterdir():
        assert path.read_bytes() == whole[path.name], path


def test_what_shapes_a_training_starts_it_afresh_and_says_why(workspace: Path, change: Change, trainer: Trainer):
    trainer.finish(workspace)
    change(train__lr=0.001)
    trainer.finish(workspace)
    assert "training starts afresh, for since the last run of this name" in log(workspace)
    assert "optimizer.lr was 0.001 and is 0.0005" in log(workspace)
    assert log(workspace).count("afresh") == 1
    change(machine__workers=1, machine__checkpoint_minutes=3, machine__launcher="none")
    trainer.finish(workspace)
    assert log(workspace).count("already trained") == 1


def test_a_training_goes_on_from_the_checkpoint_that_is_named(workspace: Path, change: Change, trainer: Trainer):
    trainer.finish(workspace)
    whole = model(workspace)
    before, _ = checkpoints(workspace)
    assert state.read(before)["meta"] == {"epoch": 1, "step_in_epoch": 0, "step": 6}
    kept = str(shutil.copy(before, workspace / before.name))
    change(train__resume_from=kept)
    trainer.finish(workspace)
    assert f"going on from {kept}, after step 6" in log(workspace)
    assert model(workspace) == whole
    change(train__resume_from="none.pth")
    assert trainer.run(workspace) == 1
    assert "error: train.resume_from must be null or an existing checkpoint, got 'none.pth'" in log(workspace)
    torch.save({"state_dict": {}}, workspace / "weights.pth")
    change(train__resume_from="weights.pth")
    assert trainer.run(workspace) == 1
    assert "error: weights.pth holds no state of a training run" in log(workspace)


def test_a_checkpoint_of_another_model_is_refused_in_a_sentence(workspace: Path, change: Change, trainer: Trainer):
    trainer.finish(workspace)
    newest = checkpoints(workspace)[-1]
    text = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(text.replace("fpn_channels: 64", "fpn_channels: 32"))
    change(train__resume_from=str(newest))
    assert trainer.run(workspace) == 1
    assert f"error: the model in {newest} does not fit this run" in log(workspace)


def test_two_starts_of_one_training_take_turns(workspace: Path, change: Change, trainer: Trainer):
    change(train__epochs=4)
    with Trainer() as other:
        process = other.nursery
        assert process
        assert process.stdin
        process.stdin.write(json.dumps([str(workspace), "stages.train", VARIANT]) + "\n")
        process.stdin.flush()
        while not (workspace / "log.txt").exists() or BEGUN not in log(workspace):
            assert process.poll() is None
        trainer.finish(workspace)
    assert "another process works on the training run" in log(workspace)
    assert "already trained under these conditions" in log(workspace)
    assert log(workspace).count(BEGUN) == 1
