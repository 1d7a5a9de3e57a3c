"""An HTTP server on the loopback device that misbehaves by script, and what its clients are asked."""

import hashlib
import random
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ghm.data.download import Patience, Remote, fetch
from ghm.errors import InputError

SIZE = 100_003
HASTY = Patience(timeout=0.3, attempts=3, pause=0.001, longest_pause=0.01)


@dataclass(frozen=True)
class Reply:
    """How one request is answered. The default is as it should be."""

    status: int | None = None  # None: 200 or 206, as the request asks
    headers: Mapping[str, str | None] = field(default_factory=dict)  # instead of the right ones; None: left out
    content: bytes | None = None  # instead of the server's
    cut: int | None = None  # bytes of the body after which the connection ends
    flip: int | None = None  # byte of the content that is wrong
    ranges: bool = True  # whether ranges are honoured, and
    if_range: bool = True  # whether only for the file that `If-Range` names
    etag: str | None = '"1"'
    chunked: bool = False
    block: int = 1 << 16  # bytes sent at a time, and
    pause: float = 0.0  # seconds before each


@dataclass
class Request:
    """What was asked for and what was sent."""

    path: str
    headers: dict[str, str]
    status: int = 0
    first: int = 0  # byte of the file that the body begins with
    sent: int = 0  # bytes of the body

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


class Server(ThreadingHTTPServer):
    """Serves one content under every path, by the script of the path; after a script's end its last reply is kept."""

    daemon_threads = False  # so that closing waits for them

    def __init__(self, content: bytes, scripts: dict[str, list[Reply]]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = content
        self.log: list[Request] = []
        self._scripts = {path: list(script) for path, script in scripts.items()}
        self._lock = threading.Lock()

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def next_reply(self, request: Request) -> Reply:
        with self._lock:
            self.log.append(request)
            script = self._scripts.get(request.path, [])
            return (script.pop(0) if len(script) > 1 else script[0]) if script else Reply()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.close_connection = True
        request = Request(self.path, {name.lower(): value for name, value in self.headers.items()})
        server = self.server
        assert isinstance(server, Server)
        reply = server.next_reply(request)
        content = bytearray(server.content if reply.content is None else reply.content)
        if reply.flip is not None:
            content[reply.flip] ^= 1
        self._respond(request, reply, bytes(content))

    def _respond(self, request: Request, reply: Reply, content: bytes) -> None:
        unchanged = not reply.if_range or request.headers.get("if-range", reply.etag) == reply.etag
        if reply.ranges and request.range and unchanged:
            request.first = int(request.range.removeprefix("bytes=").removesuffix("-"))
        ranged = request.first > 0
        body = content[request.first :]
        request.status = reply.status or (206 if ranged and body else 416 if ranged else 200)
        headers: dict[str, str | None] = {"Content-Length": str(len(body)), "ETag": reply.etag, "Connection": "close"}
        if request.status == 206:
            headers["Content-Range"] = f"bytes {request.first}-{len(content) - 1}/{len(content)}"
        elif request.status == 416:
            headers["Content-Range"] = f"bytes */{len(content)}"
        elif request.status != 200:
            body = b""
            headers["Content-Length"] = "0"
        if reply.chunked:
            headers |= {"Content-Length": None, "Transfer-Encoding": "chunked"}
        self.send_response(request.status)
        for name, value in {**headers, **reply.headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self._send(request, reply, body)

    def _send(self, request: Request, reply: Reply, body: bytes) -> None:
        end = len(body) if reply.cut is None else min(reply.cut, len(body))
        for start in range(0, end, reply.block):
            block = body[start : min(start + reply.block, end)]
            time.sleep(reply.pause)
            self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if reply.chunked else block)
            request.sent += len(block)
        if reply.chunked and reply.cut is None:
            self.wfile.write(b"0\r\n\r\n")


@contextmanager
def serving(content: bytes, *script: Reply, **scripts: list[Reply]) -> Iterator[Server]:
    """Serve `content` under "/" by `script`, and under "/<name>" by the scripts given by name."""
    server = Server(content, {"/": list(script)} | {f"/{name}": replies for name, replies in scripts.items()})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@cache
def content(size: int = SIZE) -> bytes:
    return random.Random(0).randbytes(size)


def remote(server: Server, *paths: str, **changes: Any) -> Remote:
    """The server's file with everything known about it, but for `changes`."""
    checksum = "sha256:" + hashlib.sha256(server.content).hexdigest()[:8]
    whole = Remote("file.zip", tuple(server.url(path) for path in paths or ("/",)), checksum, len(server.content))
    return replace(whole, **changes)


def assert_whole(folder: Path, server: Server) -> None:
    assert (folder / "file.zip").read_bytes() == server.content
    assert {path.name for path in folder.iterdir()} <= {"file.zip", ".file.zip.lock"}


def refusal(wanted: Remote, folder: Path, patience: Patience = HASTY) -> str:
    """The one sentence with which a file is not fetched; nothing that looks like the file may be left."""
    with pytest.raises(InputError) as caught:
        fetch(wanted, folder, patience=patience)
    assert not (folder / "file.zip").exists()
    assert "file.zip" in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)
