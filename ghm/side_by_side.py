"""Programs that run side by side: how many of them the machine has room for, and how all of them end."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from ghm import devices
from ghm.params import Params

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AT_ONCE = "GHM_AT_ONCE"  # how many training runs there are, which each takes into account when it says what is left
CGROUP, MEMINFO = Path("/sys/fs/cgroup"), Path("/proc/meminfo")  # the first of this container, where it has limits
# Bytes that a training run holds: libraries; and for each channel of the stem, of the weights and of a batch's pixel.
# Rounded up from peaks on a CPU: 0.9 GB for the default, 2.6 GB for ResNet-50 with 2 images of 512 x 512.
LIBRARIES, WEIGHTS, PIXEL = 1.0e9, 1.6e7, 25.0


class Programs:
    """Programs that run at the same time, each in a process group of its own. A context: what ends us ends them.

    They are told by SIGINT, whatever we are told by: at that a training run saves where it is, and DVC unlocks what it
    has locked. A second signal is passed on as well.

    Raises:
        SystemExit: at the end of the context, if a signal has come.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._signal = 0
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.RLock()  # a signal may come while its own thread holds it

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._pass_on) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._signal:
            raise SystemExit(128 + self._signal) from error

    def run(
        self,
        command: Sequence[str],
        hear: Callable[[str], None] | None = None,
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> int:
        """Run a program to its end, in any thread. Returns its exit code; nothing is started once all were stopped.

        Args:
            hear: is given each line that it writes; None: it writes where we do.
        """
        pipe, merged = (None, None) if hear is None else (subprocess.PIPE, subprocess.STDOUT)
        with self._lock:
            if self.stopped:
                return -signal.SIGINT
            program = subprocess.Popen(
                command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=pipe, stderr=merged, text=True,
                errors="replace", process_group=0,
            )  # fmt: skip
            self._running.add(program)
            if self.stopped:  # by a signal to this thread, while the program was being started
                self.stop()
        with program:
            if hear and program.stdout:
                for line in program.stdout:
                    hear(line.rstrip())
        with self._lock:
            self._running.remove(program)
        return program.returncode

    def stop(self) -> None:
        """Tell all programs to end, and start no more."""
        with self._lock:
            self.stopped = True
            for program in self._running:
                with suppress(ProcessLookupError):
                    os.killpg(program.pid, signal.SIGINT)

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        self._signal = self._signal or number
        self.stop()


def at_once(parameters: Params) -> int:
    """How many training runs the machine has room for: one per GPU, or else as many as cores and memory allow.

    A thread has a core to itself: $OMP_NUM_THREADS of them where that is set, or else one.
    """
    if parameters.machine.launcher == "pytorch":
        return 1  # it takes all GPUs
    threads = int(os.environ.get("OMP_NUM_THREADS") or 1)
    wanted = len(devices.visible()) or cores() // threads
    return max(1, min(wanted, int(_free_memory() / _needed(parameters))))


def environment(jobs: int) -> dict[str, str]:
    """Ours, with a share of the cores for each of so many programs unless $OMP_NUM_THREADS says how many threads."""
    return {"OMP_NUM_THREADS": str(max(1, cores() // jobs)), **os.environ}


def cores() -> int:
    """Of the machine, or as many as this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _limit("cpu.max").partition(" ")
    return min(allowed, max(1, int(quota) // int(period))) if quota.isdecimal() else allowed


def _free_memory() -> float:
    """Bytes; infinite where nobody says."""
    said = _limit("memory.max")
    limit = float(said) if said.isdecimal() else float("inf")
    with suppress(OSError):  # not Linux
        for line in MEMINFO.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return min(limit, 1024 * int(line.split()[1]))
    return limit


def _limit(name: str) -> str:
    try:
        return (CGROUP / name).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _needed(parameters: Params) -> float:
    """Bytes that a training run holds of the computer's memory, roughly."""
    train, channels = parameters.train, parameters.model.base_channels
    pixels = 0 if devices.visible() else train.batch_size * train.image_scale[0] * train.image_scale[1]
    return LIBRARIES + channels * (WEIGHTS + PIXEL * pixels)
