"""GPUs for a machine that has none: nvidia-smi names them, and nothing can run on them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
GPUS = ["GPU-aa", "GPU-ab", "GPU-b"]
DRIVER = "535.104.05"
HOLD = f"""
import json, os, sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from ghm import devices
devices.POLL = 0.01
claimed = devices.claim(json.loads(sys.argv[1]), int(sys.argv[2]), folder=Path(sys.argv[3]))
print(json.dumps(claimed), flush=True)
"""


def nvidia_smi(folder: Path) -> str:
    """A PATH whose nvidia-smi answers what the real one is asked."""
    rows = "\n".join(f"{index}, {gpu}, {DRIVER}" for index, gpu in enumerate(GPUS))
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{rows}'\n")
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def holder_of(folder: Path, gpus: list[str], count: int, then: str = "time.sleep(30)") -> subprocess.Popen:
    """A process that has claimed GPUs by the locks in `folder`, or waits for them."""
    command = [sys.executable, "-c", HOLD + then, json.dumps(gpus), str(count), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def claimed_by(holder: subprocess.Popen) -> list[str]:
    assert holder.stdout
    return json.loads(holder.stdout.readline())


def kill(*holders: subprocess.Popen) -> None:
    for holder in holders:
        holder.kill()
        holder.communicate()


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for it."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
