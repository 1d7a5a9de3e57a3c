"""Atomic writes, checksums, free space and file locks."""

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
from tqdm import tqdm

from ghm.errors import InputError

_log = logging.getLogger(__name__)


def write_text(path: Path, text: str) -> None:
    """Write beside `path` and rename, so that nobody ever reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write `content` as sorted, indented JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a new folder to fill; it takes the place of `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        temporary.chmod(0o755)
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal checksum of a file's content."""
    checksum = hashlib.new(algorithm)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum.update(block)
    return checksum.hexdigest()


def require_space(needed: int, folder: Path, name: str) -> None:
    """Raise InputError unless `needed` bytes are free where `folder` is or will be."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        needed_text, free_text = (tqdm.format_sizeof(size, "B") for size in (needed, free))
        raise InputError(f"{name} needs {needed_text} more in {folder}, where {free_text} are free: make room")


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Turn a full disk into an InputError that names `path`, or the file that had no room."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        name = error.filename or path
        raise InputError(f"no room to write {name}: make room, and the same command goes on") from None


@contextmanager
def locked(lock: Path, name: str) -> Iterator[None]:
    """Keep other processes out; wait for one that works on the file `name` already."""
    held = filelock.FileLock(lock)
    try:
        held.acquire(timeout=0)
    except filelock.Timeout:
        _log.warning("another process works on %s: waiting for it", name)
        held.acquire()
    try:
        yield
    finally:
        held.release()
