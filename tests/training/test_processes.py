"""Laws of processes: all of a job agree, each has a GPU of its own, and none outlives the others."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ghm.errors import InputError
from ghm.training import processes
from ghm.training.processes import Processes
from tests.gpus import GPUS, claimed_by, holder_of, kill, nvidia_smi

ROOT = Path(__file__).parents[2]
JOB = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"}
FOREIGN = ("SLURM_", "GHM_", "TORCHELASTIC_")

# `talk`: say what was heard, into a file; `fail`: one process fails after that; `sleep`: all wait to be ended.
TASK = f"""
import importlib.util, json, os, sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from ghm import devices
from stages import run

# The module by itself: the rest of its package takes long to import.
spec = importlib.util.spec_from_file_location("processes", {processes.__file__!r})
processes = sys.modules["processes"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(processes)
# These GPUs have a name and nothing else: they are counted and claimed, and nothing runs on them.
devices.require_cuda = devices.use = lambda *_: None
"""
TASK += """
def main():
    launcher, what, folder = sys.argv[1:]
    command = [sys.executable, *sys.argv]
    with processes.join(launcher, command) as job:
        rank = job.rank
        found = {
            "process": [job.rank, job.world_size, job.local_rank, job.first],
            "sums": job.add([0.1 * 3**rank, 1e300]),
            "gathered": job.gather({"rank": rank}),
            "shared": job.share({"from": rank}),
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "ids": [os.getpid(), os.getppid()],
        }
        if found["gpus"]:
            try:
                devices.claim(devices.visible(), 1, wait=False)
            except devices.InputError as error:
                found["refused"] = str(error)
        early = time.time() if rank else None
        if rank == 0:
            time.sleep(0.3)
        job.wait()
        found["waited"] = early is None or time.time() - early > 0.1
        (Path(folder) / f"{rank}.part").write_text(json.dumps(found))
        (Path(folder) / f"{rank}.part").rename(Path(folder) / f"{rank}.json")
        job.wait()
        if what == "fail" and rank == 1:
            raise ValueError("its own words")
        if what == "sleep":
            time.sleep(60)
        if what == "fail":
            job.add([1.0])

run(main)
"""


@dataclass(frozen=True)
class Ended:
    """What is left of a job."""

    codes: list[int]
    stderr: str
    found: list[dict]


@pytest.fixture(autouse=True)
def _no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may run inside a job themselves."""
    for name in os.environ:
        if name in JOB or name.startswith(FOREIGN):
            monkeypatch.delenv(name)


def _environment(folder: Path, **changes: str) -> dict[str, str]:
    """Of a process that starts a job on a machine without GPUs, its temporary files in `folder`."""
    outer = {name: value for name, value in os.environ.items() if name not in JOB and not name.startswith(FOREIGN)}
    return {**outer, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(folder), **changes}


def _start(folder: Path, launcher: str, what: str, environment: dict[str, str]) -> subprocess.Popen:
    script = folder / "task.py"
    script.write_text(TASK)
    command = [sys.executable, str(script), launcher, what, str(folder)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def _end(folder: Path, started: list[subprocess.Popen]) -> Ended:
    errors = [each.communicate(timeout=60)[1] for each in started]
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return Ended([each.returncode for each in started], "".join(errors), found)


def _free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def _until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A job of two processes under torchrun on two of three GPUs, the first GPU taken; its second process fails."""
    folder = tmp_path_factory.mktemp("failed")
    holder = holder_of(folder / "ghm-gpus", GPUS[:1], 1)
    assert claimed_by(holder) == GPUS[:1]
    environment = _environment(folder, PATH=nvidia_smi(folder), GHM_PROCESSES="2")
    del environment["CUDA_VISIBLE_DEVICES"]
    ended = _end(folder, [_start(folder, "pytorch", "fail", environment)])
    kill(holder)
    return ended


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A job of two Slurm tasks."""
    folder = tmp_path_factory.mktemp("finished")
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}
    master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    tasks = [{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]
    return _end(
        folder, [_start(folder, "slurm", "talk", _environment(folder, **step, **master, **task)) for task in tasks]
    )


@pytest.mark.parametrize("job", ["failed", "finished"])
def test_all_processes_of_a_job_agree(job: str, request: pytest.FixtureRequest):
    first, second = request.getfixturevalue(job).found
    assert first["process"] == [0, 2, 0, True]
    assert second["process"] == [1, 2, 1, False]
    assert first["sums"] == second["sums"] == [0.1 + 0.1 * 3, 2e300]
    assert (first["gathered"], second["gathered"]) == ([{"rank": 0}, {"rank": 1}], [])
    assert first["shared"] == second["shared"] == {"from": 0}
    assert second["waited"]


def test_a_job_in_which_all_goes_well_ends_with_0(finished: Ended):
    assert finished.codes == [0, 0]
    assert "Traceback" not in finished.stderr


def test_a_failed_process_has_its_own_words_and_the_others_one_sentence(failed: Ended):
    assert failed.codes[0] != 0
    assert failed.stderr.count("ValueError: its own words") == 1
    assert failed.stderr.count("another process of this training ended, its own error says why") == 1
    torchrun = failed.stderr.index('Traceback (most recent call last):\n  File "<frozen runpy>')
    assert failed.stderr[:torchrun].count("Traceback") == 1
    assert re.search(r"Root Cause .*\n.*\n.*\n.*\n +rank +: 1 ", failed.stderr)


def test_a_launcher_holds_free_gpus_for_its_processes(failed: Ended):
    for process in failed.found:
        assert process["gpus"] == "GPU-ab,GPU-b"
        assert process["refused"].startswith("all 2 GPUs (GPU-ab, GPU-b) are taken by other trainings")


def test_processes_end_with_their_launcher(tmp_path: Path):
    launcher = _start(tmp_path, "pytorch", "sleep", _environment(tmp_path, GHM_TORCHRUN="--standalone"))
    _until((tmp_path / "0.json").exists)
    process, parent = json.loads((tmp_path / "0.json").read_text())["ids"]
    assert parent == launcher.pid
    assert _runs(process)
    launcher.kill()
    _until(lambda: not _runs(process), 5)
    kill(launcher)


def test_one_process_hears_itself():
    alone = Processes()
    alone.wait()
    assert (alone.first, alone.add([0.1]), alone.gather("a"), alone.share("a")) == (True, [0.1], ["a"], "a")


@pytest.mark.parametrize(
    ("launcher", "environment", "sentence"),
    [
        ("none", {"RANK": "1", "WORLD_SIZE": "2"}, "machine.launcher must be pytorch under torchrun, got 'none'"),
        (
            "none",
            {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"},
            "machine.launcher must be slurm in a job step of several tasks, got 'none'",
        ),
        ("slurm", {}, "outside Slurm"),
        ("slurm", {"SLURM_JOB_ID": "7", "PATH": ""}, "needs srun, which is not on the PATH"),
        (
            "slurm",  # the shell of salloc: what looks like a task is none
            {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "4294967290", "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "PATH": ""},
            "needs srun, which is not on the PATH",
        ),
        (
            "slurm",
            {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
            | {"SLURM_JOB_NODELIST": "a[1-2]", "PATH": ""},
            r"scontrol does not name the hosts of 'a\[1-2\]': set MASTER_ADDR",
        ),
        ("pytorch", {"GHM_PROCESSES": "0"}, "GHM_PROCESSES must be a whole number, 1 or more, got '0'"),
        ("pytorch", {"GHM_PROCESSES": "two"}, "GHM_PROCESSES must be a whole number, 1 or more, got 'two'"),
        ("pytorch", {"GHM_TORCHRUN": "--nproc_per_node -1"}, "--nproc-per-node in GHM_TORCHRUN must be a whole"),
        ("pytorch", {"GHM_TORCHRUN": "'"}, "GHM_TORCHRUN must be arguments as a shell reads them"),
        ("pytorch", {"RANK": "0"}, "WORLD_SIZE must be a whole number"),
    ],
)
def test_what_does_not_fit_is_refused(
    monkeypatch: pytest.MonkeyPatch, launcher: str, environment: dict[str, str], sentence: str
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(processes, "_end_with_parent", lambda: None)  # would bind the tests to their parent
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    # What is started in a copy of the environment does not stay in it.
    monkeypatch.setattr(os, "environ", os.environ.copy())
    with pytest.raises(InputError, match=sentence), processes.join(launcher, [sys.executable, "-m", "a"]):
        pass
