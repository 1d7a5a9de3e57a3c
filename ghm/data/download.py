"""Large files over HTTP: resumed after any interruption, and verified before they get their name.

While `name` is under way its bytes are in `.name.part`, written unbuffered so that a killed process loses none, and
what the server said of them is in `.name.part.json`. `.name.lock` keeps other processes out.
"""

import dataclasses
import email.utils
import hashlib
import logging
import random
import re
import time
from dataclasses import dataclass
from pathlib import Path

import requests
import urllib3
from tqdm import tqdm

from ghm.data.part import Origin, Part, Remote
from ghm.errors import InputError
from ghm.files import alone, require_space

_log = logging.getLogger(__name__)

_REMEDY = "fetch it elsewhere and set data.source to the file or its folder"
_BLOCK = 1 << 20  # bytes read at a time, at most
_BIG = 1 << 26  # bytes from which checking takes long enough for a progress bar


@dataclass(frozen=True)
class Patience:
    """How long to put up with a bad server."""

    timeout: float = 30.0  # seconds to connect, and to the next byte
    attempts: int = 5  # without any new byte, before a mirror is given up
    pause: float = 1.0  # seconds before the second attempt; doubled with each further one
    longest_pause: float = 60.0  # seconds; what a server asks for with Retry-After is capped by it too
    slowest_rate: float = 1024.0  # bytes/s below which a connection counts as stalled ...
    window: float = 60.0  # ... measured over so many seconds


_PATIENCE = Patience()


class _PassingError(Exception):
    """An attempt failed in a way that may pass."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait  # seconds the server asks for


class _MirrorError(Exception):
    """A mirror will not give the file."""


def verify(path: Path, remote: Remote) -> str | None:
    """Return what is wrong with a file's size or checksum, or None."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return "it is missing"
    if remote.bytes is not None and size != remote.bytes:
        return f"it has {size} bytes instead of {remote.bytes}"
    if remote.checksum is None:
        return None
    algorithm, _, digits = remote.checksum.lower().partition(":")
    checksum = hashlib.new(algorithm, usedforsecurity=False)
    bar = tqdm(
        total=size, desc=f"checking {remote.name}", unit="B", unit_scale=True, mininterval=2, disable=size < _BIG
    )
    with path.open("rb") as file, bar:
        while block := file.read(_BLOCK):
            checksum.update(block)
            bar.update(len(block))
    if checksum.hexdigest().startswith(digits):
        return None
    return f"its {algorithm} is {checksum.hexdigest()[: len(digits)]} instead of {digits}"


def fetch(remote: Remote, folder: Path, *, patience: Patience = _PATIENCE, remedy: str = _REMEDY) -> Path:
    """Return `folder/name`, whole and verified; fetch it where it is missing or wrong.

    What an earlier call, or a killed one, left of the file is continued where it stopped.

    Raises:
        InputError: no mirror gives the file, or there is no room or no right to write it. `folder/name` is then not
            there; what has come so far stays for the next call, unless it was proven wrong.
    """
    target = folder / remote.name
    try:
        if target.is_dir():
            raise InputError(f"{target} is a folder where a file is to be: move it away")
        if target.exists() and verify(target, remote) is None:
            return target
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder / f".{remote.name}.lock", remote.name):
            if target.exists():
                fault = verify(target, remote)
                if fault is None:
                    return target
                _log.warning("%s is not what it should be (%s): it is fetched afresh", target, fault)
                target.unlink()
            part = Part(remote, folder)
            _fill(part, remote, folder, patience, remedy)
            part.finish(target)
            return target
    except OSError as error:
        raise InputError(
            f"{remote.name} cannot be stored in {folder} ({error.strerror or error}): make room or set the rights, "
            "then start again, what has come so far is kept"
        ) from error


def _fill(part: Part, remote: Remote, folder: Path, patience: Patience, remedy: str) -> None:
    """Bring the whole verified file into `part`, from the first mirror that gives it."""
    if remote.bytes is not None:
        require_space(remote.bytes - part.size, folder, remote.name)
    begun = part.origin.url if part.origin else None
    reasons = []
    with requests.Session() as session:
        # The mirror the part came from goes first: another might have to start over.
        for url in sorted(remote.urls, key=lambda url: url != begun):
            try:
                for chance in (1, 2):
                    _complete(session, url, remote, part, patience)
                    fault = verify(part.path, dataclasses.replace(remote, bytes=part.total))
                    if fault is None:
                        return
                    _log.warning("%s from %s is damaged: %s", remote.name, url, fault)
                    part.discard()
                    if chance == 2:
                        raise _MirrorError(fault)
            except _MirrorError as error:
                reasons.append(f"{url}: {error}")
                _log.warning("%s cannot be had from %s: %s", remote.name, url, error)
    raise InputError(" ".join(f"{remote.name} could not be fetched ({'; '.join(reasons)}): {remedy}".split()))


def _complete(session: requests.Session, url: str, remote: Remote, part: Part, patience: Patience) -> None:
    """Fetch until the body has come to its end. Only bytes beyond the furthest point ever reached count as progress."""
    furthest, idle = part.reached(url), 0
    while not part.is_whole(url):
        try:
            return _attempt(session, url, remote, part, patience)
        except _PassingError as error:
            idle = 0 if part.reached(url) > furthest else idle + 1
            furthest = max(furthest, part.reached(url))
            if idle >= patience.attempts:
                raise _MirrorError(f"{error}, {idle} times in a row") from None
            pause = patience.pause * 2 ** max(idle - 1, 0) * random.uniform(0.75, 1.25)
            pause = min(max(pause, error.wait), patience.longest_pause)
            _log.warning("%s: %s after %d bytes, again in %.1f s", remote.name, error, part.size, pause)
            time.sleep(pause)


