"""Kill a training again and again, and see whether it ends with the bits of one that was left alone.

    python -m benchmarks.faults --kills 25
    python -m benchmarks.faults --kills 4 --processes 2
    python -m benchmarks.faults --preset tiny --kills 8

Trains `ghmc_ghmr` of the default, with random flips, a moving average of the weights, two workers that load data and a
checkpoint every two seconds, so that all that a checkpoint must hold is there. SIGKILL comes at random moments, every
other one at the sight of a checkpoint that is being written. With `--processes` the training is one of torchrun on
gloo, without GPUs. Compared are model, tables, and the whole of the last checkpoint: optimiser, moving
average, buffers and random numbers of each process. One thread a process. Results go to
`benchmarks/results/faults.json`, but for presets.

On a GPU the bits differ from run to run, killed or not: some of PyTorch's operators add up in any order. There only
their number is printed, and what must hold is that each start went on from a checkpoint and the run ended.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML

from benchmarks.losses import processor
from ghm import devices, files
from ghm.runs import COLUMNS
from ghm.training import state

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "faults.json"
VARIANT = "ghmc_ghmr"
BEGUN = "learning rate "  # what a training says first
CHANGES = {"flip": 0.5, "ema_momentum": 0.002}
# Imports once, and gives each start a process that is ready: `import mmdet` takes longer than a small training. A
# process that is forked after CUDA has started cannot use it, so that importing must only ask NVML for GPUs.
NURSERY = """
import json, os, sys, traceback
import ghm.training.run
from stages import run, train
for line in sys.stdin:
    folder, *sys.argv = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(folder)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 0
        try:
            run(train.main)
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--preset", help="a preset for a quick run; its result is only printed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments to kill at")
    arguments = parser.parse_args()
    end_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="ghm-faults-") as folder:
        record = measured(Path(folder), arguments.kills, arguments.processes, arguments.preset, arguments.seed)
    on_gpu = bool(devices.visible()) and arguments.processes == 1
    if on_gpu:
        record["different"] = len(record["different"])
    print(json.dumps(record, indent=1))
    if not arguments.preset:
        before = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
        files.write_json(RESULT, {**before, f"processes_{arguments.processes}": record})
    went_on = record["went_on_from_a_checkpoint"] > 0 if on_gpu else not record["different"]
    sys.exit(record["kills"] == 0 or not went_on)


