"""A variant of the tiny preset, trained for real: once for all tests of a file."""

import json
import shutil
from pathlib import Path

import pytest

from ghm import params, training
from tests.conftest import inside

VARIANT = "ghmc_ghmr"
RUN = Path("runs") / VARIANT / "seed_0"


def train_tiny(tiny: Path, folder: Path) -> Path:
    """Train in `folder` with the parameters of `tiny`, and return `folder`: it holds `runs/`."""
    shutil.copy(tiny / "params.yaml", folder)
    for name in ("data", "weights"):
        shutil.copytree(tiny / name, folder / name, symlinks=True)
    with pytest.MonkeyPatch.context() as patch, inside(folder):
        patch.setenv("GHM_DATA_ROOT", str(tiny / "store"))
        training.train(params.load(), VARIANT, Path("runs") / VARIANT)
    return folder


def with_runs(workspace: Path, trained: Path) -> Path:
    """The workspace of a test, with what `train_tiny` trained."""
    shutil.copytree(trained / "runs", workspace / "runs")
    return workspace


def truth(split: str) -> dict[str, list[dict]]:
    """The annotations of a split of the digits data set in the current folder."""
    return json.loads(Path(f"data/digits/annotations/instances_{split}.json").read_text())