def _attempt(session: requests.Session, url: str, remote: Remote, part: Part, patience: Patience) -> None:
    """One request, from where the part ends; returns when the body ended as it should."""
    start = part.size if part.can_go_on(url) else 0
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if part.origin and part.origin.url == url and part.origin.validator:
            headers["If-Range"] = part.origin.validator
    try:
        with session.get(url, headers=headers, stream=True, timeout=patience.timeout) as response:
            if response.status_code == 416 and start:
                return _beyond_the_end(response, remote, part)
            _accept(response, url, start, remote, part)
            _receive(response, part, patience)
    except (requests.Timeout, urllib3.exceptions.TimeoutError):
        raise _PassingError(f"nothing came for {patience.timeout:g} s") from None
    except (requests.RequestException, urllib3.exceptions.HTTPError, UnicodeError) as error:
        # A ValueError is an address, or one redirected to, that cannot be used.
        if isinstance(error, ValueError | requests.TooManyRedirects):
            raise _MirrorError(str(error)) from None
        raise _PassingError(f"the connection failed ({_cause(error)})") from None


def _cause(error: Exception) -> str:
    """The innermost of the messages that requests and urllib3 wrap in each other."""
    inner = error
    while isinstance(inner, Exception):
        error, inner = inner, getattr(inner, "reason", None) or (inner.args[0] if inner.args else None)
    return str(inner or error)


def _beyond_the_end(response: requests.Response, remote: Remote, part: Part) -> None:
    """The server has nothing from the part's end on: the part is the file, or is not of this file."""
    end = re.fullmatch(r"bytes \*/(\d{1,18})", response.headers.get("Content-Range", ""))
    known = part.total is not None or remote.checksum is not None
    if not end or int(end[1]) != part.size or not known or part.total not in (None, part.size):
        part.discard()
        raise _PassingError("the server's file ends before what has come, starting over")


def _accept(response: requests.Response, url: str, start: int, remote: Remote, part: Part) -> None:
    """Judge the head of an answer, and prepare the part for its body."""
    status = response.status_code
    if status == 429 or status >= 500:
        raise _PassingError(f"the server answers {status} {response.reason}", _retry_after(response))
    if status not in (200, 206):
        raise _MirrorError(f"the server answers {status} {response.reason}")
    chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
    length = response.headers.get("Content-Length", "")
    total = int(length) if re.fullmatch(r"\d{1,18}", length) and not chunked else None
    if status == 206:
        sent = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
        total = int(sent[2]) if sent and sent[2] != "*" else part.total
        if not sent or int(sent[1]) != start:
            part.discard()
            raise _PassingError("the server sends another range than was asked for, starting over")
    if remote.bytes is not None and total not in (None, remote.bytes):
        raise _MirrorError(f"the server's file has {total} bytes instead of {remote.bytes}")
    if total is None and not chunked and remote.bytes is None and remote.checksum is None:
        raise _MirrorError("the server does not say how long the file is, so that its end cannot be told")
    headers = response.headers
    origin = Origin(url, headers.get("ETag"), headers.get("Last-Modified"), total)
    if status == 206 and start:
        if not _same_file(origin, remote, part):
            part.discard()
            raise _PassingError("the server's file has changed, starting over")
    else:
        if part.size:
            _log.warning("%s sends %s from its beginning: starting over after %d bytes", url, remote.name, part.size)
        part.discard()
    if total is not None:
        require_space(total - part.size, part.path.parent, remote.name)
    part.note(origin)


def _same_file(now: Origin, remote: Remote, part: Part) -> bool:
    if part.total is not None and now.total != part.total:
        return False
    before = part.origin.validator if part.origin and part.origin.url == now.url else None
    if before is None or now.validator is None:
        return remote.checksum is not None
    return now.validator == before


def _retry_after(response: requests.Response) -> float:
    """Seconds that the server asks for, given as such or as a date."""
    text = response.headers.get("Retry-After", "")
    if text.isdecimal():
        return float(text)
    try:
        return email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0


def _receive(response: requests.Response, part: Part, patience: Patience) -> None:
    """Write the body as it comes, up to its end."""
    size, total = part.size, part.total
    since, before = time.monotonic(), size
    bar = tqdm(
        total=total, initial=size, desc=part.path.name[1:-5], unit="B", unit_scale=True, mininterval=2, leave=False
    )
    with part.path.open("ab", buffering=0) as file, bar:
        # read1 gives what is there: nothing waits in memory for a block to fill.
        while block := response.raw.read1(_BLOCK, decode_content=False):
            rest = memoryview(block)
            while rest:  # an unbuffered write may take a part only
                rest = rest[file.write(rest) :]
            size += len(block)
            bar.update(len(block))
            if total is not None and size > total:
                return  # too long: verify will say so
            elapsed = time.monotonic() - since
            if elapsed >= patience.window:
                if size - before < patience.slowest_rate * elapsed:
                    raise _PassingError(f"the connection stalled at {(size - before) / elapsed:.0f} bytes/s")
                since, before = time.monotonic(), size
    if total is not None and size < total:
        raise _PassingError(f"the server stopped after {size} of {total} bytes")
