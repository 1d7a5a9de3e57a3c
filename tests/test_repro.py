"""Laws of `python -m ghm.repro`: variants train side by side, DVC's lock stays whole, and all end together."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from ghm import params, side_by_side
from tests.conftest import changed
from tests.gpus import GPUS, nvidia_smi, until

ROOT = Path(__file__).parents[1]
VARIANTS = ("fl_sl1", "ghmc_sl1", "ghmc_ghmr", "ghmc_smooth")
LARGE = {"train.batch_size": 16, "train.image_scale": [1333, 800], "model.base_channels": 64}
# The stages of the real pipeline by their names; each notes when it began and ended, and how many threads it has.
STAGES = """
vars: [params.yaml]
stages:
  data: {cmd: python stage.py data, always_changed: true, deps: [stage.py]}
  inspect: {cmd: python stage.py inspect, deps: [stage.py]}
  backbone: {cmd: python stage.py weights, outs: [weights]}
  train:
    foreach: ${variants}
    do: {cmd: "python stage.py runs/${key}", deps: [weights], params: ["variants.${key}"], outs: ["runs/${key}"]}
  evaluate:
    foreach: ${variants}
    do: {cmd: "python stage.py detections/${key}", deps: ["runs/${key}"], outs: ["detections/${key}"]}
  report: {cmd: python stage.py built, deps: [runs, detections], outs: [built]}
"""
STAGE = """
import os, signal, sys, time
from pathlib import Path
from ghm.cli import run

def main():
    out = Path(sys.argv[1])
    signal.signal(signal.SIGINT, lambda *_: (print(f"{out.name}: saved", flush=True), sys.exit(130)))
    with open("began", "a") as file:
        file.write(f"{out} {os.getpid()} {os.environ.get('OMP_NUM_THREADS')}\\n")
    if out.name == os.environ.get("FAILS"):
        while Path("began").read_text().count("runs/") < 4:
            time.sleep(0.05)
        sys.exit("error: the loss is not finite")
    for step in range(3):
        print(f"{out.name}: epoch 1/1, step {step + 1}/3, loss 1", flush=True)
        time.sleep(float(os.environ["SECONDS"]) / 3 if out.parent.name == "runs" else 0)
    out.mkdir(parents=True, exist_ok=True)
    (out / "is").write_text(f"{out} {os.environ['DVC_STAGE']}")
    with open("ended", "a") as file:
        file.write(f"{out}\\n")

