"""Laws of what is kept of runs: where it is, that a missing git loses nothing, and how it is deleted."""

import os
import subprocess
import sys
from pathlib import Path

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


def test_dvc_leaves_the_streams_so_that_a_line_of_the_log_comes_once(here: Path):
    (here / "dvc.lock").touch()
    program = """
import logging
from pathlib import Path
from tqdm.contrib.logging import logging_redirect_tqdm
from ghm import runs
logging.basicConfig(level=logging.INFO, format="%(message)s")
assert not runs.take_from_dvc(Path("runs/a"), 0, "key", Path("result"))
with logging_redirect_tqdm():
    logging.info("told")
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert (done.stdout + done.stderr).count("told") == 1
