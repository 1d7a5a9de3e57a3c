"""A file on its way: what it must be, and what has come of it so far."""

import dataclasses
import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Remote:
    """A file to fetch.

    Raises:
        ValueError: a field cannot be used.
    """

    name: str  # file name it gets
    urls: tuple[str, ...]  # mirrors, tried in turn; none of a file that is only to be verified
    checksum: str | None = None  # "md5:<hex>" or "sha256:<hex>"; the first 8 or more hexadecimal digits are enough
    bytes: int | None = None

    def __post_init__(self) -> None:
        if self.name in ("", ".", "..") or re.search(r"[/\\\0]", self.name):
            raise ValueError(f"name must be a plain file name, got {self.name!r}")
        if not all(re.match(r"(?i)https?://.", url) for url in self.urls):
            raise ValueError(f"urls must be http or https addresses, got {self.urls}")
        if self.checksum is not None:
            algorithm, _, digits = self.checksum.partition(":")
            length = {"md5": 32, "sha256": 64}.get(algorithm, 0)
            if not 8 <= len(digits) <= length or not re.fullmatch("[0-9a-fA-F]*", digits):
                raise ValueError(f"checksum must be md5:<hex> or sha256:<hex>, 8 digits or more, got {self.checksum!r}")
        if self.bytes is not None and self.bytes < 0:
            raise ValueError(f"bytes must not be negative, got {self.bytes}")


@dataclass(frozen=True)
class Origin:
    """Where a part came from, and what the server said of the whole file."""

    url: str
    etag: str | None
    modified: str | None
    total: int | None  # bytes

    @property
    def validator(self) -> str | None:
        """What `If-Range` may carry: a strong ETag, else the date."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


class Part:
    """What has come of a file so far. Its origin is noted before its first byte is written."""

    def __init__(self, remote: Remote, folder: Path):
        self._remote = remote
        self.path = folder / f".{remote.name}.part"
        self._notes = folder / f".{remote.name}.part.json"
        self.origin: Origin | None = None
        with suppress(FileNotFoundError, ValueError, TypeError):  # no notes, or none that can be relied on
            self.origin = Origin(**json.loads(self._notes.read_text(encoding="utf-8")))

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def total(self) -> int | None:
        """Bytes of the whole file, as far as anybody said."""
        return self._remote.bytes if self._remote.bytes is not None or not self.origin else self.origin.total

    def can_go_on(self, url: str) -> bool:
        """Whether bytes of `url` may follow: without a checksum, only on bytes of the same file of the same server."""
        if self.total is not None and self.size > self.total:
            return False
        if self._remote.checksum is not None:
            return True
        return self.origin is not None and self.origin.url == url and self.origin.validator is not None

    def is_whole(self, url: str) -> bool:
        return self.path.exists() and self.size == self.total and self.can_go_on(url)

    def reached(self, url: str) -> int:
        """Bytes that are there, if `url` gave the last of them."""
        return self.size if self.origin and self.origin.url == url else 0

    def note(self, origin: Origin) -> None:
        if origin == self.origin:
            return
        temporary = self._notes.with_name(f"{self._notes.name}.new")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(dataclasses.asdict(origin), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._notes)
        self.origin = origin

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)
        self.origin = None

    def finish(self, target: Path) -> None:
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        self.path.replace(target)
        self._notes.unlink(missing_ok=True)
