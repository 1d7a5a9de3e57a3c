"""Checkpoints to go on from: whole or absent, verified by the checksum in their name, read without trusting them."""

import hashlib
import io
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ghm import checkpoints, files
from ghm.errors import InputError

KEPT = 2  # the newest, and the one before it in case a disk loses the newest
NEEDED = {"state_dict", "optimizer", "meta", "processes", "records"}
_NAME = re.compile(r"step_\d{10}_epoch_\d{6}-([0-9a-f]{16})\.pth")  # by name is by age
_log = logging.getLogger(__name__)


def save(folder: Path, content: dict[str, Any]) -> Path:
    """Write `folder/step_<steps done>_epoch_<epochs done>-<checksum>.pth`, and delete all but the two newest.

    The file takes its name when all of it is on the disk.

    Raises:
        InputError: there is no room. What was there before is as it was.
    """
    buffer = io.BytesIO()
    torch.save(plain(content), buffer)
    data = buffer.getbuffer()
    meta, checksum = content["meta"], hashlib.sha256(data).hexdigest()[:16]
    path = folder / f"step_{meta['step']:010d}_epoch_{meta['epoch']:06d}-{checksum}.pth"
    temporary = folder / f".{path.name}"
    try:
        with files.room_for(path), temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)  # the new name itself
        os.close(handle)
    finally:
        temporary.unlink(missing_ok=True)
    for old in by_age(folder)[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint in `folder` that is whole, and its content; None without one.

    One that is not whole is renamed to `*.torn`, with a warning. Remains of a write that was cut off are deleted.
    """
    for left in folder.glob(".step_*"):
        left.unlink()
    for path in reversed(by_age(folder)):
        try:
            return path, read(path)
        except InputError as error:
            path.rename(path.with_suffix(".torn"))
            _log.warning("%s; set aside as %s", error, path.with_suffix(".torn").name)
    return None


def by_age(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, the one of the latest step last."""
    return sorted(path for path in folder.glob("step_*.pth") if _NAME.fullmatch(path.name))


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a run. Only tensors, numbers, texts and containers are made; no code of it runs.

    Raises:
        InputError: it is not what its name says, holds something else, or is no state of a run.
    """
    name = _NAME.fullmatch(path.name)
    if name and files.digest(path)[:16] != name[1]:
        raise InputError(f"the checkpoint {path} is damaged: its content does not have the checksum in its name")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file may hold, it is not what was asked for
        reason = checkpoints.reason(error)
        raise InputError(f"{path} is no checkpoint that can be loaded safely: {reason}") from None
    if not isinstance(content, dict) or not content.keys() >= NEEDED:
        raise InputError(f"{path} holds no state of a training run, which `.state/*/step_*.pth` do")
    return content


def fit(path: Path, name: str, load: Callable[[], Any]) -> None:
    """Run `load`, which puts a part of a checkpoint where it belongs.

    Raises:
        InputError: the part is of another model or optimiser.
    """
    try:
        load()
    except (KeyError, ValueError, RuntimeError, TypeError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the {name} in {path} does not fit this run: {reason}") from None


def plain(value: Any) -> Any:
    """NumPy's numbers as Python's, and tensors on the CPU, in any nest of containers."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return type(value)(map(plain, value)) if isinstance(value, list | tuple) else value
