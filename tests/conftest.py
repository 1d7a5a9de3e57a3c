"""Shared by all tests: quiet imports, and a workspace with the tiny preset."""

import copy
import os
import shutil
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides
from hypothesis import settings
from tqdm import tqdm

from tests.trained import RUN, VARIANT

# Before torch is imported: importing mmengine may start CUDA, and what is forked after that cannot use it. Tests that
# look at GPUs say which.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# The tests of the Triton kernels run them in its interpreter. Triton reads this when it is imported.
os.environ["TRITON_INTERPRET"] = "1"

# What libraries say about themselves when they are imported is not ours to fail on; all later warnings are errors.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from ghm import backbones, data, params, presets, training
    from ghm.training import run  # noqa: F401

ROOT = Path(__file__).parents[1]

# How long an example takes says how busy the machine is.
settings.register_profile("ghm", deadline=None)
settings.load_profile("ghm")

# tqdm's own lock is shared with forked children: one that is killed while it holds it stops all other bars for ever.
tqdm.set_lock(threading.RLock())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest file, so that it does not run alone at the end."""
    items.sort(key=lambda item: item.path.name != "test_pipeline.py")


def changed(content: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the content of a parameter file with other values, named like `train.lr`."""
    result = copy.deepcopy(dict(content))
    for key, value in values.items():
        *path, last = key.split(".")
        section = result
        for name in path:
            section = section.setdefault(name, {})
        section[last] = value
    return result


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values that are no sections, named like `train.lr`."""
    values: dict[str, Any] = {}
    for name, value in content.items():
        values |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return values


def override_file(path: Path, values: Mapping[str, Any]) -> None:
    """As `dvc exp run -S key=value ...` does."""

    def word(value: object) -> str:
        if isinstance(value, Mapping):
            return "{" + ",".join(f"{name}: {word(item)}" for name, item in value.items()) + "}"
        return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))

    apply_overrides(path, [f"{key}={word(value)}" for key, value in values.items()])


def comments(text: str) -> list[str]:
    """Those of a YAML file."""
    return [line.split("#", 1)[1].strip() for line in text.splitlines() if "#" in line]


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in `folder`, as a stage works in the repository's root."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the parameters of the tiny preset, their data set and their backbone. Tests copy it."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (folder / "presets").symlink_to(ROOT / "presets")
    with pytest.MonkeyPatch.context() as patch, inside(folder):
        patch.setenv("GHM_DATA_ROOT", str(folder / "store"))
        presets.apply("tiny")
        data.prepare(params.load())
        backbones.prepare(params.load())
    return folder


@pytest.fixture
def workspace(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny workspace, as the current folder."""
    for name in ("params.yaml", "presets", "data", "weights"):
        if (tiny / name).is_file():
            shutil.copy(tiny / name, tmp_path)
        else:
            shutil.copytree(tiny / name, tmp_path / name, symlinks=True)
    monkeypatch.setenv("GHM_DATA_ROOT", str(tiny / "store"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny preset."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copy(tiny / "params.yaml", folder)
    for name in ("data", "weights"):
        shutil.copytree(tiny / name, folder / name, symlinks=True)
    with pytest.MonkeyPatch.context() as patch, inside(folder):
        patch.setenv("GHM_DATA_ROOT", str(tiny / "store"))
        training.train(params.load(), VARIANT, RUN.parent)
    return folder / RUN


@pytest.fixture
def place(workspace: Path, trained: Path) -> Path:
    """The tiny workspace with a finished run."""
    shutil.copytree(trained, workspace / RUN)
    return workspace
