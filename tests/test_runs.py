"""Laws of what is kept of runs: where it is, that a missing git loses nothing, how it is thrown away."""

import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from ghm import runs
from ghm.training.run import context
from tests.conftest import ROOT


def folder(name: str, *, finished: bool, size: int = 1000) -> Path:
    path = Path(".state") / name
    place = path / runs.RESULT if finished else path
    place.mkdir(parents=True)
    (place / "model.pth").write_bytes(bytes(size))
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("GHM_STATE", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_state_lies_in_the_repository_that_started_an_experiment(here: Path, monkeypatch: pytest.MonkeyPatch):
    assert runs.state_folder() == Path(".state")
    monkeypatch.setenv("DVC_ROOT", str(here))  # as in a stage of the workspace
    assert runs.state_folder() == Path(".state")
    monkeypatch.setenv("DVC_ROOT", "/repository")  # as in a temporary workspace
    assert runs.state_folder() == Path("/repository/.state")
    monkeypatch.setenv("GHM_STATE", "/scratch")
    assert runs.state_folder() == Path("/scratch")


def cleaned(here: Path, *arguments: str) -> list[str]:
    command = [sys.executable, "-m", "ghm.runs", *arguments]
    environment = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_what_is_kept_is_counted_and_only_what_is_named_and_free_is_deleted(here: Path):
    done = folder("fl_sl1-seed_0-0123456789ab", finished=True)
    begun = folder("ghmc_sl1-seed_0-0123456789ab", finished=False, size=500)
    backbone = folder("backbone-0123456789ab", finished=False)
    lines = [f"{done}: 1.00kB, finished", f"{begun}: 500B, unfinished", "1.50kB in .state, 0.00B freed"]
    assert cleaned(here) == lines
    assert cleaned(here, "--finished") == [f"{lines[0]}, deleted", lines[1], "1.50kB in .state, 1.00kB freed"]
    assert not done.exists() and begun.exists() and backbone.exists()
    with filelock.FileLock(runs.lock(begun)):  # as of a run that goes on
        assert cleaned(here, "--all") == [f"{lines[1]}, in use", "500B in .state, 0.00B freed"]
    assert begun.exists()
    assert cleaned(here, "--all")[-1] == "500B in .state, 500B freed"
    assert not begun.exists()


@pytest.mark.parametrize("repository", ["none", "empty", "no git"])
def test_without_git_or_a_commit_the_revision_is_unknown(here: Path, monkeypatch: pytest.MonkeyPatch, repository: str):
    if repository == "empty":
        subprocess.run(["git", "init", "--quiet"], check=True)
    if repository == "no git":
        monkeypatch.setenv("PATH", str(here))
    assert context()["revision"] == "unknown"