run(main)
"""


class Pipeline:
    """A folder with small stages."""

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.copy(ROOT / "params.yaml", root)
        (root / "dvc.yaml").write_text(STAGES)
        (root / "stage.py").write_text(STAGE)
        self.dvc("init", "--no-scm", "--quiet")

    def start(self, *words: str, seconds: float = 0.3, **environment: str) -> subprocess.Popen[str]:
        """`python -m ghm.repro WORDS`, in a group of its own as a shell would start it."""
        clean = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        where = {**clean, "PYTHONPATH": str(ROOT), "PATH": path, "SECONDS": str(seconds), **environment}
        for name in ("began", "ended"):
            (self.root / name).write_text("")
        return subprocess.Popen(
            [sys.executable, "-m", "ghm.repro", *words], cwd=self.root, env=where, process_group=0,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def said(self, *words: str, code: int = 0, seconds: float = 0.3, **environment: str) -> str:
        program = self.start(*words, seconds=seconds, **environment)
        said = program.communicate(timeout=100)[0]
        assert program.returncode == code, said
        return said

    def dvc(self, *words: str) -> str:
        command = [sys.executable, "-m", "dvc", *words]
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=True).stdout

    def lines(self, name: str) -> list[list[str]]:
        return [line.split() for line in (self.root / name).read_text().splitlines()]

    def change(self) -> None:
        path = self.root / "params.yaml"
        path.write_text(path.read_text().replace("cls: ghmc, box: smooth_l1}", "cls: ohem, box: smooth_l1}"))
        path.write_text(path.read_text().replace("box: ghmr}", "box: smooth_l1}"))


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    made = Pipeline(tmp_path)
    yield made
    began = made.lines("began") if (tmp_path / "began").exists() else []
    assert not [line for line in began if Path("/proc", line[1]).exists()]  # no orphan, whatever happened


def test_variants_run_side_by_side_and_the_lock_is_the_one_that_they_leave_in_turn(pipeline: Pipeline, tmp_path: Path):
    said = pipeline.said("4", seconds=1.5)
    order = [name for name, *_ in pipeline.lines("began")]
    ended = [name for (name,) in pipeline.lines("ended")]
    assert {*order[:3]} == {"data", "inspect", "weights"} and order[-2:] == ["data", "built"]
    trained = {f"runs/{variant}" for variant in VARIANTS}
    assert len(trained & {*order[: 1 + order.index(next(name for name in order if name.startswith("det")))]}) >= 2
    assert trained < {*ended} and f"train@{VARIANTS[0]}" in said
    assert pipeline.dvc("status") == "data:\n\talways changed\n"
    lock = YAML(typ="safe").load(pipeline.root / "dvc.lock")
    (tmp_path / "turn").mkdir()
    turn = Pipeline(tmp_path / "turn")
    turn.said("1")
    assert YAML(typ="safe").load(turn.root / "dvc.lock") == lock
    # What did not change does not run, and of what changed nothing else.
    assert "all, with" not in pipeline.said("4") and [name for name, *_ in pipeline.lines("began")] == ["data"]
    pipeline.change()
    pipeline.said()
    again = [name for name, *_ in pipeline.lines("began") if name.startswith("runs")]
    assert sorted(again) == ["runs/ghmc_ghmr", "runs/ghmc_sl1"]


def test_one_that_fails_ends_the_others_which_save_and_is_named_last(pipeline: Pipeline):
    said = pipeline.said("4", code=1, seconds=60, FAILS="ghmc_sl1")
    last = said.splitlines()[-1]
    assert last.startswith("error: ghmc_sl1 failed: error: the loss is not finite; ERROR: failed to reproduce")
    saved = {line.partition(" ")[0] for line in said.splitlines() if line.endswith(": saved")}
    assert saved == {*VARIANTS} - {"ghmc_sl1"} and "built" not in said
    assert "Unable to acquire" not in pipeline.said("2")  # all locks of DVC are free
    assert pipeline.dvc("status") == "data:\n\talways changed\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("jobs", ["1", "4"])
def test_a_signal_ends_all_and_leaves_no_orphan(pipeline: Pipeline, number: int, jobs: str):
    program = pipeline.start(jobs, seconds=60)
    until(lambda: sum(name.startswith("runs") for name, *_ in pipeline.lines("began")) == int(jobs))
    time.sleep(0.2)
    if number == signal.SIGINT:
        os.killpg(program.pid, number)  # as Ctrl+C does
    else:
        program.send_signal(number)
    said = program.communicate(timeout=20)[0]
    assert program.returncode == 128 + number
    assert said.count(": saved\n") == int(jobs)
    assert not pipeline.lines("ended")[3:]


def test_each_training_has_its_share_of_the_cores(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch):
    pipeline.said("2")
    threads = {name: threads for name, _, threads in pipeline.lines("began")}
    assert threads["runs/fl_sl1"] == str(max(1, side_by_side.cores() // 2)) and threads["built"] == "None"
    monkeypatch.setattr(side_by_side, "cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert side_by_side.environment(4)["OMP_NUM_THREADS"] == "4"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert side_by_side.environment(4)["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("cores", "gigabytes", "gpus", "values", "jobs"),
    [
        (2, 16, False, {}, 2),
        (1, 16, False, {}, 1),
        (8, 3, False, {}, 2),  # of the default
        (64, 64, False, LARGE, 2),
        (8, 16, False, 4, 2),
        (64, 64, True, LARGE, 3),
        (64, 64, True, {"machine.launcher": "pytorch"}, 1),
    ],
)
def test_as_many_train_at_once_as_gpus_or_else_cores_and_memory_allow(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    gigabytes: float,
    gpus: bool,
    values: dict | int,
    jobs: int,
):
    if gpus:
        monkeypatch.setenv("PATH", nvidia_smi(tmp_path))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        assert len(GPUS) == 3
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if isinstance(values, int):
        monkeypatch.setenv("OMP_NUM_THREADS", str(values))
        values = {}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores))
    (tmp_path / "memory.max").write_text(f"{gigabytes * 1e9:.0f}\n")
    monkeypatch.setattr(side_by_side, "CGROUP", tmp_path)
    monkeypatch.setattr(side_by_side, "MEMINFO", tmp_path / "none")
    content = changed(YAML(typ="safe").load(ROOT / "params.yaml"), values)
    assert side_by_side.at_once(params.parse(content)) == jobs
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert side_by_side.cores() == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert side_by_side.cores() == cores


@pytest.mark.parametrize("jobs", ["0", "two", "-1"])
def test_a_wrong_number_is_refused(pipeline: Pipeline, jobs: str):
    said = pipeline.said("--", jobs, code=1)
    assert said == f"error: JOBS must be a whole number, 1 or more, got '{jobs}'\n"
