"""Whether annotations and images are those that the manifest describes: by content, without reading them every time.

As in git's index, a file whose size, times and inode are as they were when it was read has the content that it had
then. These are remembered in the store, so that 20 GB of images are read once, and a check takes seconds after that.
A file that changed less than two seconds before it was read is read again: its time may not tell the next change.
"""

import hashlib
import logging
import os
import stat
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
from tqdm import tqdm

from ghm import files
from ghm.data import annotations
from ghm.data.annotations import Unlabelled
from ghm.data.images import fault
from ghm.words import count

SETTLED = 2 * 10**9  # nanoseconds
_log = logging.getLogger(__name__)

Stamp = tuple[int, int, int, int]  # size, time of modification, time of change, which cannot be set, and inode


class Content(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What is remembered of a file."""

    stamp: Stamp
    sha256: str
    fault: str | None = None  # why it is no whole image, as far as that shows without decoding it


def contents(memory: Path, root: Path, names: Sequence[str], *, images: bool = True) -> dict[str, Content]:
    """The content of those files `names` below `root` that are there; what the folder `memory` does not know is read.

    It has a file for each folder of images or annotations. Where it cannot be written, everything is read each time.
    """
    path = memory / f"{_sha256(f'{root.resolve()} {images}')[:24]}.json"
    try:
        known = msgspec.json.decode(path.read_bytes(), type=dict[str, Content])
    except (OSError, msgspec.MsgspecError):  # missing, of an earlier form, or damaged: made again
        known = {}
    stamps = {name: stamp for name in names if (stamp := _stamp(root / name))}
    changed = [name for name, stamp in stamps.items() if name not in known or known[name].stamp != stamp]
    if changed:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            read = pool.map(lambda name: _read(root / name, images), changed)
            bar = tqdm(read, f"checksums of {root.name}", len(changed), unit="file", delay=1, leave=False)
            known |= {name: content for name, content in zip(changed, bar, strict=True) if content}
        try:
            files.write_text(path, msgspec.json.encode(known).decode())
        except OSError as error:
            _log.warning(
                "checksums cannot be kept in %s (%s): all data are read again next time. Set GHM_DATA_ROOT to a "
                "folder that can be written, and data.root to where the data are",
                memory,
                error.strerror,
            )
    return {name: known[name] for name in stamps if name in known}


def combined(names: Iterable[str], known: dict[str, Content]) -> str:
    """One SHA-256 for the names and contents of files, in this order; a missing file counts as such."""
    return _sha256("".join(f"{known[name].sha256 if name in known else 'missing'} {name}\n" for name in names))


def difference(memory: Path, root: Path, split: dict[str, Any], source: Path | None = None) -> str | None:
    """What of a split, as a manifest describes it, is different below `root`; None where nothing is.

    Args:
        source: the user's file that the annotations were made from, for the words.
    """
    path = root / split["annotations"]
    annotation_file = contents(memory, path.parent, [path.name], images=False).get(path.name)
    if annotation_file is None:
        return f"{source or path} is missing"
    if annotation_file.sha256 != split["annotations_sha256"]:
        return f"{source or path} has changed"
    names = [image.file_name for image in annotations.read(path, Unlabelled).images]
    known = contents(memory, root / split["folder"], names)
    if combined(names, known) == split["files_sha256"]:
        return None
    missing = [name for name in names if name not in known]
    if set(missing) - set(split["unreadable"]):
        return f"{count(len(missing), 'image')} missing in {root / split['folder']}, for example {missing[0]}"
    return f"images in {root / split['folder']} have changed"


def _stamp(path: Path) -> Stamp | None:
    """None where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    is_file = stat.S_ISREG(status.st_mode)
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino) if is_file else None


def _read(path: Path, is_image: bool) -> Content | None:
    """None where the file vanished meanwhile."""
    now, stamp = time.time_ns(), _stamp(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return Content((0, 0, 0, 0), f"cannot be read: {reason}", reason)
    if stamp is None or max(stamp[1:3]) > now - SETTLED:
        stamp = (len(data), 0, 0, 0)
    return Content(stamp, hashlib.sha256(data).hexdigest(), fault(data) if is_image else None)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
