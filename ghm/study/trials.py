"""Trainings of a study, each in a folder of its own under `.trials/`, as many at once as the machine has room for."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from tqdm import tqdm

from ghm import files
from ghm.errors import InputError
from ghm.study.definition import Changes, changed
from ghm.training import shape

TRIALS = Path(".trials")
LOG = "log.txt"
DONE = "done.json"
# Sections that shape the data and the pretrained backbone; a trial that changes none of them shares those of the root.
SHARED = {"data": ("data", "digits", "custom"), "weights": ("model", "backbone", "digits")}


@dataclass(frozen=True)
class Trial:
    """One training and its detections."""

    variant: str
    seed: int
    changes: Changes
    folder: Path

    def run(self, split: str) -> Path:
        """Where the detections on a split are."""
        return self.folder / "detections" / split / f"seed_{self.seed}"


def trial(variant: str, seed: int, changes: Changes, root: Path = Path()) -> Trial:
    """The training of `variant` with some parameters of `params.yaml` otherwise."""
    changes = dict(sorted(changed(_params(root), changes).items()))
    words = ",".join(
        [variant, *(f"{key}={value}" for key, value in changes.items() if not key.startswith("variants."))]
    )
    name = "".join(letter if letter.isalnum() or letter in "_.,=-" else "_" for letter in words)
    return Trial(variant, seed, changes, root / TRIALS / f"{name[:100]}-{shape.key(changes)}" / f"seed_{seed}")


def run_all(trials: Sequence[Trial], splits: Sequence[str], jobs: int, root: Path = Path()) -> None:
    """Train and detect wherever that has not been done under these parameters and with this code.

    Raises:
        InputError: a trial failed; its log is named. The others are finished first.
    """
    failed: list[str] = []

    def one(each: Trial) -> None:
        if not _run(each, splits, threads=max(1, (os.cpu_count() or 1) // jobs), root=root):
            failed.append(f"{each.folder / LOG}: {_last_line(each.folder / LOG)}")

    with ThreadPoolExecutor(jobs) as pool:
        list(tqdm(pool.map(one, trials), total=len(trials), unit="training", disable=None))
    if failed:
        raise InputError(f"{len(failed)} of {len(trials)} trainings failed: " + "; ".join(failed))


def _run(each: Trial, splits: Sequence[str], threads: int, root: Path) -> bool:
    each.folder.mkdir(parents=True, exist_ok=True)
    yaml = YAML()
    content = _params(root, yaml)
    for key, value in each.changes.items():
        section, _, name = key.partition(".")
        content[section][name] = value
    content["seeds"] = [each.seed]
    yaml.dump(content, each.folder / "params.yaml")
    changed_sections = {key.partition(".")[0] for key in each.changes}
    if _is_done(each, content, splits):
        return True
    for shared, sections in SHARED.items():
        place = each.folder / shared
        if not changed_sections & set(sections) and not place.exists():
            place.symlink_to((root / shared).absolute())
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    with (each.folder / LOG).open("a", encoding="utf-8") as log:
        command = [sys.executable, "-m", "ghm.study.trial", each.variant, *splits]
        if subprocess.run(command, cwd=each.folder, env=environment, stdout=log, stderr=log, check=False).returncode:
            return False
    files.write_json(each.folder / DONE, _made_of(content, splits))
    return True


def _is_done(each: Trial, content: Any, splits: Sequence[str]) -> bool:
    done = each.folder / DONE
    return done.is_file() and json.loads(done.read_text(encoding="utf-8")) == _made_of(content, splits)


def _made_of(content: Any, splits: Sequence[str]) -> dict[str, Any]:
    """What a finished trial was made of: parameters, code, splits."""
    return {"params": shape.key(json.loads(json.dumps(content))), "code": shape.key(shape.code()), "splits": [*splits]}


def _params(root: Path, yaml: Any = None) -> Any:
    return (yaml or YAML(typ="safe")).load(root / "params.yaml")


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    return lines[-1] if lines else "it is empty"
