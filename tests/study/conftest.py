"""A stand-in for training: it leaves at once what a training run with a given AP would leave."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from ghm import files, runs
from ghm.evaluation.bootstrap import METRICS, Resampled
from ghm.side_by_side import Programs
from ghm.study import __main__ as command

ROOT = Path(__file__).parents[2]
REPORTS = Path("reports/studies")
IMAGES = {"train": 3200, "val": 400, "test": 800}
SPREAD = 0.01  # of AP between resamples of the images: all runs find the same images hard
OWN = 0.001  # what is left of it in a difference

# (variant, parameters) -> AP on val and on test in percent, or the last line of the log of a run that fails
Level = Callable[[str, dict[str, Any]], tuple[float, ...] | str]


class Trainer:
    """Stands in for the processes that train. `level` says what comes of them, `trained` what was asked for."""

    def __init__(self) -> None:
        self.level: Level = lambda variant, params: (50.0, 50.0)
        self.images: Callable[[dict[str, Any]], dict[str, int]] = lambda params: IMAGES
        self.trained: list[str] = []
        self.environment: Mapping[str, str] = {}  # of the last

    def run(self, command: list[str], hear: Callable[[str], None], *, cwd: Path, env: Mapping[str, str]) -> int:
        self.environment = env
        variant, *splits = command[3:]
        params = YAML(typ="safe").load(cwd / "params.yaml")
        self.trained.append(f"{cwd.parent.name}/{cwd.name}")
        level = self.level(variant, params)
        if isinstance(level, str):
            for line in ("Traceback", level, ""):
                hear(line)
            return 1
        seed = params["seeds"][0]
        for split, ap in zip(splits, level, strict=True):
            self._judge(runs.detections_folder(variant, seed, cwd / split), ap / 100, self.images(params)[split])
        record = runs.Record(
            dataset="digits", device="a stand-in", revision="0123abc", versions={"torch": "2"}, seconds=60.0,
            epochs=params["train"]["epochs"],
            parameters=1_000_000, images=self.images(params)["train"],
            conditions={"data": "0123", "code": "45", "libraries": "6"},
            variant=variant, seed=seed, category_ids=[], pretrained="digits", load_from=None, fingerprint="7",
            processes=1, unreadable_images=0,
        )  # fmt: skip
        record.write(runs.run_folder(variant, seed, cwd))
        return 0

    def _judge(self, folder: Path, ap: float, images: int) -> None:
        shared_B = np.random.default_rng(0).normal(0, SPREAD, 1000)
        value_B = ap + shared_B + np.random.default_rng(len(self.trained)).normal(0, OWN, 1000)
        files.write_json(folder / runs.METRICS, {"AP": round(ap, 4)})
        values = dict.fromkeys(map(str, METRICS), np.concatenate([[ap], value_B]))
        Resampled("the same", images, values, np.zeros((1, 1, 1))).save(folder / runs.RESAMPLED)


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """Work in a folder with the default parameters, where training takes no time."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    for name in ("studies", "data", "weights"):
        (tmp_path / name).mkdir()
    stand_in = Trainer()
    monkeypatch.setattr(Programs, "run", lambda _, *arguments, **named: stand_in.run(*arguments, **named))
    monkeypatch.chdir(tmp_path)
    return stand_in


def define(name: str = "asked", **keys: Any) -> str:
    """Write a study like `bins`, with some keys otherwise, and return its name."""
    content = {
        "question": "How many?", "parameter": "ghmc.bins", "values": [10, 20], "seeds": [0, 1, 2],
        "curves": {"FL": curve("fl_sl1", swept=False), "GHM-C": curve("ghmc_sl1")}, "conditions": {"clean": {}},
        "published": None,
    }  # fmt: skip
    with Path("studies", f"{name}.yaml").open("w") as file:
        YAML().dump({**content, **keys}, file)
    return name


def curve(variant: str, *, swept: bool = True, **changes: object) -> dict[str, object]:
    """A curve of a study; keys of `changes` have two underscores for the dot."""
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return {"variant": variant, "changes": named, "swept": swept}


def run_study(*words: str) -> tuple[dict[str, Any], str]:
    """The JSON and the page of a study after `python -m ghm.study WORDS`, the last of which is its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["study", "--jobs", "1", *words])
        command.main()
    return json.loads((REPORTS / f"{words[-1]}.json").read_text()), (REPORTS / f"{words[-1]}.md").read_text()
