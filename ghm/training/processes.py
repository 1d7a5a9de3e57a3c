"""The processes that share a training: how they are started, what they tell each other, and which GPU each has.

Settings of the machine are environment variables:

    GHM_PROCESSES  how many processes `machine.launcher: pytorch` starts here; unset: one per visible GPU, or one
    GHM_TORCHRUN   the arguments of torchrun, for training on several machines; unset: --standalone
    GHM_SRUN       arguments of srun, where `machine.launcher: slurm` has to start it

torch is imported where it is used: what takes GPUs and starts the others does not wait for it.
"""

import ctypes
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

from ghm import devices
from ghm.errors import InputError
from ghm.words import count

PATIENCE = timedelta(hours=12)  # with the first process, which may fetch data or validate; a death is seen at once
PRECEDENCE = 3.0  # seconds for the process that failed to end first, so that the launcher blames no other
_LAUNCHER = "GHM_LAUNCHER"  # id of the process that has started us and claims our GPUs
_SPECIAL_STEPS = 0xFFFFFFF0  # where Slurm's numbers begin for what is no step of tasks, as the shell of salloc
_PR_SET_PDEATHSIG = 1
_GONE = re.compile(
    r"connection (closed|reset) by peer|connection was likely closed|broken pipe|ncclRemoteError|recvValue failed",
    re.IGNORECASE,
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Processes:
    """The processes that share a training, seen from one of them."""

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
        import torch

        total = torch.tensor(values, dtype=torch.float64, device="cpu")
        torch.distributed.all_reduce(total, group=self.group)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes in the order of their ranks, on the first process; nothing elsewhere."""
        if self.group is None:
            return [value]
        from torch import distributed

        found: list[Any] | None = [None] * self.world_size if self.first else None
        distributed.gather_object(value, found, dst=0, group=self.group)
        return found or []

    def share(self, value: Any) -> Any:
        """The first process's value."""
        if self.group is None:
            return value
        from torch import distributed

        box = [value]
        distributed.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.group is not None:
            from torch import distributed

            distributed.barrier(group=self.group)


@contextmanager
def join(launcher: str, command: list[str]) -> Iterator[Processes]:
    """Become one of the processes of a training; where they have yet to be started, become what starts them.

    Args:
        launcher: `machine.launcher`. none: one process, on one free GPU. pytorch: as torchrun says, which takes the
            place of this process where it has not started it. slurm: the tasks of srun, likewise.
        command: what each process runs, from the interpreter on: this program.

    Raises:
        InputError: the launcher is not what started this process, cannot start others, or lacks a GPU.
        SystemExit: another process of the training ended before its time; the log says so.
    """
    if launcher == "none":
        _require_alone()
        gpus = devices.visible()
        if gpus:
            devices.use(_take(1, gpus)[0], 0)
        yield Processes()
        return
    if launcher == "slurm":
        _require_slurm()
        if not _is_task():
            _become(["srun", "--kill-on-bad-exit=1", *_words("GHM_SRUN"), *command])
        _translate_slurm()
    elif "RANK" not in os.environ:
        _become([sys.executable, "-m", "torch.distributed.run", *_torchrun_arguments(), *command[1:]])
    else:
        _end_with_parent()
    yield from _member(bound=launcher == "slurm")


def _member(*, bound: bool) -> Iterator[Processes]:
    """One of the processes that the environment describes in torchrun's words.

    Args:
        bound: the one GPU that is visible was chosen for this process alone.
    """
    rank, world_size, local_rank = (_number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    device = _device(local_rank, bound=bound)
    if world_size == 1:
        yield Processes(rank, world_size, local_rank)
        return
    from torch import distributed

    failed, loss = True, None
    try:
        distributed.init_process_group("gloo" if device is None else "nccl", device_id=device)
        processes = Processes(rank, world_size, local_rank, distributed.new_group(backend="gloo", timeout=PATIENCE))
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
        _log.error("another process of this training ended, its own error says why (%s)", loss)
        time.sleep(PRECEDENCE)
        sys.exit(1)


def _device(local_rank: int, *, bound: bool) -> Any:
    """The GPU of this process, claimed and current; None where there is none."""
    gpus = devices.visible()
    if not gpus:
        return None
    number = 0 if bound and len(gpus) == 1 else local_rank
    if number >= len(gpus):
        raise InputError(
            f"{count(len(gpus), 'GPU is|GPUs are')} visible, too few for process {number + 1} of this machine: start "
            "fewer processes"
        )
    if not _launcher_is_parent():
        devices.claim([gpus[number]], 1, wait=False)
    return devices.use(gpus[number], number)


def _loss_of_a_process(error: RuntimeError) -> str | None:
    """What an error says of a connection that another process no longer holds; None for all other errors."""
    told: BaseException | None = error
    while told is not None:
        if not (isinstance(told, RuntimeError) and _GONE.search(str(told))):
            return None  # an error of this process led to it
        told = told.__cause__ or told.__context__
    lines = [line for line in str(error).splitlines() if _GONE.search(line)]
    return re.sub(r"^\[[^]]*\] *", "", lines[0].strip())


def _leave(failed: bool) -> None:
    """Close the connections, by which others see that this process is gone. What is wrong with them matters no more."""
    from torch import distributed

    def end() -> None:
        with suppress(Exception):
            distributed.destroy_process_group()

    if not failed:
        return end()
    # NCCL waits for what it has begun, in vain if another process is gone.
    ending = threading.Thread(target=end, daemon=True)
    ending.start()
    ending.join(timeout=5)


def _is_task() -> bool:
    """Whether srun started this process as a task."""
    step = os.environ.get("SLURM_STEP_ID", "")
    return step.isdecimal() and int(step) < _SPECIAL_STEPS and "SLURM_PROCID" in os.environ


def _require_alone() -> None:
    if "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("machine.launcher must be pytorch under torchrun, got 'none'")
    if _is_task() and os.environ.get("SLURM_NTASKS", "1") != "1":
        raise InputError("machine.launcher must be slurm in a job step of several tasks, got 'none'")


def _require_slurm() -> None:
    if "SLURM_JOB_ID" not in os.environ:
        raise InputError("machine.launcher is slurm outside Slurm (no SLURM_JOB_ID): use sbatch, salloc or srun")


def _translate_slurm() -> None:
    """Say in torchrun's words what srun says."""
    environment = os.environ
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["WORLD_SIZE"] = environment["SLURM_NTASKS"]
    environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
    if "MASTER_ADDR" not in environment:
        environment["MASTER_ADDR"] = _first_host()
    port = 20000 + _number("SLURM_JOB_ID") % 20000 + _number("SLURM_STEP_ID")
    environment.setdefault("MASTER_PORT", str(port))


def _first_host() -> str:
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", "")
    try:
        words = ["scontrol", "show", "hostnames", nodes]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        raise InputError(f"scontrol does not name the hosts of {nodes!r}: set MASTER_ADDR to the first one") from None


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdecimal():
        raise InputError(f"{name} must be a whole number where RANK or SLURM_PROCID is set, got {value!r}")
    return int(value)


def _torchrun_arguments() -> list[str]:
    """Arguments up to the program's, after claiming the GPUs for what they start."""
    given, gpus = _words("GHM_TORCHRUN") or ["--standalone"], devices.visible()
    named = [
        word.partition("=")[2] or following
        for word, following in zip(given, [*given[1:], ""], strict=True)
        if re.match(r"--nproc[-_]per[-_]node\b", word)
    ]
    asked = named[-1] if named else os.environ.get("GHM_PROCESSES", str(len(gpus) or 1))
    if named and asked in ("gpu", "auto"):
        count = len(gpus)
    elif asked.isdecimal() and int(asked) >= 1:
        count = int(asked)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    else:
        name = "--nproc-per-node in GHM_TORCHRUN" if named else "GHM_PROCESSES"
        raise InputError(f"{name} must be a whole number, 1 or more, got {asked!r}")
    if gpus:
        devices.require_cuda(gpus)
        _take(count, gpus)
    os.environ[_LAUNCHER] = str(os.getpid())
    return given if named else [*given, f"--nproc-per-node={count}"]


def _take(count: int, gpus: list[str]) -> list[str]:
    """Claim so many of the GPUs, and have CUDA show no others from now on."""
    taken = devices.claim(gpus, count)
    if taken != gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
    return taken


def _words(name: str) -> list[str]:
    try:
        return shlex.split(os.environ.get(name, ""))
    except ValueError as error:
        raise InputError(f"{name} must be arguments as a shell reads them, got {os.environ[name]!r}: {error}") from None


def _become(command: list[str]) -> NoReturn:
    """Go on as another program under the same id, so that what ends one ends the other. Claims stay."""
    if shutil.which(command[0]) is None:
        raise InputError(f"machine.launcher needs {command[0]}, which is not on the PATH")
    for lock in devices.held.values():
        os.set_inheritable(lock, True)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvpe(command[0], command, os.environ)


def _launcher_is_parent() -> bool:
    return os.environ.get(_LAUNCHER) == str(os.getppid())


def _end_with_parent() -> None:
    """Have the kernel send SIGTERM when torchrun dies, for one that is killed cannot."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if _LAUNCHER in os.environ and not _launcher_is_parent():
        sys.exit(128 + signal.SIGTERM)  # it died before
