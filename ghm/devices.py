"""The GPUs of this machine: which are visible, which this process has for itself, and whether PyTorch can use them.

`CUDA_VISIBLE_DEVICES=` hides them all: the CPU is used on purpose.

torch is imported where it is used: what only claims GPUs does not wait for it.
"""

import fcntl
import logging
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ghm.errors import InputError
from ghm.words import count

FOLDER = Path(tempfile.gettempdir()) / "ghm-gpus"
POLL = 1.0  # seconds between two looks at GPUs that are taken
OLDEST_DRIVER = {"12": "525", "13": "580"}  # by the major version of CUDA
INDEX = "https://download.pytorch.org/whl"
held: dict[Path, int] = {}  # lock -> descriptor, open until this process ends
_log = logging.getLogger(__name__)


def visible() -> list[str]:
    """The GPUs that CUDA shows to this process, as UUIDs where nvidia-smi knows them. Does not start CUDA."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None and not allowed.strip():
        return []
    uuids = _uuids()
    if not uuids:
        import torch

        count = torch.cuda.device_count()
        names = [word.strip() for word in allowed.split(",")] if allowed else [str(number) for number in range(count)]
        return names[:count]
    if allowed is None:
        return list(uuids.values())
    found: list[str] = []
    for word in (word.strip() for word in allowed.split(",")):
        begun = [uuid for uuid in uuids.values() if word and uuid.startswith(word)]
        name = uuids.get(word) or (begun[0] if len(begun) == 1 else word if word.startswith("MIG-") else None)
        if name is None:
            break  # as CUDA does: what follows a name that it does not know is invisible
        found.append(name)
    return found


def _uuids() -> dict[str, str]:
    """UUIDs of the machine's GPUs by their indices; empty where nvidia-smi is missing or finds no driver."""
    return {row[0]: row[1] for row in _ask_driver("index,uuid")}


def _driver() -> str:
    return next((version for (version,) in _ask_driver("driver_version")), "of unknown version")


def _ask_driver(fields: str) -> list[tuple[str, ...]]:
    """What nvidia-smi says of each GPU."""
    words = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError:
        return []
    if done.returncode:
        # A driver that was updated and not loaded anew looks like none at all.
        _log.warning("nvidia-smi fails, so its GPUs are not used: %s", (done.stdout + done.stderr).strip())
        return []
    rows = [tuple(cell.strip() for cell in line.split(",")) for line in done.stdout.splitlines()]
    return [row for row in rows if len(row) == fields.count(",") + 1]


def choose() -> Any:
    """The device to compute on: the current GPU where any is visible, or else the CPU.

    Returns:
        A torch.device.

    Raises:
        InputError: PyTorch cannot use the GPU.
    """
    import torch

    gpus = visible()
    if not gpus:
        return torch.device("cpu")
    require_cuda(gpus)
    number = torch.cuda.current_device()
    _require_code(number)
    return torch.device("cuda", number)


