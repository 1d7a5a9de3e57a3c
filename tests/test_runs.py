"""Laws of what is kept of runs: where it is, that a missing git loses nothing, and how it is deleted."""

import subprocess
from pathlib import Path

import pytest

from ghm import runs
from ghm.training.run import context


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
