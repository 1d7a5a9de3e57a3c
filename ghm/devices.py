"""The GPUs of this machine: which are visible, which this process has for itself, and whether PyTorch can use them.

`CUDA_VISIBLE_DEVICES=` hides them all: the CPU is used on purpose.

torch is imported where it is used: what only claims GPUs does not wait for it.
"""

import logging
import os
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

import filelock

from ghm.errors import InputError

LOCKS = Path(tempfile.gettempdir())  # one lock per GPU, for all users of the machine
POLL = 1.0  # seconds between two looks at GPUs that are taken
held: dict[str, filelock.BaseFileLock] = {}  # until this process ends
_log = logging.getLogger(__name__)


def visible() -> list[str]:
    """The GPUs that CUDA shows to this process, as UUIDs where nvidia-smi knows them. Does not start CUDA."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None and not allowed.strip():
        return []
    words = None if allowed is None else [word.strip() for word in allowed.split(",")]
    uuids = {index: uuid for index, uuid, _ in _ask_driver()}
    if not uuids:
        import torch

        number = torch.cuda.device_count()
        return (words or [str(index) for index in range(number)])[:number]
    if words is None:
        return list(uuids.values())
    names = [uuids.get(word, word) for word in words]
    # As CUDA does: what follows a name that it does not know is invisible.
    return list(takewhile(lambda name: name in uuids.values() or name.startswith("MIG-"), names))


def choose() -> Any:
    """The torch.device to compute on: the current GPU where any is visible, or else the CPU.

    Raises:
        InputError: PyTorch cannot use the GPU.
    """
    import torch

    return use() if visible() else torch.device("cpu")


def take(number: int = 1) -> None:
    """Claim so many free GPUs and have CUDA show no others from now on; where none is visible, the CPU is used.

    Raises:
        InputError: PyTorch cannot use the GPUs, there are too few, or their locks are out of reach.
    """
    gpus = visible()
    if gpus:
        claimed = claim(gpus, number)
        if claimed != gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(claimed)
        use()


def use(number: int | None = None) -> Any:
    """Make the GPU of this number, or the current one, that of this process, and run something on it.

    Returns:
        A torch.device.

    Raises:
        InputError: PyTorch cannot use it, as with a driver that is older than its CUDA, or a GPU it holds no code for.
    """
    import torch

    try:
        torch.cuda.init()
        device = torch.device("cuda", torch.cuda.current_device() if number is None else number)
        torch.ones(1, device=device).add_(1).item()
        torch.cuda.set_device(device)
        return device
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:  # AssertionError: built without CUDA
        driver = next((version for _, _, version in _ask_driver()), "of unknown version")
        cuda = torch.version.cuda
        built = f"built for CUDA {cuda} ({', '.join(torch.cuda.get_arch_list())})" if cuda else "built without CUDA"
        raise InputError(
            f"PyTorch {torch.__version__}, {built}, cannot use the visible GPUs with NVIDIA driver {driver} "
            f"({str(error).strip().splitlines()[0]}): install a newer driver or another build of PyTorch as "
            "docs/training.md#gpus describes, or set CUDA_VISIBLE_DEVICES= to use the CPU"
        ) from None


def claim(gpus: list[str], number: int, *, folder: Path = LOCKS, wait: bool = True) -> list[str]:
    """Take `number` of the GPUs for this process alone, until it ends, however it ends, or what it becomes by exec.

    All or none: who waits holds nothing, so that no two processes wait for each other.

    Args:
        gpus: their names, the same to every process.
        folder: of the locks.
        wait: until so many are free.

    Raises:
        InputError: there are not so many, too few are free and `wait` is false, or the locks are out of reach.
    """
    if number > len(gpus):
        raise InputError(f"{number} processes need a GPU each, and {len(gpus)} are visible: start fewer processes")
    warned = False
    while len(free := _claim_now(gpus, number, folder)) < number:
        taken = f"{len(gpus) - len(free)} of {len(gpus)} GPUs ({', '.join(gpus)}) are taken by other runs"
        if not wait:
            raise InputError(f"{taken}: use others or wait")
        if not warned:
            _log.warning("%s: waiting", taken)
            warned = True
        time.sleep(POLL)
    return free


def _claim_now(gpus: list[str], number: int, folder: Path) -> list[str]:
    """The first `number` free GPUs, claimed; or fewer, which are free but not claimed. One process at a time."""
    free = {gpu: held[gpu] for gpu in gpus if gpu in held}
    try:
        with filelock.FileLock(folder / "ghm-gpus.lock", mode=0o666), ExitStack() as new:
            for gpu in gpus:
                if gpu not in free and len(free) < number:
                    path = folder / f"ghm-{gpu.replace('/', '_')}.lock"
                    # Inheritable: torchrun, which this process may become, keeps it; other programs are not given it.
                    lock = filelock.FileLock(path, 0, 0o666, on_acquired=lambda file: os.set_inheritable(file, True))
                    with suppress(filelock.Timeout):
                        free[gpu] = new.enter_context(lock)
            if len(free) >= number:
                held.update(free)
                new.pop_all()
    except OSError as error:
        raise InputError(
            f"the lock {error.filename or folder} of a GPU cannot be used ({error.strerror}): make it readable and "
            "writable for all users, or set TMPDIR to another folder"
        ) from error
    return [gpu for gpu in gpus if gpu in free][:number]


def _ask_driver() -> list[list[str]]:
    """Index, UUID and version of the driver of each GPU, as nvidia-smi says."""
    command = ["nvidia-smi", "--query-gpu=index,uuid,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return []
    if done.returncode:
        # A driver that was updated and not loaded anew looks like none at all.
        _log.warning("nvidia-smi fails, so its GPUs are not used: %s", (done.stdout + done.stderr).strip())
        return []
    rows = [line.split(", ") for line in done.stdout.splitlines()]
    return [row for row in rows if len(row) == 3]
