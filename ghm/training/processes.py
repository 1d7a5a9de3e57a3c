"""The processes that share a training run: how they are started, what they tell each other, which GPU each has.

torchrun starts them: a process with its variables (RANK, WORLD_SIZE, LOCAL_RANK, ...) in the environment joins the
others, on this machine and on more. Without them `machine.launcher: pytorch` becomes torchrun, as these say:

    GHM_PROCESSES  how many processes to start; unset: one per visible GPU, or one
    GHM_TORCHRUN   more arguments of torchrun, as where several machines meet; unset: --standalone
"""

import ctypes
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
EXIT_DELAY = 3.0  # seconds for the process that failed to end first, so that torchrun blames no other
_LAUNCHER = "GHM_LAUNCHER"  # id of the process that has started us and holds the locks of our GPUs
_PR_SET_PDEATHSIG = 1
_LOST = re.compile(
    r"connection (closed|reset) by peer|connection was likely closed|broken pipe|ncclRemoteError|recvValue failed",
    re.IGNORECASE,
)
_log = logging.getLogger(__name__)


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
        InputError: a variable of the environment is wrong, or there is no GPU for this process.
        SystemExit: another process of the run ended before its time; the log says so.
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
    rank, world_size, local_rank = map(_number, ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    device = _device(local_rank)
    if world_size == 1:
        yield Processes(rank, world_size, local_rank)
        return
    failed, loss = True, None
    try:
        distributed.init_process_group("gloo" if device is None else "nccl", device_id=device)
        group = distributed.new_group(backend="gloo", timeout=BARRIER_TIMEOUT)
        processes = Processes(rank, world_size, local_rank, group)
        yield processes
        processes.wait()  # a process that goes early takes the addresses of the others along
        failed = False
    except RuntimeError as error:
        loss = _loss_of_a_process(error)
        if loss is None:
            raise
    finally:
        if distributed.is_initialized():
            _leave(failed)
    if loss is not None:
        _log.error("another process of this training run ended, its own error says why (%s)", loss)
        time.sleep(EXIT_DELAY)
        sys.exit(1)


def _device(local_rank: int) -> Any:
    """The GPU of this process, claimed and current; None where there is none."""
    gpus = devices.visible()
    if not gpus:
        return None
    if local_rank >= len(gpus):
        raise InputError(
            f"{count(len(gpus), 'GPU is|GPUs are')} visible, too few for process {local_rank + 1} of this machine: "
            "start fewer processes"
        )
    if not _launcher_is_parent():
        devices.claim([gpus[local_rank]], 1, wait=False)
    return devices.use(gpus[local_rank], local_rank)


def _loss_of_a_process(error: RuntimeError) -> str | None:
    """What an error says of a connection that another process no longer holds; None for all other errors."""
    cause: BaseException | None = error
    while cause is not None:
        if not (isinstance(cause, RuntimeError) and _LOST.search(str(cause))):
            return None  # an error of this process led to it
        cause = cause.__cause__ or cause.__context__
    line = next(line for line in str(error).splitlines() if _LOST.search(line))
    return re.sub(r"^\[[^]]*\] *", "", line.strip())


def _leave(failed: bool) -> None:
    """Close the connections, by which others see that this process is gone. What is wrong with them matters no more."""

    def end() -> None:
        with suppress(Exception):
            distributed.destroy_process_group()

    if not failed:
        return end()
    # NCCL waits for what it has begun, in vain if another process is gone.
    ending = threading.Thread(target=end, daemon=True)
    ending.start()
    ending.join(timeout=5)


def _number(name: str, default: int | str = "", least: int = 0) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdecimal() or int(value) < least:
        raise InputError(f"{name} must be a whole number, {least} or more, got {value!r}")
    return int(value)


def _become_torchrun(command: list[str]) -> NoReturn:
    """Go on as torchrun under the same id, so that what ends one ends the other. The locks of GPUs stay."""
    gpus = devices.visible()
    number = _number("GHM_PROCESSES", len(gpus) or 1, least=1)
    if gpus:
        devices.require_cuda(gpus)
        devices.claim_visible(number, gpus)
    os.environ[_LAUNCHER] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
    arguments = [f"--nproc-per-node={number}", *os.environ.get("GHM_TORCHRUN", "--standalone").split()]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, "-m", "torch.distributed.run", *arguments, *command[1:]], os.environ)


def _launcher_is_parent() -> bool:
    return os.environ.get(_LAUNCHER) == str(os.getppid())


def _end_with_parent() -> None:
    """Have the kernel send SIGTERM when torchrun dies, for one that is killed cannot."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if _LAUNCHER in os.environ and not _launcher_is_parent():
        sys.exit(128 + signal.SIGTERM)  # it died before
