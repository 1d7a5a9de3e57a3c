"""Laws of GPUs: who has one has it alone, and one that PyTorch cannot use is never passed over in silence."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from ghm import devices
from ghm.devices import claim
from ghm.errors import InputError
from ghm.training import processes
from tests.gpus import AT_TORCH, DRIVER, GPUS, claimed_by, holder_of, kill, nvidia_smi


@pytest.fixture(autouse=True)
def _all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests hide those of the machine; these look at GPUs that only nvidia-smi knows."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


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
    monkeypatch.setenv("PATH", nvidia_smi(tmp_path))
    if allowed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert devices.visible() == seen


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of locks; what the test itself has claimed is free afterwards."""
    held: dict[Path, int] = {}
    monkeypatch.setattr(devices, "held", held)
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
    holders = [holder_of(tmp_path, GPUS, 1 + number % 2, then) for number in range(12)]
    errors = [holder.communicate(timeout=30)[1] for holder in holders]
    assert "Traceback" not in "".join(errors)
    assert [holder.returncode for holder in holders] == [-signal.SIGKILL] * 12


def test_who_waits_holds_nothing_and_goes_on_when_a_holder_dies(locks: Path):
    first = holder_of(locks, GPUS, 2)
    assert claimed_by(first) == GPUS[:2]
    second = holder_of(locks, GPUS, 2)
    assert second.stderr
    assert second.stderr.readline() == "2 of 3 GPUs are taken by other trainings: waiting\n"
    assert claim(GPUS, 1, locks, wait=False) == GPUS[2:]
    kill(first)
    assert claimed_by(second) == GPUS[:2]
    with pytest.raises(InputError, match="all 2 GPUs \\(GPU-aa, GPU-ab\\) are taken"):
        claim(GPUS[:2], 1, locks, wait=False)
    second.kill()
    assert "waiting" not in second.communicate()[1]


def test_a_claim_outlives_what_the_process_becomes(locks: Path):
    program = "print('become', flush=True); import time; time.sleep(30)"
    then = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("processes", {processes.__file__!r})
