"""A stand-in for training: it leaves at once what a training with a given AP would leave."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from ghm.evaluation.bootstrap import METRICS, Resampled
from ghm.study import trials

ROOT = Path(__file__).parents[2]
IMAGES = {"val": 400, "test": 800}
MANIFEST = {
    "name": "digits",
    "splits": {split: {"images": images, "annotations": f"{split}.json"} for split, images in IMAGES.items()},
}
SPREAD = 0.01  # of AP between resamples of the images: all trainings find the same images hard
OWN = 0.001  # what is left of it in a difference

# (variant, parameters) -> AP on val and on test in percent, or the last line of the log of a training that fails
Level = Callable[[str, dict[str, Any]], tuple[float, float] | str]


class Trainer:
    """Stands in for the processes that train. `level` says what comes of them, `trained` what was asked for."""

    def __init__(self) -> None:
        self.level: Level = lambda variant, params: (50.0, 50.0)
        self.trained: list[str] = []

    def run(self, command: list[str], *, cwd: Path, stdout: Any, **_: Any) -> CompletedProcess[str]:
        variant, *splits = command[3:]
        params = YAML(typ="safe").load(cwd / "params.yaml")
        self.trained.append(f"{cwd.parent.name}/{cwd.name}")
        found = self.level(variant, params)
        if isinstance(found, str):
            stdout.write(f"Traceback\n{found}\n\n")
            return CompletedProcess(command, 1)
        seed = params["seeds"][0]
        for split, ap in zip(splits, found, strict=True):
            self._judged(cwd / "detections" / split / f"seed_{seed}", ap / 100, IMAGES[split], len(self.trained))
        context = {
            "dataset": "digits", "device": "a stand-in", "revision": "0123abc", "versions": {"torch": "2"},
            "seconds": 60.0, "parameters": 1_000_000, "epochs": 3, "images": 3200, "conditions": {"data": "0123"},
        }  # fmt: skip
        write_json(cwd / "runs" / f"seed_{seed}" / "context.json", context)
        if not (cwd / "data").exists():  # as with other data, which a training prepares itself
            write_json(cwd / "data" / "digits.json", MANIFEST)
        return CompletedProcess(command, 0)

    def _judged(self, place: Path, ap: float, images: int, number: int) -> None:
        shared_B = np.random.default_rng(0).normal(0, SPREAD, 1000)
        value_B = ap + shared_B + np.random.default_rng(number).normal(0, OWN, 1000)
        value_B = np.concatenate([[ap], value_B])
        write_json(place / "detections.json", [])
        write_json(place / "metrics.json", {"AP": round(ap, 4)})
        Resampled("the same", images, dict.fromkeys(METRICS, value_B), np.zeros((1, 1, 1))).save(
            place / "resampled.npz"
        )


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """Work in a folder with the default parameters, where trainings take no time."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (tmp_path / "studies").mkdir()
    (tmp_path / "weights").mkdir()
    write_json(tmp_path / "data" / "digits.json", MANIFEST)
    stand_in = Trainer()
    monkeypatch.setattr(trials, "subprocess", SimpleNamespace(run=stand_in.run))
    monkeypatch.chdir(tmp_path)
    return stand_in


@pytest.fixture
def define(trainer: Trainer) -> Callable[..., str]:
    """Write a study like `bins`, with some keys otherwise, and return its name."""

    def write(name: str = "asked", **keys: Any) -> str:
        content = {
            "question": "How many?", "parameter": "ghmc.bins", "values": [10, 20], "variants": {},
            "curves": {"FL": curve("fl_sl1", swept=False), "GHM-C": curve("ghmc_sl1")},
            "conditions": {"clean": {}}, "seeds": [0, 1, 2], "published": [],
        }  # fmt: skip
        with Path("studies", f"{name}.yaml").open("w") as file:
            YAML().dump({**content, **keys}, file)
        return name

    return write


def curve(variant: str, *, swept: bool = True, **changes: object) -> dict[str, object]:
    """A curve of a study; keys of `changes` have two underscores for the dot."""
    return {
        "variant": variant,
        "changes": {key.replace("__", "."): value for key, value in changes.items()},
        "swept": swept,
    }
