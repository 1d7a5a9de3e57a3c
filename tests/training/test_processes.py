"""Laws of processes: all of a run agree, each has a GPU of its own, and none outlives the others."""

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from ghm.errors import InputError
from ghm.training import processes
from tests.gpus import GPUS, ROOT, claimed_by, holder_of, kill, nvidia_smi, until

JOB = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "MASTER_",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "GHM_",
    "TORCHELASTIC_",
)

# `talk`: say what was heard, into a file; `fail`: one process fails after that; `sleep`: all wait to be ended.
TASK = f"""
import json, os, sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from ghm import devices
from ghm.training import processes
from stages import run

# These GPUs have a name and nothing else: they are counted and claimed, and nothing runs on them.
devices.use = lambda *_: None

def main():
    launcher, what, folder = sys.argv[1:]
    with processes.join(launcher, [sys.executable, *sys.argv]) as job:
        rank = job.rank
        heard = {{
            "process": [job.rank, job.world_size, job.first],
            "sums": job.add([0.1 * 3**rank, 1e300]),
            "gathered": job.gather({{"rank": rank}}),
            "shared": job.share({{"from": rank}}),
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "ids": [os.getpid(), os.getppid()],
        }}
        if heard["gpus"]:
            try:
                devices.claim(devices.visible(), 1, wait=False)
            except devices.InputError as error:
                heard["refused"] = str(error)
        early = time.time() if rank else None
        if rank == 0:
            time.sleep(0.3)
        job.wait()
        heard["waited"] = early is None or time.time() - early > 0.1
        (Path(folder) / f"{{rank}}.part").write_text(json.dumps(heard))
        (Path(folder) / f"{{rank}}.part").rename(Path(folder) / f"{{rank}}.json")
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
    """What is left of a run."""

    codes: list[int]
    stderr: str
    heard: list[dict]


def _start(folder: Path, launcher: str, what: str, *torchrun: str, **changes: str) -> subprocess.Popen:
    """Start the task on a machine without GPUs, its temporary files in `folder`. The tests may run in a job, too."""
    (folder / "task.py").write_text(TASK)
    outer = {name: value for name, value in os.environ.items() if not name.startswith(JOB)}
    environment = {**outer, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(folder), **changes}
    command = [sys.executable, *torchrun, str(folder / "task.py"), launcher, what, str(folder)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def _end(folder: Path, started: list[subprocess.Popen]) -> Ended:
    errors = [process.communicate(timeout=100)[1] for process in started]
    heard = [json.loads(path.read_text()) for path in sorted(folder.glob("?.json"))]
    return Ended([process.returncode for process in started], "".join(errors), heard)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A run of two processes under torchrun on two of three GPUs, the first GPU taken; its second process fails."""
    folder = tmp_path_factory.mktemp("failed")
    holder = holder_of(folder, GPUS[:1], 1)
    assert claimed_by(holder) == GPUS[:1]
    gpus = {"PATH": nvidia_smi(folder), "CUDA_VISIBLE_DEVICES": "0,1,2"}
    ended = _end(folder, [_start(folder, "pytorch", "fail", GHM_PROCESSES="2", **gpus)])
    kill(holder)
    return ended


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A run of two machines, each with a torchrun of its own and one process."""
    folder = tmp_path_factory.mktemp("finished")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    rendezvous = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}"]
    torchrun = ["-m", "torch.distributed.run", *rendezvous, "--rdzv-id=7"]
    return _end(folder, [_start(folder, "none", "talk", *torchrun) for _ in range(2)])


@pytest.mark.parametrize("job", ["failed", "finished"])
def test_all_processes_of_a_run_agree(job: str, request: pytest.FixtureRequest):
    first, second = request.getfixturevalue(job).heard
    assert (first["process"], second["process"]) == ([0, 2, True], [1, 2, False])
    assert first["sums"] == second["sums"] == [0.1 + 0.1 * 3, 2e300]
    assert (first["gathered"], second["gathered"]) == ([{"rank": 0}, {"rank": 1}], [])
    assert first["shared"] == second["shared"] == {"from": 0}
    assert second["waited"]


def test_a_run_in_which_all_goes_well_ends_with_0(finished: Ended):
    assert finished.codes == [0, 0]
    assert "Traceback" not in finished.stderr


def test_a_failed_process_has_its_own_words_and_the_others_none(failed: Ended):
    assert failed.codes[0] != 0
    assert failed.stderr.count("ValueError: its own words") == 1
    torchrun = failed.stderr.index('Traceback (most recent call last):\n  File "<frozen runpy>')
    assert failed.stderr[:torchrun].count("Traceback") == 1
    assert re.search(r"Root Cause .*\n.*\n.*\n.*\n +rank +: 1 ", failed.stderr)


def test_a_launcher_holds_free_gpus_for_its_processes(failed: Ended):
    for process in failed.heard:
        assert process["gpus"] == "GPU-ab,GPU-b"
        assert process["refused"].startswith("2 of 2 GPUs (GPU-ab, GPU-b) are taken by other runs")


def test_processes_end_with_their_launcher(tmp_path: Path):
    launcher = _start(tmp_path, "pytorch", "sleep")
    until((tmp_path / "0.json").exists)
    process, parent = json.loads((tmp_path / "0.json").read_text())["ids"]
    assert parent == launcher.pid
    assert _runs(process)
    launcher.kill()
    until(lambda: not _runs(process), 5)
    kill(launcher)


@pytest.mark.parametrize("number", ["0", "two"])
def test_a_wrong_number_of_processes_is_refused(monkeypatch: pytest.MonkeyPatch, number: str):
    # What is started in a copy of the environment does not stay in it.
    outer = {name: value for name, value in os.environ.items() if not name.startswith(JOB)}
    monkeypatch.setattr(os, "environ", {**outer, "CUDA_VISIBLE_DEVICES": "", "GHM_PROCESSES": number})
    sentence = f"GHM_PROCESSES must be a whole number, 1 or more, got '{number}'"
    with pytest.raises(InputError, match=sentence), processes.join("pytorch", [sys.executable, "-m", "a"]):
        pass
