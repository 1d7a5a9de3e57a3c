"""Laws of GPUs: each is known by one name, nobody shares one, and none is passed over in silence."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ghm import devices
from ghm.devices import claim
from ghm.errors import InputError
from ghm.training import processes
from tests.gpus import DRIVER, GPUS, ROOT, claimed_by, holder_of, kill, nvidia_smi


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests hide the GPUs of the machine; these look at three that only nvidia-smi knows."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", nvidia_smi(tmp_path))


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of locks; what the test itself claims is free afterwards."""
    monkeypatch.setattr(devices, "held", {})
    monkeypatch.setattr(claim, "__kwdefaults__", {"folder": tmp_path, "wait": True})
    return tmp_path


@pytest.mark.parametrize(
    ("allowed", "seen"),
    [
        (None, GPUS),
        ("", []),
        ("2, 0", ["GPU-b", "GPU-aa"]),
        ("GPU-b,GPU-ab", ["GPU-b", "GPU-ab"]),
        ("1,GPU-a,2", ["GPU-ab"]),
        ("MIG-1", ["MIG-1"]),
    ],
)
def test_visible_gpus_have_names_that_all_processes_share(
    monkeypatch: pytest.MonkeyPatch, allowed: str | None, seen: list[str]
):
    if allowed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert devices.visible() == seen


def test_a_driver_that_fails_is_not_passed_over_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'; exit 18\n")
    assert devices.visible() == []
    assert "nvidia-smi fails, so its GPUs are not used: Failed to initialize NVML: Driver/library" in caplog.text


def test_no_two_processes_share_a_gpu_even_when_holders_are_killed(locks: Path):
    # Each makes a file when it has its GPUs, and dies of SIGKILL with them; nobody else may do so in between.
    then = """
for name in claimed:
    mark = Path(sys.argv[3]) / f"{name}.used"
    os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
time.sleep(0.05)
for name in claimed:
    (Path(sys.argv[3]) / f"{name}.used").unlink()
os.kill(os.getpid(), 9)
"""
    holders = [holder_of(locks, GPUS, 1 + number % 2, then) for number in range(12)]
    errors = [holder.communicate(timeout=30)[1] for holder in holders]
    assert "Traceback" not in "".join(errors)
    assert [holder.returncode for holder in holders] == [-signal.SIGKILL] * 12


def test_who_waits_holds_nothing_and_goes_on_when_a_holder_dies(locks: Path):
    first = holder_of(locks, GPUS, 2)
    assert claimed_by(first) == GPUS[:2]
    second = holder_of(locks, GPUS, 2)
    assert second.stderr
    assert second.stderr.readline() == f"2 of 3 GPUs ({', '.join(GPUS)}) are taken by other runs: waiting\n"
    assert claim(GPUS, 1, wait=False) == GPUS[2:]
    kill(first)
    assert claimed_by(second) == GPUS[:2]
    with pytest.raises(InputError, match="2 of 2 GPUs \\(GPU-aa, GPU-ab\\) are taken"):
        claim(GPUS[:2], 1, wait=False)
    second.kill()
    assert "waiting" not in second.communicate()[1]


def test_a_claim_outlives_what_the_process_becomes_and_is_not_inherited(locks: Path):
    become = """
import subprocess, time
subprocess.Popen(["sleep", "5"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("become", flush=True)
time.sleep(30)
"""
    then = f"os.execve(sys.executable, [sys.executable, '-c', {become!r}], os.environ)"
    holder = holder_of(locks, GPUS[:1], 1, then)
    assert holder.stdout
    assert claimed_by(holder) == GPUS[:1]
    assert holder.stdout.readline() == "become\n"
    with pytest.raises(InputError, match="taken by other runs"):
        claim(GPUS[:1], 1, wait=False)
    kill(holder)
    assert claim(GPUS[:1], 1, wait=False) == GPUS[:1]  # though its child goes on


def test_a_process_keeps_what_it_has_and_claims_it_again():
    assert claim(GPUS, 1) == claim(GPUS[::-1], 1) == GPUS[:1]
    assert claim(GPUS, 3) == GPUS
    with pytest.raises(InputError, match="4 processes need a GPU each, and 3 are visible"):
        claim(GPUS, 4)


def test_locks_are_open_to_all_users_and_said_to_be_where_they_are_not(locks: Path):
    claim(GPUS, 1)
    assert {oct(path.stat().st_mode)[-3:] for path in locks.glob("*.lock")} == {"666"}
    (locks / "ghm-GPU-ab.lock").mkdir()
    with pytest.raises(InputError, match="the lock .*ghm-GPU-ab.lock of a GPU cannot be used .*: make it readable and"):
        claim(GPUS, 2)


@pytest.mark.parametrize("start", ["one process", "torchrun", "torchrun's process", "detector"])
def test_gpus_that_pytorch_cannot_use_are_refused_and_not_passed_over(monkeypatch: pytest.MonkeyPatch, start: str):
    monkeypatch.setattr(processes, "_end_with_parent", lambda: None)  # would bind the tests to their parent
    if start == "torchrun's process":
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    said = (
        rf"PyTorch {re.escape(torch.__version__)}, built for CUDA {torch.version.cuda} .*, cannot use the visible GPUs "
        rf"with NVIDIA driver {DRIVER} \(.*\): .* docs/training\.md#gpus .* CUDA_VISIBLE_DEVICES= to use the CPU"
    )
    with pytest.raises(InputError, match=said):
        if start == "detector":
            devices.choose()
        else:
            with processes.join("none" if start == "one process" else "pytorch", [sys.executable, "-m", "a"]):
                pass


def test_hidden_gpus_mean_the_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.choose() == torch.device("cpu")
    with processes.join("none", []):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_a_process_that_takes_all_gpus_leaves_their_names_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(devices, "use", lambda: None)
    os.environ["CUDA_VISIBLE_DEVICES"] = "0"  # in MIG mode a UUID would name another thing
    with processes.join("none", []):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    os.environ["CUDA_VISIBLE_DEVICES"] = "0,1"
    with processes.join("none", []):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-aa"


def test_gpus_are_numbered_as_nvidia_smi_does_before_torch_can_start_cuda():
    names = "CUDA_DEVICE_ORDER", "PYTORCH_NVML_BASED_CUDA_CHECK"
    code = f"import os, sys, stages; print(*map(os.environ.get, {names}), 'torch' in sys.modules)"
    outer = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=outer, capture_output=True, text=True, check=True)
    assert done.stdout == "PCI_BUS_ID 1 False\n"
