"""Laws of processes: who has a GPU has it alone, all of a job agree, and none outlives the others."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ghm.errors import InputError
from ghm.training import processes
from ghm.training.processes import Processes, claim

ROOT = Path(__file__).parents[2]
GPUS = ["GPU-aa", "GPU-ab", "GPU-b"]
JOB = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"}
FOREIGN = ("SLURM_", "GHM_", "TORCHELASTIC_")

# The module by itself: the rest of the package takes long to import.
LOAD = f"""
import importlib.util, json, os, sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
spec = importlib.util.spec_from_file_location("processes", {processes.__file__!r})
processes = sys.modules["processes"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(processes)
processes.POLL = 0.01
"""

HOLD = """
claimed = processes.claim(json.loads(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
print(json.dumps(claimed), flush=True)
"""

# `talk`: say what was heard, into a file; `fail`: one process fails after that; `sleep`: all wait to be ended.
TASK = """
from stages import run

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
                processes.claim(processes.visible(), 1, wait=False)
            except processes.InputError as error:
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


def _nvidia_smi(folder: Path) -> str:
    """A PATH on which nvidia-smi names GPUs, for a machine that has none."""
    program = folder / "nvidia-smi"
    program.write_text("#!/bin/sh\n" + "".join(f"echo {number}, {gpu}\n" for number, gpu in enumerate(GPUS)))
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def _start(folder: Path, launcher: str, what: str, environment: dict[str, str]) -> subprocess.Popen:
    script = folder / "task.py"
    script.write_text(LOAD + TASK)
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
    holder = _holder(folder / "ghm-gpus", GPUS[:1], 1)
    assert _claimed(holder) == GPUS[:1]
    environment = _environment(folder, PATH=_nvidia_smi(folder), GHM_PROCESSES="2")
    del environment["CUDA_VISIBLE_DEVICES"]
    ended = _end(folder, [_start(folder, "pytorch", "fail", environment)])
    _kill(holder)
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
    _kill(launcher)


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


@pytest.mark.parametrize(
    ("allowed", "seen"),
    [
        (None, GPUS),
        ("", []),
        ("2, 0", ["GPU-b", "GPU-aa"]),
        ("GPU-b,GPU-ab", ["GPU-b", "GPU-ab"]),
        ("1,GPU-a,2", ["GPU-ab"]),
        ("0,-1,1", ["GPU-aa"]),
        ("MIG-1", ["MIG-1"]),
    ],
)
def test_visible_gpus_have_names_that_all_processes_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str | None, seen: list[str]
):
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setenv("PATH", _nvidia_smi(tmp_path))
    if allowed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert processes.visible() == seen


def _holder(folder: Path, devices: list[str], count: int, then: str = "time.sleep(30)") -> subprocess.Popen:
    """A process that has claimed devices, or waits for them."""
    command = [sys.executable, "-c", LOAD + HOLD + then, json.dumps(devices), str(count), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _claimed(holder: subprocess.Popen) -> list[str]:
    assert holder.stdout
    return json.loads(holder.stdout.readline())


def _kill(*holders: subprocess.Popen) -> None:
    for holder in holders:
        holder.kill()
        holder.communicate()


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of locks; what the test itself has claimed is free afterwards."""
    held: dict[Path, int] = {}
    monkeypatch.setattr(processes, "_held", held)
    yield tmp_path / "locks"
    for file in held.values():
        os.close(file)


def test_no_two_processes_share_a_device_even_when_holders_are_killed(tmp_path: Path):
    # Each writes a line when it has its devices, and dies of SIGKILL with them; nobody else may write in between.
    then = """
for name in claimed:
    mark = Path(sys.argv[3]) / f"{name}.used"
    os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
time.sleep(0.05)
for name in claimed:
    (Path(sys.argv[3]) / f"{name}.used").unlink()
os.kill(os.getpid(), 9)
"""
    holders = [_holder(tmp_path, GPUS, 1 + number % 2, then) for number in range(12)]
    errors = [holder.communicate(timeout=30)[1] for holder in holders]
    assert "Traceback" not in "".join(errors)
    assert [holder.returncode for holder in holders] == [-signal.SIGKILL] * 12


def test_who_waits_holds_nothing_and_goes_on_when_a_holder_dies(locks: Path):
    first = _holder(locks, GPUS, 2)
    assert _claimed(first) == GPUS[:2]
    second = _holder(locks, GPUS, 2)
    assert second.stderr
    assert second.stderr.readline() == "2 of 3 GPUs are taken by other trainings: waiting\n"
    assert claim(GPUS, 1, locks, wait=False) == GPUS[2:]
    _kill(first)
    assert _claimed(second) == GPUS[:2]
    with pytest.raises(InputError, match="all 2 GPUs \\(GPU-aa, GPU-ab\\) are taken"):
        claim(GPUS[:2], 1, locks, wait=False)
    second.kill()
    assert "waiting" not in second.communicate()[1]


def test_a_claim_outlives_what_the_process_becomes(locks: Path):
    program = "print('become', flush=True); import time; time.sleep(30)"
    holder = _holder(locks, GPUS[:1], 1, f"processes._become([sys.executable, '-c', {program!r}])")
    assert holder.stdout
    assert _claimed(holder) == GPUS[:1]
    assert holder.stdout.readline() == "become\n"
    with pytest.raises(InputError, match="taken by other trainings"):
        claim(GPUS[:1], 1, locks, wait=False)
    _kill(holder)
    assert claim(GPUS[:1], 1, locks, wait=False) == GPUS[:1]


def test_a_process_keeps_what_it_has_and_claims_it_again(locks: Path):
    assert claim(GPUS, 1, locks) == GPUS[:1]
    assert claim(GPUS[::-1], 1, locks) == GPUS[:1]
    assert claim(GPUS, 3, locks) == GPUS


def test_more_gpus_than_there_are_is_refused(locks: Path):
    with pytest.raises(InputError, match="4 processes need a GPU each, and 3 are visible"):
        claim(GPUS, 4, locks)


def test_locks_are_open_to_all_users(locks: Path):
    claim(GPUS, 1, locks)
    assert oct(locks.stat().st_mode)[-4:] == "1777"
    assert {oct(path.stat().st_mode)[-3:] for path in locks.iterdir()} == {"666"}


def test_locks_out_of_reach_are_said_to_be(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="the locks of the GPUs in .* cannot be used"):
        claim(GPUS, 1, tmp_path / "file")