def use(name: str, number: int) -> Any:
    """Make a GPU the current one of this process.

    Args:
        name: as it was claimed.
        number: its place among those that are visible.

    Returns:
        A torch.device.

    Raises:
        InputError: PyTorch cannot use the GPU, or CUDA has another one at this place.
    """
    import torch

    require_cuda([name])
    _require_code(number)
    # Where CUDA started before CUDA_VISIBLE_DEVICES was set, or has an order of its own.
    shown = f"GPU-{torch.cuda.get_device_properties(number).uuid}"
    if name != shown and {name, shown} <= set(_uuids().values()):
        raise InputError(
            f"CUDA shows {shown} where {name} was claimed: set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name the GPUs by their "
            "UUIDs in CUDA_VISIBLE_DEVICES (nvidia-smi -L lists them)"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def require_cuda(gpus: list[str]) -> None:
    """Start CUDA.

    Raises:
        InputError: PyTorch cannot use the GPUs that are visible, as with a driver that is older than its CUDA.
    """
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # AssertionError: built without CUDA
        reason = str(error).strip().splitlines()[0].rstrip(".")
    else:
        return
    shown = count(len(gpus), "GPU is|GPUs are")
    version, _, _ = torch.__version__.partition("+")
    install = f"pip install torch=={version} torchvision --index-url {INDEX}"
    if torch.version.cuda:
        oldest = OLDEST_DRIVER.get(torch.version.cuda.partition(".")[0])
        driver = f"driver {oldest} or newer" if oldest else "a newer driver"
        remedy = f"install {driver}, or a PyTorch for an older CUDA ({install}/cu126, or cu128)"
        built = f"built for CUDA {torch.version.cuda}"
    else:
        remedy, built = f"install a PyTorch with CUDA ({install}/cu126, or a later one)", "built without CUDA"
    raise InputError(
        f"{shown} visible (NVIDIA driver {_driver()}), and PyTorch {torch.__version__}, {built}, cannot use "
        f"{'it' if len(gpus) == 1 else 'them'} ({reason}): {remedy}, or set CUDA_VISIBLE_DEVICES= to use the CPU"
    )


def _require_code(number: int) -> None:
    """Refuse a GPU that this PyTorch holds no code for."""
    import torch

    capability, built = torch.cuda.get_device_capability(number), torch.cuda.get_arch_list()
    if runs_on(built, capability):
        return
    newer = capability > max(map(_capability, built))
    remedy = "a newer PyTorch" if newer else f"a PyTorch for older ones (pip install torch --index-url {INDEX}/cu126)"
    raise InputError(
        f"GPU {number} ({torch.cuda.get_device_name(number)}) has compute capability {'.'.join(map(str, capability))}, "
        f"and PyTorch {torch.__version__} is built for {', '.join(built)}: install {remedy}, name another GPU in "
        "CUDA_VISIBLE_DEVICES, or set CUDA_VISIBLE_DEVICES= to use the CPU"
    )


def runs_on(architectures: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether code built for these architectures runs on a GPU of this compute capability.

    Machine code, as sm_86, runs from its version on within the major version, but sm_90a on 9.0 alone. What the driver
    compiles, as compute_86, runs on all that is not older. A build that names neither, as one for AMD, is not judged.

    Args:
        architectures: as `torch.cuda.get_arch_list` gives them.
    """
    known = [each for each in architectures if each.startswith(("sm_", "compute_"))]
    return not known or any(_runs_on(each, capability) for each in known)


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    built = _capability(architecture)
    if architecture.endswith("a"):
        return built == capability
    return built <= capability and (architecture.startswith("compute_") or built[0] == capability[0])


def _capability(architecture: str) -> tuple[int, int]:
    """sm_120 -> (12, 0)."""
    digits = re.sub(r"\D", "", architecture)
    return int(digits[:-1]), int(digits[-1])


def claim(devices: list[str], count: int, folder: Path = FOLDER, wait: bool = True) -> list[str]:
    """Take `count` of the devices for this process alone, until it ends, however it ends.

    All or none: who waits holds nothing, so that no two processes wait for each other. What the process holds already
    is taken first.

    Args:
        devices: their names, the same to every process.
        folder: of the locks, one for all users of the machine.
        wait: until so many are free.

    Raises:
        InputError: there are not so many, too few are free and `wait` is false, or the locks are out of reach.
    """
    if count > len(devices):
        raise InputError(f"{count} processes need a GPU each, and {len(devices)} are visible: start fewer processes")
    told = False
    while True:
        try:
            free = _take_turn(devices, count, folder)
        except OSError as error:
            raise InputError(
                f"the locks of the GPUs in {folder} cannot be used ({error.strerror}): make the folder and its files "
                "readable and writable for all, or set TMPDIR to another one"
            ) from error
        if len(free) == count:
            return free
        taken = f"all {len(devices)}" if not free else f"{len(devices) - len(free)} of {len(devices)}"
        if not wait:
            raise InputError(f"{taken} GPUs ({', '.join(devices)}) are taken by other trainings: use others or wait")
        if not told:
            _log.warning("%s GPUs are taken by other trainings: waiting", taken)
            told = True
        time.sleep(POLL)


def _take_turn(devices: list[str], count: int, folder: Path) -> list[str]:
    """The first `count` free devices, claimed; or fewer, which are free but not claimed. One process at a time."""
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _open_to_all(folder, 0o1777)
    turn = _open(folder / ".turn")
    new: dict[Path, int] = {}
    try:
        fcntl.flock(turn, fcntl.LOCK_EX)
        free: list[str] = []
        for device in sorted(devices, key=lambda device: _lock(folder, device) not in held):
            path = _lock(folder, device)
            if len(free) < count and (path in held or _try(path, new)):
                free.append(device)
        if len(free) == count:
            held.update(new)
            new = {}
        return [device for device in devices if device in free]
    finally:
        for file in (*new.values(), turn):
            os.close(file)


def _lock(folder: Path, device: str) -> Path:
    return folder / device.replace("/", "_")


def _try(path: Path, new: dict[Path, int]) -> bool:
    """Add the lock to `new` unless another process holds it."""
    file = _open(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return False
    new[path] = file
    return True


def _open(path: Path) -> int:
    """Open a file of all users. Linux lets nobody create what another has created in such a folder, but open it."""
    while True:
        with suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        with suppress(FileExistsError):
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL, 0o666)
            _open_to_all(path, 0o666)
            return file


def _open_to_all(path: Path, mode: int) -> None:
    with suppress(PermissionError):
        path.chmod(mode)
