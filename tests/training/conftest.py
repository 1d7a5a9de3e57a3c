"""A process that has imported everything, from which runs are forked; and what the tests of runs change and read."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from benchmarks.faults import VARIANT, Trainer
from ghm import runs
from ghm.runs import Record
from ghm.training import state

Change = Callable[..., None]


@pytest.fixture(scope="module")
def trainer(tiny: Path) -> Iterator[Trainer]:
    with Trainer(GHM_DATA_ROOT=str(tiny / "store")) as trainer:
        yield trainer


@pytest.fixture
def torchrun(tiny: Path) -> Trainer:
    """Two processes."""
    return Trainer(2, GHM_DATA_ROOT=str(tiny / "store"))


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
def other(workspace: Path, tmp_path: Path) -> Callable[[], Path]:
    """Copy the workspace as it is."""

    def copy() -> Path:
        ignored = shutil.ignore_patterns("other")
        return Path(shutil.copytree(workspace, tmp_path / "other", symlinks=True, ignore=ignored))

    return copy


def log(folder: Path) -> str:
    """What runs have said."""
    return (folder / "log.txt").read_text()


def result(folder: Path) -> Path:
    return runs.run_folder(VARIANT, 0, folder)


def record(folder: Path) -> Record:
    return Record.read(result(folder))


def checkpoints(folder: Path) -> list[Path]:
    return state.by_age(next(folder.glob(f".state/{VARIANT}-seed_0-*/")))