module = sys.modules["processes"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module._become([sys.executable, "-c", {program!r}])
"""
    holder = holder_of(locks, GPUS[:1], 1, then)
    assert holder.stdout
    assert claimed_by(holder) == GPUS[:1]
    assert holder.stdout.readline() == "become\n"
    with pytest.raises(InputError, match="taken by other trainings"):
        claim(GPUS[:1], 1, locks, wait=False)
    kill(holder)
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


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that shows three GPUs, which the PyTorch of a machine without GPUs cannot use."""
    monkeypatch.setenv("PATH", nvidia_smi(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(devices, "FOLDER", tmp_path / "locks")


@pytest.mark.parametrize("start", ["training", "torchrun", "torchrun's process", "detector"])
def test_gpus_that_pytorch_cannot_use_are_refused_and_not_passed_over(
    smi: None, locks: Path, monkeypatch: pytest.MonkeyPatch, start: str
):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(processes, "_end_with_parent", lambda: None)  # would bind the tests to their parent
    if start == "torchrun's process":
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    said = (
        rf"GPUs? (is|are) visible \(NVIDIA driver {DRIVER}\), and PyTorch {re.escape(torch.__version__)}, "
        rf"built for CUDA {torch.version.cuda}, cannot use (it|them) \(.*\): install driver \d+ or newer, "
        r"or a PyTorch for an older CUDA \(pip install torch==\S+ torchvision --index-url \S+/cu126, or cu128\), "
        "or set CUDA_VISIBLE_DEVICES= to use the CPU$"
    )
    with pytest.raises(InputError, match=said):
        if start == "detector":
            devices.choose()
        else:
            with processes.join("none" if start == "training" else "pytorch", [sys.executable, "-m", "a"]):
                pass


def test_a_pytorch_without_cuda_is_refused_where_gpus_are_visible(smi: None, monkeypatch: pytest.MonkeyPatch):
    def init() -> None:
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr("torch.cuda.init", init)
    monkeypatch.setattr("torch.version.cuda", None)
    with pytest.raises(InputError, match="built without CUDA, cannot use them .*: install a PyTorch with CUDA"):
        devices.choose()


def test_hidden_gpus_mean_the_cpu(smi: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.choose() == torch.device("cpu")
    with processes.join("none", []):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_a_driver_that_fails_is_not_passed_over_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'; exit 18\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.visible() == []
    assert "nvidia-smi fails, so its GPUs are not used: Failed to initialize NVML: Driver/library" in caplog.text


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (["sm_75", "sm_80"], (7, 0), False),  # V100
        (["sm_75", "sm_80"], (7, 5), True),
        (["sm_75", "sm_80"], (8, 9), True),
        (["sm_75", "sm_80"], (9, 0), False),
        (["sm_75", "compute_80"], (9, 0), True),
        (["compute_80"], (7, 5), False),
        (["sm_90a"], (9, 0), True),
        (["sm_100a"], (10, 3), False),
        (["sm_100", "sm_120"], (12, 1), True),
        (["sm_100", "sm_120"], (11, 0), False),
        (["gfx90a", "gfx942"], (9, 4), True),
        ([], (7, 0), True),
    ],
)
def test_code_runs_on_a_gpu_as_nvidia_says(architectures: list[str], capability: tuple[int, int], runs: bool):
    assert devices.runs_on(architectures, capability) is runs


@dataclass
class Shown:
    """What CUDA says of a GPU."""

    uuid: str


@pytest.fixture
def cuda(smi: None, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A CUDA that starts, and has GPU-aa alone: compute capability 9.0, and code for it."""
    answers = {
        "init": lambda: None,
        "current_device": lambda: 0,
        "set_device": lambda _number: None,
        "get_device_properties": lambda _number: Shown("aa"),
        "get_device_name": lambda _number: "Some GPU",
        "get_device_capability": lambda _number: (9, 0),
        "get_arch_list": lambda: ["sm_75", "sm_90"],
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    return monkeypatch


@pytest.mark.parametrize(
    ("capability", "remedy"),
    [((7, 0), r"install a PyTorch for older ones \(.*/cu126\)"), ((12, 0), "install a newer PyTorch")],
)
def test_a_gpu_without_code_for_it_is_refused_with_what_to_install(
    cuda: pytest.MonkeyPatch, locks: Path, capability: tuple[int, int], remedy: str
):
    cuda.setattr(os, "environ", os.environ.copy())
    assert devices.choose() == devices.use("GPU-aa", 0) == torch.device("cuda", 0)
    cuda.setattr(torch.cuda, "get_device_capability", lambda _number: capability)
    has = f"GPU 0 \\(Some GPU\\) has compute capability {capability[0]}.0, and PyTorch .* is built for sm_75, sm_90: "
    with pytest.raises(InputError, match=has + remedy):
        devices.choose()
    with pytest.raises(InputError, match=has + remedy), processes.join("none", []):
        pass


def test_a_gpu_that_is_not_the_one_claimed_is_refused(cuda: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="CUDA shows GPU-aa where GPU-b was claimed: set CUDA_DEVICE_ORDER="):
        devices.use("GPU-b", 0)


def test_a_process_that_takes_all_gpus_leaves_their_names_alone(cuda: pytest.MonkeyPatch, locks: Path):
    cuda.setattr(os, "environ", os.environ.copy())
    os.environ["CUDA_VISIBLE_DEVICES"] = "0"  # in MIG mode a UUID would name another thing
    with processes.join("none", []):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    os.environ["CUDA_VISIBLE_DEVICES"] = "0,1"
    with processes.join("none", []):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-aa"


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_gpus_are_numbered_as_nvidia_smi_does_before_anything_can_start_cuda(stage: str):
    said = 'os.environ.get("CUDA_DEVICE_ORDER"), os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK")'
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AT_TORCH.format(said=said, module=f"stages.{stage}")],
        cwd=Path(__file__).parents[1],
        env={name: value for name, value in os.environ.items() if not name.startswith(("CUDA_", "PYTORCH_"))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "PCI_BUS_ID 1\n"
