"""Trainings of a study, each in a folder of its own under `.trials/`, as many at once as the machine has room for."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from tqdm import tqdm

from ghm import files, fingerprint, params, runs
from ghm.errors import InputError
from ghm.study.definition import PARAMS, Changes, applied, changed
from ghm.words import count

TRIALS = Path(".trials")
LOG = "log.txt"
LOCK = ".lock"
DONE = "done.json"
# Sections that shape the data and the pretrained backbone; a trial that changes none of them shares those of the root.
SHARED = {"data": ("data", "digits", "custom"), "weights": ("model", "backbone", "digits")}

# What changes no result: another machine may have it otherwise.
ELSEWHERE = {
    "machine": ("workers", "launcher", "trackers", "checkpoint_minutes", "check_images"),
    "data": ("root", "source"),
}


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
    return Trial(variant, seed, changes, root / TRIALS / f"{name[:100]}-{fingerprint.key(changes)}" / f"seed_{seed}")


def run_all(trials: Sequence[Trial], splits: Sequence[str], jobs: int, root: Path = Path()) -> None:
    """Train and detect wherever that has not been done under these parameters and with this code.

    Raises:
        InputError: a trial failed; its log is named. The others are finished first.
    """
    trials = list({each.folder: each for each in trials}.values())
    failed: list[str] = []

    def one(each: Trial) -> None:
        if not _run(each, splits, threads=max(1, (os.cpu_count() or 1) // jobs), root=root):
            failed.append(f"{each.folder / LOG}: {_last_line(each.folder / LOG)}")

    with ThreadPoolExecutor(jobs) as pool:
        list(tqdm(pool.map(one, trials), total=len(trials), unit="training", disable=None))
    if failed:
        raise InputError(f"{len(failed)} of {count(len(trials), 'training run')} failed: " + "; ".join(failed))


def lack(each: Trial, splits: Sequence[str], root: Path = Path()) -> str:
    """Why a trial has no detections that its parameters describe; "" where it has."""
    done = _done(each)
    if done:
        wanted = _made_of(_content(each, root), each.variant, splits)
        same = all(done[key] == wanted[key] for key in ("params", "splits"))
        return "" if same else "done with other parameters or splits"
    log = each.folder / LOG
    return f"not finished, its log ends: {_last_line(log)}" if log.is_file() else "not trained"


def is_older(each: Trial) -> bool:
    """Whether a finished trial was made with other training code than this."""
    return _done(each)["code"] != _code(YAML(typ="safe").load(each.folder / PARAMS), each.variant)


def _run(each: Trial, splits: Sequence[str], threads: int, root: Path) -> bool:
    each.folder.mkdir(parents=True, exist_ok=True)
    with files.alone(each.folder / LOCK, f"the training {each.folder}"):
        content = _content(each, root)
        YAML().dump(content, each.folder / PARAMS)
        if _done(each) == _made_of(content, each.variant, splits):
            return True
        (each.folder / DONE).unlink(missing_ok=True)
        share(each, root)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "GHM_STATE": str((root / runs.state_folder()).absolute()),  # with what the pipeline has trained
        }
        with (each.folder / LOG).open("a", encoding="utf-8") as log:
            command = [sys.executable, "-m", "ghm.study.trial", each.variant, *splits]
            ended = subprocess.run(command, cwd=each.folder, env=environment, stdout=log, stderr=log, check=False)
        if ended.returncode:
            return False
        files.write_json(each.folder / DONE, _made_of(content, each.variant, splits))
    return True


def share(each: Trial, root: Path) -> None:
    """Link to the data and the backbone of the root, where the trial changes nothing about them."""
    changed_sections = {key.partition(".")[0] for key in each.changes}
    for shared, sections in SHARED.items():
        place = each.folder / shared
        if not changed_sections & set(sections) and not place.exists():
            place.unlink(missing_ok=True)  # a link whose aim has moved
            place.symlink_to((root / shared).absolute())


def _done(each: Trial) -> dict[str, Any]:
    """What was written when the trial was finished; nothing where it was not."""
    path = each.folder / DONE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _content(each: Trial, root: Path) -> Any:
    """The parameters of the trial, with the comments of the root's."""
    content = applied(_params(root), each.changes)
    content["seeds"] = [each.seed]
    return content


def _made_of(content: Any, variant: str, splits: Sequence[str]) -> dict[str, Any]:
    """What a finished trial was made of: parameters, code, splits."""
    plain = json.loads(json.dumps(content))
    for section, names in ELSEWHERE.items():
        plain[section] = {name: value for name, value in plain[section].items() if name not in names}
    return {"params": fingerprint.key(plain), "code": _code(content, variant), "splits": [*splits]}


def _code(content: Any, variant: str) -> str:
    """Checksum of the code that the weights of a variant depend on."""
    given = params.parse(content)
    return fingerprint.key(fingerprint.code([given.loss(variant, "cls").type, given.loss(variant, "box").type]))


def _params(root: Path) -> Any:
    """The content of the root's `params.yaml`, with its comments."""
    return copy.deepcopy(_parsed((root / PARAMS).read_text(encoding="utf-8")))


@lru_cache(maxsize=1)
def _parsed(text: str) -> Any:
    return YAML().load(text)


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    return lines[-1] if lines else "it is empty"
