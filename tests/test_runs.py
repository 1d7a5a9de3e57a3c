"""Laws of what is kept of runs: where it is, that a missing git loses nothing, and how it is deleted."""

import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from ghm import runs
from ghm.training.run import context
from tests.conftest import ROOT


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


def test_without_git_or_a_commit_the_revision_is_unknown(here: Path, monkeypatch: pytest.MonkeyPatch):
    assert context()["revision"] == "unknown"
    subprocess.run(["git", "init", "--quiet"], check=True)
    assert context()["revision"] == "unknown"
    monkeypatch.setenv("PATH", str(here))
    assert context()["revision"] == "unknown"


def cleaned(here: Path, *arguments: str) -> list[str]:
    command = [sys.executable, "-m", "ghm.runs", *arguments]
    done = subprocess.run(command, cwd=here, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_only_runs_that_are_named_and_free_are_deleted(here: Path):
    finished, begun, backbone = (
        Path(".state") / f"{name}-0123456789ab" for name in ("a-seed_0", "b-seed_0", "backbone")
    )
    for folder in (finished / runs.RESULT, begun, backbone):
        folder.mkdir(parents=True)
        (folder / runs.MODEL).write_bytes(bytes(500))
    lines = [f"{finished}: 500B, finished", f"{begun}: 500B, unfinished"]
    assert cleaned(here) == lines
    assert cleaned(here, "--finished") == [f"{lines[0]}, deleted", lines[1]]
    with filelock.FileLock(runs.lock(begun)):  # as of a run that goes on
        assert cleaned(here, "--all") == [f"{lines[1]}, in use"]
    assert cleaned(here, "--all") == [f"{lines[1]}, deleted"]
    assert [path.name for path in Path(".state").iterdir() if path.is_dir()] == [backbone.name]