def end_on_sigterm() -> None:
    """Have SIGTERM end this process as an exception does: what it has started ends with it."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


def measured(place: Path, kills: int, processes: int, preset: str | None, seed: int) -> dict[str, Any]:
    """Train twice, once left alone and once killed, and compare."""
    prepare(place / "alone", preset, processes)
    shutil.copytree(place / "alone", place / "killed", symlinks=True)
    rng, found = random.Random(seed), {"kills": 0, "while_writing": 0}
    with Trainer(processes) as trainer:
        trainer.finish(place / "alone")
        record = json.loads(
            (place / "alone" / "runs" / VARIANT / "seed_0" / "context.json").read_text(encoding="utf-8")
        )
        seconds = record["seconds"]
        while found["kills"] < kills:
            # Spread over the training; a second more than that, for what a start measures first.
            moment = rng.uniform(0, 1 + 1.5 * seconds / kills)
            code = trainer.run(place / "killed", signal.SIGKILL, moment, at_write=found["kills"] % 2 == 1)
            if code == 0:
                break  # it was too quick for so many
            assert code == -signal.SIGKILL, (place / "killed" / "log.txt").read_text(encoding="utf-8")
            found["kills"] += 1
            found["while_writing"] += any((place / "killed").glob(".state/*/.step_*"))
        trainer.finish(place / "killed")
    log = (place / "killed" / "log.txt").read_text(encoding="utf-8")
    return {
        **found,
        "went_on_from_a_checkpoint": log.count("going on from"),
        "different": list(differences(place / "alone", place / "killed")),
        "steps": int(_newest(place / "alone").name.split("_")[1]),
        "seconds_undisturbed": seconds,
        "device": f"{record['device'] if devices.visible() and processes == 1 else processor()}, one thread a process",
        "torch": torch.__version__,
    }


def prepare(folder: Path, preset: str | None, processes: int, images: int | None = None) -> None:
    """A folder with parameters, data and backbone, as the stages before the training leave them.

    Args:
        images: to train on; None: as many as the parameters say.
    """
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "presets").symlink_to(ROOT / "presets")
    if preset:
        _run(folder, "ghm.presets", preset)
    yaml = YAML()
    content = yaml.load(folder / "params.yaml")
    content["train"].update(CHANGES)
    launcher = "pytorch" if processes > 1 else "none"
    content["machine"].update(workers=2, launcher=launcher, checkpoint_minutes=0.03)
    if preset:
        content["train"]["epochs"] = 4
        content["machine"]["checkpoint_minutes"] = 1e-6  # after each step
    if images:  # for a measurement of speed: how good the weights are does not matter
        content["digits"].update(train_images=images, val_images=40, test_images=40)
        content["backbone"].update(crops=1600, epochs=1)
    yaml.dump(content, folder / "params.yaml")
    _run(folder, "stages.data")
    _run(folder, "stages.backbone")


class Trainer:
    """Starts the training stage in a folder, as often as need be. What it says is in `log.txt` there."""

    def __init__(self, processes: int = 1, **environment: str) -> None:
        self.environment = {**_environment(), "GHM_PROCESSES": str(processes), **environment}
        self.nursery: subprocess.Popen[str] | None = None
        if processes > 1:
            self.environment["CUDA_VISIBLE_DEVICES"] = ""
        else:
            self.nursery = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", NURSERY],
                env={**self.environment, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *_: object) -> None:
        if self.nursery:
            self.nursery.communicate()

    def finish(self, folder: Path) -> None:
        """Let the stage run to its end, which must be a good one."""
        assert self.run(folder) == 0, (folder / "log.txt").read_text(encoding="utf-8")

    def run(
        self, folder: Path, number: int | None = None, after: float = 0.0, *, at_write: bool = False, group: bool = True
    ) -> int:
        """Start the stage and wait for its end.

        Args:
            number: of a signal to send; None to leave it alone.
            after: seconds from the beginning of the training to the signal.
            at_write: send it when after that a checkpoint is being written.
            group: send it to all processes, and not to the first alone.

        Returns:
            The exit code; the negative of a signal that ended it.
        """
        log = folder / "log.txt"
        log.touch()
        starts = log.read_text(encoding="utf-8").count(BEGUN)

        def begun() -> bool:
            return log.read_text(encoding="utf-8").count(BEGUN) > starts

        leader, ended, wait = self._start(folder, log)
        try:
            if number is not None:
                _signal(folder, leader, number, after, at_write, group, begun, ended)
            return wait()
        except BaseException:
            _kill(leader, signal.SIGKILL, group=True)
            raise

    def _start(self, folder: Path, log: Path) -> tuple[int, Callable[[], bool], Callable[[], int]]:
        """Start the stage: the id of its process, and how to see that it ended and with which code."""
        if self.nursery is None:
            with log.open("a", encoding="utf-8") as file:
                command = [sys.executable, "-m", "stages.train", VARIANT]
                process = subprocess.Popen(
                    command, cwd=folder, env=self.environment, stdout=file, stderr=file, start_new_session=True
                )
            return process.pid, lambda: process.poll() is not None, process.wait
        requests, answers = self.nursery.stdin, self.nursery.stdout
        assert requests
        assert answers
        requests.write(json.dumps([str(folder), "stages.train", VARIANT]) + "\n")
        requests.flush()
        child = int(answers.readline())
        return child, lambda: not Path(f"/proc/{child}").exists(), lambda: int(answers.readline())


def _signal(
    folder: Path,
    leader: int,
    number: int,
    after: float,
    at_write: bool,
    group: bool,
    begun: Callable[[], bool],
    ended: Callable[[], bool],
) -> None:
    while not ended() and not begun():
        time.sleep(0.01)
    moment = time.monotonic() + after
    while not ended() and time.monotonic() < moment:
        time.sleep(0.002)
    limit = time.monotonic() + 30
    while at_write and not ended() and time.monotonic() < limit and not any(folder.glob(".state/*/.step_*")):
        time.sleep(0.0005)
    _kill(leader, number, group=group)


def differences(alone: Path, killed: Path) -> Iterator[str]:
    """What is not the same to the bit in two finished trainings."""
    runs = [folder / "runs" / VARIANT / "seed_0" for folder in (alone, killed)]
    for name in ("model.pth", *COLUMNS):
        if len({(run / name).read_bytes() for run in runs}) > 1:
            yield name
    contents = [torch.load(_newest(folder), map_location="cpu", weights_only=True) for folder in (alone, killed)]
    for content in contents:
        del content["records"]["seconds"]
    yield from unequal(*contents, name="checkpoint")


def unequal(one: Any, other: Any, name: str) -> Iterator[str]:
    """Names of what differs in two nests of containers, tensors by their bits."""
    if type(one) is not type(other):
        yield name
    elif isinstance(one, torch.Tensor):
        same = one.shape == other.shape and one.dtype == other.dtype
        if not same or one.contiguous().numpy().tobytes() != other.contiguous().numpy().tobytes():
            yield name
    elif isinstance(one, dict):
        if one.keys() != other.keys():
            yield name
        for key in one.keys() & other.keys():
            yield from unequal(one[key], other[key], f"{name}.{key}")
    elif isinstance(one, list | tuple):
        if len(one) != len(other):
            yield name
        for number, pair in enumerate(zip(one, other, strict=False)):
            yield from unequal(*pair, name=f"{name}.{number}")
    elif one != other and (one == one or other == other):  # NaN is the same as NaN here
        yield name


def _newest(folder: Path) -> Path:
    (place,) = folder.glob(f".state/{VARIANT}-seed_0-*/")  # two: the code was edited meanwhile
    return state.by_age(place)[-1]


def _kill(leader: int, number: int, *, group: bool) -> None:
    """Signal a process, with `group` all that it has started: torchrun's processes have process groups of their own."""
    for process in [leader, *_descendants(leader)] if group else [leader]:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def _descendants(process: int) -> list[int]:
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="utf-8").split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [each for child in map(int, children) for each in (child, *_descendants(child))]


def _environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


def _run(folder: Path, module: str, *words: str) -> None:
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


if __name__ == "__main__":
    main()
