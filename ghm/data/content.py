"""Whether annotations and images are those that the manifest describes: by content, without reading them every time.

As in git's index, a file whose size, times and inode are as they were when it was read has the content that it had
then. These are remembered in the store, so that 20 GB of images are read once, and a check takes seconds after that.
A file that changed less than two seconds before it was read is read again: its time may not tell the next change.
"""

import hashlib
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from tqdm import tqdm

from ghm import files
from ghm.data import annotations
from ghm.data.annotations import Unlabelled
from ghm.words import count

SETTLED = 2 * 10**9  # nanoseconds
_log = logging.getLogger(__name__)

Fault = Callable[[bytes], str | None]


class Content(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What is remembered of a file."""

    size: int
    modified: int  # ns
    changed: int  # ns, of the inode: a time of modification can be set
    inode: int
    sha256: str
    fault: str | None = None  # why it is no whole image, as far as that shows without decoding it

    def is_of(self, found: os.stat_result) -> bool:
        """Whether the file has not been touched since."""
        return (self.size, self.modified, self.changed, self.inode) == _stamp(found)


def _stamp(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


@dataclass(frozen=True)
class Memory:
    """The folder of what is remembered, a file for each folder of images or annotations.

    Where it cannot be written, everything is read each time. `fault` says why bytes are no whole image, or None.
    """

    folder: Path
    fault: Fault

    def contents(self, root: Path, names: Sequence[str], *, images: bool = True) -> dict[str, Content]:
        """The content of those files `names` below `root` that are there; what is not remembered is read."""
        place = self._place(str(root.resolve()), "images" if images else "annotations")
        known = self._read(place, dict[str, Content]) or {}
        found = _stats(root, names)
        moved = [name for name, stat in found.items() if name not in known or not known[name].is_of(stat)]
        if moved:
            known |= _read_all(root, moved, sum(found[name].st_size for name in moved), self.fault if images else None)
            self._write(place, known)
        return {name: known[name] for name in found if name in known}

    def listing(self, path: Path, sha256: str) -> list[str]:
        """The images that an annotation file of this checksum names, in its order.

        Raises:
            InputError: it is no annotation file.
        """
        place = self._place(f"names {sha256}")
        names = self._read(place, list[str])
        if names is None:
            names = [image.file_name for image in annotations.read(path, Unlabelled).images]
            self._write(place, names)
        return names

    def is_known(self, *parts: str) -> bool:
        """Whether `remember` was told of these texts."""
        return self._place(*parts).exists()

    def remember(self, *parts: str) -> None:
        """Keep in mind that something is true of these texts."""
        self._write(self._place(*parts), [])

    def _place(self, *parts: str) -> Path:
        return (
            self.folder / f"{hashlib.sha256(chr(0).join(parts).encode(errors='surrogateescape')).hexdigest()[:24]}.json"
        )

    def _read(self, place: Path, kind: Any) -> Any:
        try:
            return msgspec.json.decode(place.read_bytes(), type=kind)
        except (OSError, msgspec.MsgspecError):  # missing, of an earlier form, or damaged: made again
            return None

    def _write(self, place: Path, content: Any) -> None:
        try:
            files.write_text(place, msgspec.json.encode(content).decode())
        except OSError as error:
            _log.warning(
                "checksums cannot be kept in %s (%s): all data are read again next time. Set GHM_DATA_ROOT to a folder "
                "that can be written, and data.root to where the data are",
                self.folder,
                error.strerror,
            )


def combined(names: Iterable[str], found: dict[str, Content]) -> str:
    """One SHA-256 for the names and contents of files, in this order; a missing file counts as such."""
    lines = (f"{found[name].sha256 if name in found else 'missing'} {name}\n" for name in names)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def difference(memory: Memory, root: Path, split: dict[str, Any], source: Path | None = None) -> str | None:
    """What of a split, as a manifest describes it, is otherwise below `root`; None where nothing is.

    Args:
        source: the user's file that the annotations were made from, for the words.
    """
    path = root / split["annotations"]
    own = memory.contents(path.parent, [path.name], images=False).get(path.name)
    if own is None:
        return f"{source or path} is missing"
    if own.sha256 != split["annotations_sha256"]:
        return f"{source or path} has changed"
    names = memory.listing(path, own.sha256)
    found = memory.contents(root / split["folder"], names)
    if combined(names, found) == split["files_sha256"]:
        return None
    missing = [name for name in names if name not in found]
    if set(missing) - set(split["unreadable"]):
        return f"{count(len(missing), 'image')} missing in {root / split['folder']}, for example {missing[0]}"
    return f"images in {root / split['folder']} have changed"


def _stats(root: Path, names: Sequence[str]) -> dict[str, os.stat_result]:
    """The files that are there: a listing of each folder that has more than a few, COCO has 118,287 in one."""
    folders: defaultdict[str, set[str]] = defaultdict(set)
    for name in names:
        parent, _, file = name.rpartition("/")
        folders[parent].add(file)
    found: dict[str, os.stat_result] = {}
    for parent, wanted in folders.items():
        place = root / parent
        if not place.is_dir():
            continue
        prefix = f"{parent}/" if parent else ""
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name in wanted and entry.is_file():  # a broken link is no file
                    found[prefix + entry.name] = entry.stat()
    return {name: found[name] for name in names if name in found}


def _read_all(root: Path, names: Sequence[str], size: int, fault: Fault | None) -> dict[str, Content]:
    bar = tqdm(total=size, desc=f"checksums of {root.name}", unit="B", unit_scale=True, delay=1, leave=False)
    read: dict[str, Content] = {}
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, content in zip(names, pool.map(lambda name: _content(root / name, fault), names), strict=True):
            if content is not None:
                read[name] = content
                bar.update(content.size)
    return read


def _content(path: Path, fault: Fault | None) -> Content | None:
    """Read a file; None where it vanished meanwhile."""
    try:
        stat, now = path.stat(), time.time_ns()
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return Content(0, 0, 0, 0, f"cannot be read: {reason}", reason)
    size, modified, changed, inode = _stamp(stat)
    if max(modified, changed) > now - SETTLED:
        modified = changed = 0
    return Content(size, modified, changed, inode, hashlib.sha256(data).hexdigest(), fault(data) if fault else None)
