"""`python -m ghm.repro [JOBS]`: `dvc repro`, with the training runs of several variants side by side.

DVC runs the stages of one call in turn, but several calls may run at a time: one per variant whose training or
evaluation has changed. What they need comes before, what needs them after. `make repro JOBS=2` calls this.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from ghm import params, side_by_side
from ghm.cli import TIMES, run
from ghm.errors import InputError
from ghm.side_by_side import Programs
from ghm.words import count

BEFORE = ("data", "inspect", "backbone")  # stages that come before all training runs
DVC = (sys.executable, "-m", "dvc")
PROGRESS = re.compile(r", step \d+/\d+, ")  # in a line that the next of its kind makes old


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ghm.repro", description=__doc__)
    parser.add_argument("jobs", nargs="?", help="training runs at a time; default: what GPUs, cores and memory allow")
    named = parser.parse_args().jobs
    if named is not None and not (named.isdecimal() and int(named)):
        raise InputError(f"JOBS must be a whole number, 1 or more, got {named!r}")
    parameters = params.load()
    jobs = min(int(named or side_by_side.at_once(parameters)), len(parameters.variants))
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ghm-repro-") as folder, Programs() as programs:
        os.environ[TIMES] = str(Path(folder) / "times")
        if jobs > 1:
            jobs = _ahead(programs, list(parameters.variants), jobs)
        if jobs:
            _dvc(programs, "repro")
        print(_table(Path(os.environ[TIMES]), jobs, time.monotonic() - start), flush=True)


def _ahead(programs: Programs, variants: Sequence[str], jobs: int) -> int:
    """Run what training needs, then the variants that have changed, `jobs` at a time.

    Returns:
        How many at a time that were; 0: nothing has changed, and nothing is left to do.
    """
    _dvc(programs, "repro", *BEFORE)
    said = subprocess.run([*DVC, "status", "--json", "dvc.yaml"], stdout=subprocess.PIPE, check=False)
    if programs.stopped or said.returncode:
        raise InputError("`dvc status` failed, see above")
    changed = {stage for stage, reasons in json.loads(said.stdout).items() if reasons != ["always changed"]}
    wanted = [variant for variant in variants if {f"train@{variant}", f"evaluate@{variant}"} & changed]
    jobs = min(jobs, len(wanted))
    if jobs > 1:
        _side_by_side(programs, wanted, jobs)
    return max(jobs, 1) if changed else 0


def _dvc(programs: Programs, *words: str) -> None:
    if code := programs.run([*DVC, *words]):
        raise SystemExit(code)


def _side_by_side(programs: Programs, variants: Sequence[str], jobs: int) -> None:
    """Train and evaluate variants. One that fails ends the others, which keep what they have done.

    Raises:
        InputError: variants failed.
    """
    environment = {**side_by_side.environment(jobs), side_by_side.AT_ONCE: str(jobs)}
    failed: list[str] = []

    def one(variant: str) -> None:
        # Another call of DVC locks the repository for moments only: while it starts, and while it takes in a result.
        command = [*DVC, "--wait-for-lock", "repro", "--single-item", f"train@{variant}", f"evaluate@{variant}"]
        with _Voice(variant) as voice:
            code = programs.run(command, voice.hear, env=environment)
        if code and not programs.stopped:
            failed.append(f"{variant} failed: {'; '.join(voice.last)}")
            programs.stop()

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, variants))
    if failed:
        raise InputError(f"{'; '.join(failed)}. What the others have done is kept: the same command goes on from there")


class _Voice:
    """What a program says: line after line with its name, but progress, on a terminal, in a line that is redrawn."""

    def __init__(self, name: str) -> None:
        self.name, self.last = name, deque[str](maxlen=2)

    def __enter__(self) -> "_Voice":
        self._bar = tqdm(
            desc=f"{self.name}: starts", bar_format="{desc}", leave=False, dynamic_ncols=True, disable=None
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def hear(self, line: str) -> None:
        if not line:
            return
        self.last.append(line)
        if PROGRESS.search(line) and not self._bar.disable:
            self._bar.set_description_str(line)
        else:
            tqdm.write(f"{self.name} | {line}")


def _table(times: Path, jobs: int, seconds: float) -> str:
    """How long each stage took that ran, and all together."""
    lines = times.read_text(encoding="utf-8").splitlines() if times.exists() else []
    rows: dict[str, float] = {}
    for stage, taken in map(str.split, lines):
        rows[stage] = rows.get(stage, 0.0) + float(taken)  # `data` runs twice
    rows["all" + f", with {count(jobs, 'training run')} at a time" * (jobs > 1)] = seconds
    return "\n".join(f"{tqdm.format_interval(taken):>8}  {stage}" for stage, taken in rows.items())


if __name__ == "__main__":
    run(main)
