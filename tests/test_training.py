"""Laws of training: nothing trained twice, nothing trained from the wrong state, nothing half-written."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from ghm import params, training
from ghm.errors import InputError

VARIANT = "ghmc_ghmr"
ROOT = Path(__file__).parents[1]
# Train like the stage, but lose power before the second epoch when asked to.
SCRIPT = """
import os, signal, sys
from ghm.gradient_norms import GradientNormHook
from stages import run, train
if "killed" in sys.argv:
    def before_train_epoch(self, runner):
        if runner.epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    GradientNormHook.before_train_epoch = before_train_epoch
run(train.main)
"""


def stage(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, VARIANT, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def seed_folder() -> Path:
    return Path("runs") / VARIANT / "seed_0"


def test_a_killed_training_goes_on_and_ends_with_the_bits_of_an_undisturbed_one(workspace: Path):
    assert stage().returncode == 0
    whole = {path.name: path.read_bytes() for path in seed_folder().iterdir()}
    Path(".state").rename("undisturbed")
    assert stage("killed").returncode == -9
    # The old out stays until the new one is whole.
    assert seed_folder().joinpath("model.pth").read_bytes() == whole["model.pth"]
    done = stage()
    assert "going on from" in done.stderr
    assert done.returncode == 0, done.stderr
    again = {path.name: path.read_bytes() for path in seed_folder().iterdir()}
    for name in ("model.pth", "gradient_norms.csv", "config.py"):
        assert again[name] == whole[name], name
    assert pd.read_csv(seed_folder() / "log.csv")["step"].tolist() == [6, 12]
    third = stage()
    assert third.returncode == 0
    assert "already trained under these conditions" in third.stderr
    assert len(list(Path(".state").iterdir())) == 1


def test_the_key_of_a_training_covers_what_shapes_it_and_nothing_else(workspace: Path):
    given = params.load()

    def key(changed: params.Params, variant: str = VARIANT, seed: int = 0) -> str:
        return training._key(changed, training.build_config(changed, variant, seed))

    first = key(given)
    assert key(given, seed=1) != first
    assert key(given, "ghmc_sl1") != first
    assert key(replace(given, train=replace(given.train, lr=0.1))) != first
    assert key(replace(given, evaluate=replace(given.evaluate, nms_iou=0.1))) == first
    other_loss = replace(given, losses={**given.losses, "focal": params.Focal(1.0, 0.5, 1.0)})
    assert key(other_loss) == first
    manifest = Path("data/digits.json")
    content = json.loads(manifest.read_text())
    content["splits"]["train"]["annotations_sha256"] = "0"
    manifest.write_text(json.dumps(content))
    assert key(given) != first


def refused(resume_from: str, words: str) -> None:
    given = params.load()
    given = replace(given, train=replace(given.train, resume_from=resume_from))
    with pytest.raises(InputError, match=words):
        training.train(given, VARIANT, Path("runs") / VARIANT)
    assert not Path("runs", VARIANT).exists()


def test_a_checkpoint_to_go_on_from_must_be_one(workspace: Path):
    refused("none.pth", r"train\.resume_from must be null or an existing checkpoint, got 'none\.pth'")
    torch.save({"state_dict": {}}, "weights.pth")
    refused("weights.pth", r"train\.resume_from: weights\.pth holds no state of a training")


def test_loading_a_checkpoint_executes_nothing(workspace: Path):
    class Hostile:
        def __reduce__(self):
            return (Path("executed").mkdir, ())

    torch.save({"message_hub": Hostile()}, "hostile.pth")
    refused("hostile.pth", r"train\.resume_from: hostile\.pth is no checkpoint that can be loaded safely")
    assert not Path("executed").exists()
