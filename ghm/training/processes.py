"""The processes that share a training run: how they are started, what they tell each other, which GPU each has.

torchrun starts them: a process with its variables (RANK, WORLD_SIZE, LOCAL_RANK, ...) in the environment joins the
others, on this machine and on more. Without them `machine.launcher: pytorch` becomes torchrun on this machine, with
$GHM_PROCESSES processes, or one per visible GPU.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
from torch import distributed

from ghm import devices
from ghm.errors import InputError
from ghm.words import count

# For the first process, which may fetch data or validate. That a process died is seen at once.
BARRIER_TIMEOUT = timedelta(hours=12)
EXIT_DELAY = 3.0  # seconds that torchrun has to end a process whose connection to another one broke
_LAUNCHER = "GHM_LAUNCHER"  # id of the process that has started us and holds the locks of our GPUs
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Processes:
    """The processes that share a training run, seen from one of them."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    group: Any = None  # on gloo, for what the host has to say; None with one process

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def add(self, values: list[float]) -> list[float]:
        """The sum over all processes of each number."""
        if self.group is None:
            return values
        total = torch.tensor(values, dtype=torch.float64, device="cpu")
        distributed.all_reduce(total, group=self.group)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes in the order of their ranks, on the first process; nothing elsewhere."""
        if self.group is None:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.first else None
        distributed.gather_object(value, values, dst=0, group=self.group)
        return values or []

    def share(self, value: Any) -> Any:
        """The first process's value."""
        if self.group is None:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.group is not None:
            distributed.barrier(group=self.group)


@contextmanager
def join(launcher: str, command: list[str]) -> Iterator[Processes]:
    """Become one of the processes of a training run, or what starts them.

    Args:
        launcher: `machine.launcher`, for a process that torchrun did not start. none: it trains alone, on a free GPU.
            pytorch: it becomes torchrun.
        command: what each process runs, from the interpreter on: this program.

    Raises:
        InputError: GHM_PROCESSES is wrong, or there is no GPU for this process.
    """
    if "RANK" in os.environ:
        _end_with_parent()
        yield from _member()
    elif launcher == "pytorch":
        _become_torchrun(command)
    else:
        devices.take()
        yield Processes()


def _member() -> Iterator[Processes]:
    """One of the processes that torchrun started."""
    rank, world_size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    gpus, device = devices.visible(), None
    if gpus:
        if local_rank >= len(gpus):
            raise InputError(
                f"{count(len(gpus), 'GPU is|GPUs are')} visible, too few for process {local_rank + 1} of this machine: "
                "start fewer processes"
            )
        if not _launcher_is_parent():
            devices.claim([gpus[local_rank]], 1, wait=False)
        device = devices.use(local_rank)
    if world_size == 1:
        yield Processes(rank, world_size, local_rank)
        return
    distributed.init_process_group("gloo" if device is None else "nccl", device_id=device)
    processes = Processes(rank, world_size, local_rank, distributed.new_group(backend="gloo", timeout=BARRIER_TIMEOUT))
    try:
        yield processes
        processes.wait()  # a process that goes early takes the addresses of the others along
    except RuntimeError:
        # It may say no more than that another process has ended. That one's own error is what torchrun shall show, and
        # it ends the others at once.
        time.sleep(EXIT_DELAY)
        raise
    distributed.destroy_process_group()  # not after an error: NCCL would wait for what it has begun


def _become_torchrun(command: list[str]) -> NoReturn:
    """Go on as torchrun under the same id, so that what ends one ends the other. The locks of GPUs stay."""
    named = os.environ.get("GHM_PROCESSES") or str(len(devices.visible()) or 1)
    if not named.isdecimal() or int(named) < 1:
        raise InputError(f"GHM_PROCESSES must be a whole number, 1 or more, got {named!r}")
    devices.take(int(named))
    os.environ[_LAUNCHER] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(named))))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={named}"]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *torchrun, *command[1:]], os.environ)


def _launcher_is_parent() -> bool:
    return os.environ.get(_LAUNCHER) == str(os.getppid())


def _end_with_parent() -> None:
    """Have the kernel send SIGTERM when torchrun dies, for one that is killed cannot."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if _LAUNCHER in os.environ and not _launcher_is_parent():
        sys.exit(128 + signal.SIGTERM)  # it died before
