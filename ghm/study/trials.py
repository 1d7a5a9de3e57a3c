"""Training runs of a study, each in a folder of its own under `.trials/`, as many at once as the machine has room for.

A trial trains as the pipeline does: the run stays in `.state` under its fingerprint, where the next trial, study or
stage that asks for it finds it.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from tqdm import tqdm

from ghm import files, fingerprint, runs, sections
from ghm.errors import InputError
from ghm.side_by_side import Programs, environment
from ghm.study.definition import PARAMS, Cell, applied
from ghm.words import count

TRIALS = Path(".trials")
LOG = "log.txt"
# Sections of params.yaml that shape a result beside the variant and its losses.
SECTIONS = ("data", "digits", "custom", "model", "backbone", "train", "evaluate")
ELSEWHERE = ("root", "source")  # keys of `data` that say only where they are, unless the data are one's own
WEIGHTS = ("backbone", "base_channels", "pretrained", "pretrained_sha256", "load_from")  # keys of `model`
# What shapes the data and the pretrained backbone: a trial that changes none of it shares those of the root.
SHARED: dict[str, Callable[[Mapping[str, Any]], object]] = {
    "data": itemgetter("data", "digits", "custom"),
    "weights": lambda content: (*itemgetter("backbone", "digits")(content), *itemgetter(*WEIGHTS)(content["model"])),
}


@dataclass(frozen=True)
class Trial:
    """One training run and what it detects on each split."""

    variant: str
    seed: int
    folder: Path
    content: dict[str, Any] = field(compare=False)  # of its params.yaml

    def detections(self, split: str) -> Path:
        return runs.detections_folder(self.variant, self.seed, self.folder / split)

    def why_missing(self, splits: Iterable[str]) -> str:
        """Why there are no detections; "" where there are."""
        if all((self.detections(split) / runs.RESAMPLED).is_file() for split in splits):
            return ""
        log = self.folder / LOG
        return f"not finished, its log ends: {_last_line(log)}" if log.is_file() else "not trained"


def trials(cell: Cell, seeds: Iterable[int], content: Mapping[str, Any]) -> list[Trial]:
    """The trials of a cell, one per seed. Equal ones have one folder, whatever study they are of.

    Args:
        content: of `params.yaml`.
    """
    changed = applied(content, cell.changes)
    variant = changed["variants"][cell.variant]
    shaping = {name: changed[name] for name in (*SECTIONS, variant["cls"], variant["box"])}
    if changed["data"]["name"] != "custom":
        shaping["data"] = {name: value for name, value in changed["data"].items() if name not in ELSEWHERE}
    folder = TRIALS / f"{cell.variant}-{fingerprint.key({**shaping, 'variant': variant})}"
    here = placed(changed)
    return [Trial(cell.variant, seed, folder / f"seed_{seed}", {**here, "seeds": [seed]}) for seed in seeds]


def placed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with `data.root` as an absolute path of this machine, since trials run in folders of their own.

    It may begin with ~, have environment variables in it, and be relative to the repository's root.
    """
    root = content["data"]["root"]
    there = root and str(Path(os.path.expandvars(root)).expanduser().absolute())
    return {**content, "data": {**content["data"], "root": there}}


def require_data(wanted: Iterable[Trial]) -> None:
    """Require the folder of each data set, before anything is trained.

    Raises:
        InputError: one is not there.
    """
    for root in dict.fromkeys(trial.content["data"]["root"] for trial in wanted):
        if root and not Path(root).is_dir():
            unset = re.search(r"\$\{?(\w+)", root)
            do = f"set the environment variable {unset[1]}" if unset else "put the data set there"
            raise InputError(f"data.root must be a folder, got {root}: {do}; the study's file says where to get it")


def run_all(wanted: Iterable[Trial], splits: Sequence[str], jobs: int) -> None:
    """Train what has not been trained, and detect on `splits`.

    Raises:
        InputError: trials failed; their logs are named. The others are finished first.
    """
    distinct = list(dict.fromkeys(wanted))
    with Programs() as programs, ThreadPoolExecutor(jobs) as pool:
        succeeded = pool.map(lambda trial: _run(trial, splits, programs, environment(jobs)), distinct)
        bar = tqdm(succeeded, total=len(distinct), unit="training run", disable=None)
        failed = [trial.folder / LOG for trial, success in zip(distinct, bar, strict=True) if not success]
    if failed:
        logs = "; ".join(f"{log}: {_last_line(log)}" for log in failed)
        raise InputError(f"{len(failed)} of {count(len(distinct), 'training run')} failed: {logs}")


def _run(trial: Trial, splits: Sequence[str], programs: Programs, environment: Mapping[str, str]) -> bool:
    trial.folder.mkdir(parents=True, exist_ok=True)
    with files.locked(trial.folder / ".lock", f"the training run {trial.folder}"):
        YAML(typ="safe").dump(trial.content, trial.folder / PARAMS)
        root = placed(sections.read(PARAMS))
        for shared, shaping in SHARED.items():
            link = trial.folder / shared
            if shaping(trial.content) == shaping(root) and not link.exists():
                link.unlink(missing_ok=True)  # its target has moved
                link.symlink_to(Path(shared).absolute())
        packages = [str(Path(__file__).parents[2]), *filter(None, [environment.get("PYTHONPATH")])]
        where = {"PYTHONPATH": os.pathsep.join(packages), "GHM_STATE": str(runs.state_folder().absolute())}
        command = [sys.executable, "-m", "ghm.study.trial", trial.variant, *splits]
        with (trial.folder / LOG).open("a", encoding="utf-8") as log:
            hear = partial(print, file=log, flush=True)
            return programs.run(command, hear, cwd=trial.folder, env={**environment, **where}) == 0


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    return lines[-1] if lines else "it is empty"
