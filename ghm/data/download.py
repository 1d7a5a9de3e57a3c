"""Large files over HTTP: resumed after an interruption, and verified before they get their name.

While `name` is under way its bytes are in `.name.part`; `.name.lock` keeps other processes out. Only a file with a
published checksum is resumed: the checksum tells whether the two pieces belong together.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3 import Retry

from ghm.errors import InputError
from ghm.files import digest, locked, require_space

_log = logging.getLogger(__name__)

_REMEDY = "fetch it elsewhere and set data.source to the file or its folder"
TIMEOUT = 30.0  # seconds to connect, and to the next byte
ATTEMPTS = 5  # in a row without any new byte, before a mirror is given up
PAUSE = 1.0  # seconds before the third attempt to get an answer; doubled with each further one
_PASSING = (408, 429, 500, 502, 503, 504)  # statuses that may pass: too slow, too many requests, out of order


@dataclass(frozen=True)
class Remote:
    """A file to fetch."""

    name: str  # file name it gets
    urls: tuple[str, ...]  # mirrors, tried in turn; none of a file that is only to be verified
    checksum: str | None = None  # "md5:<hex>" or "sha256:<hex>"; the first 8 or more hexadecimal digits are enough
    bytes: int | None = None


def part_size(remote: Remote, folder: Path) -> int:
    """How many bytes of a file an interrupted `fetch` has left in `folder`."""
    return _size(_part(remote, folder))


def verify(path: Path, remote: Remote) -> str | None:
    """Return what is wrong with a file's size or checksum, or None."""
    if not path.is_file():
        return "it is missing"
    if remote.bytes is not None and _size(path) != remote.bytes:
        return f"it has {_size(path)} bytes instead of {remote.bytes}"
    if remote.checksum is None:
        return None
    algorithm, _, digits = remote.checksum.lower().partition(":")
    actual = digest(path, algorithm)[: len(digits)]
    return None if actual == digits else f"its {algorithm} is {actual} instead of {digits}"


def fetch(remote: Remote, folder: Path, *, remedy: str = _REMEDY) -> Path:
    """Return `folder/name`, whole and verified; fetch it where it is missing or wrong.

    Raises:
        InputError: no mirror gives the file, or there is no room or no right to write it. `folder/name` is then not
            there; what has come so far stays for the next call.
    """
    target, part, reasons = folder / remote.name, _part(remote, folder), []
    retry = Retry(ATTEMPTS - 1, status_forcelist=_PASSING, backoff_factor=PAUSE, respect_retry_after_header=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f".{remote.name}.lock", remote.name), requests.Session() as session:
            for scheme in ("http://", "https://"):
                session.mount(scheme, HTTPAdapter(max_retries=retry))
            fault = verify(target, remote)
            if fault is None:
                return target
            if target.exists():
                _log.warning("%s is not what it should be (%s): it is fetched afresh", target, fault)
                target.unlink()
            for url in remote.urls:
                try:
                    _fetch_from(session, url, remote, part)
                    return part.replace(target)
                except (requests.RequestException, UnicodeError) as error:
                    reasons.append(f"{url}: {error}")
                    _log.warning("%s cannot be had from %s: %s", remote.name, url, error)
    except OSError as error:
        raise InputError(
            f"{remote.name} cannot be stored in {folder} ({error.strerror or error}): make room or set the rights, "
            "then start again, what has come so far is kept"
        ) from None
    raise InputError(" ".join(f"{remote.name} could not be fetched ({'; '.join(reasons)}): {remedy}".split()))


def _part(remote: Remote, folder: Path) -> Path:
    return folder / f".{remote.name}.part"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _fetch_from(session: requests.Session, url: str, remote: Remote, part: Path) -> None:
    """Bring the whole verified file into `part`.

    Raises:
        requests.RequestException: the mirror does not give it.
    """
    if remote.checksum is None:
        part.unlink(missing_ok=True)
    failures, furthest = 0, _size(part)
    while remote.bytes is None or _size(part) != remote.bytes or not part.exists():
        cut_off = _receive(session, url, remote, part)
        if cut_off is None:
            break
        failures = 0 if _size(part) > furthest else failures + 1
        furthest = max(furthest, _size(part))
        if failures >= ATTEMPTS:
            raise cut_off
        _log.warning("%s: %s after %d bytes, again", remote.name, cut_off, _size(part))
    if fault := verify(part, remote):
        part.unlink(missing_ok=True)
        raise requests.RequestException(fault)


def _receive(session: requests.Session, url: str, remote: Remote, part: Path) -> requests.RequestException | None:
    """One request, from where the part ends; return why its body was cut off, None where it came to its end."""
    start = _size(part) if remote.checksum else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        status, length = response.status_code, response.headers.get("Content-Length", "")
        if status == 416 and start:
            return None  # nothing comes after the part: it is the file, or not of this file
        response.raise_for_status()
        if status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink(missing_ok=True)
            raise requests.RequestException("the server sends another range than was asked for")
        start = start if status == 206 else 0
        total = start + int(length) if length.isdecimal() else None
        if remote.bytes is not None and total not in (None, remote.bytes):
            raise requests.RequestException(f"the server's file has {total} bytes instead of {remote.bytes}")
        require_space((total or start) - start, part.parent, remote.name)
        bar = tqdm(None, remote.name, total, initial=start, unit="B", unit_scale=True, mininterval=2, leave=False)
        with part.open("ab" if start else "wb") as file, bar:
            try:
                for block in response.iter_content(1 << 16):
                    file.write(block)
                    bar.update(len(block))
            except requests.RequestException as error:
                return error
    return None
