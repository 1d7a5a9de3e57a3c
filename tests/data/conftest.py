"""What several tests of data sets need: an empty repository, a small COCO data set to be spoilt, a server."""

import json
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

import numpy as np
import pytest
from PIL import Image

from ghm import params
from ghm.data import manifest
from ghm.data.manifest import Split
from tests.conftest import ROOT

SHARED = ROOT.parent / "shared" / "data"  # real data sets beside the repository, where there is a copy
SPLITS = ("train", "val")
SETTINGS: dict[str, Any] = {"layout": None, "val_share": 0.15, "test_share": 0.15, "split_seed": 0}  # of `custom`
PLACES = {name: Split(f"annotations/{name}.json", name) for name in SPLITS}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an empty repository, which is the current one, and of a store of its own."""
    monkeypatch.setenv("GHM_DATA_ROOT", str(tmp_path / "store"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def parameters(
    name: str, check_images: Any = "sample", custom: params.Custom | None = None, **data: Any
) -> params.Params:
    """The default parameters with another data set, and a split that it has to judge on."""
    loaded = params.load(ROOT / "params.yaml")
    split: Any = "test" if name == "voc" else "val"
    return replace(
        loaded,
        data=replace(loaded.data, name=name, **data),
        custom=custom or loaded.custom,
        evaluate=replace(loaded.evaluate, split=split),
        machine=replace(loaded.machine, check_images=check_images),
    )


def content(split: str = "train") -> dict[str, Any]:
    """Two images and three boxes; categories in an order that is not that of their ids."""
    return {
        "images": [{"id": n, "file_name": f"{split}{n}.jpg", "width": 40, "height": 30} for n in (1, 2)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 3, 3], "area": 9, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 3, "bbox": [5.5, 5, 20, 25], "area": 1100.0, "iscrowd": 0},
            {"id": 3, "image_id": 2, "category_id": 7, "bbox": [0, 0, 40, 30], "area": 1200, "segmentation": [[1, 2]]},
        ],
        "categories": [{"id": 7, "name": "seven", "supercategory": "odd"}, {"id": 3, "name": "three"}],
    }


def write(root: Path, split: str, file: dict[str, Any], folder: str | None = None, name: str | None = None) -> None:
    """Write `root/annotations/<name or split>.json`, and images into `root/<folder>` which do not depend on `file`."""
    path = root / "annotations" / f"{name or split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(file))
    for image in content(split)["images"]:
        path = root / (folder or split) / image["file_name"]
        path.parent.mkdir(exist_ok=True)
        noise = np.random.default_rng([image["id"], len(split)]).integers(0, 255, (30, 40, 3), np.uint8)
        Image.fromarray(noise).save(path)


def write_coco(root: Path) -> Path:
    """A data set with the layout of COCO."""
    for split in SPLITS:
        write(root, split, content(split), folder=f"{split}2017", name=f"instances_{split}2017")
    return root


def describe(
    root: Path, splits: dict[str, Split] = PLACES, check_images: str = "all", max_bad_images: int = 0
) -> dict[str, Any]:
    """The manifest of the files below `root`, read for the first time."""
    memory = root / ".memory"
    return manifest.describe("own", root, splits, memory, check_images=check_images, max_bad_images=max_bad_images)


@cache
def noise(size: int) -> bytes:
    return random.Random(0).randbytes(size)


@dataclass(frozen=True)
class Reply:
    """How one request is answered. The default is as it should be."""

    status: int | None = None  # None: 200 or 206, as the request asks
    headers: Mapping[str, str | None] = field(default_factory=dict)  # instead of the right ones; None: left out
    content: bytes | None = None  # instead of the server's
    cut: int | None = None  # bytes of the body after which the connection ends
    flip: int | None = None  # byte of the content that is wrong
    ranges: bool = True  # whether ranges are honoured
    chunked: bool = False
    block: int = 1 << 16  # bytes sent at a time, and
    pause: float = 0.0  # seconds before each


@dataclass
class Request:
    """What was asked for and what was sent."""

    path: str
    range: str | None
    first: int = 0  # byte of the file that the body begins with


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
        request = Request(self.path, self.headers.get("Range"))
        server = self.server
        assert isinstance(server, Server)
        reply = server.next_reply(request)
        content = bytearray(server.content if reply.content is None else reply.content)
        if reply.flip is not None:
            content[reply.flip] ^= 1
        if reply.ranges and request.range:
            request.first = int(request.range.removeprefix("bytes=").removesuffix("-"))
        body = bytes(content[request.first :])
        status = reply.status or (206 if request.first and body else 416 if request.first else 200)
        headers: dict[str, str | None] = {"Content-Length": str(len(body)), "Connection": "close"}
        if status == 206:
            headers["Content-Range"] = f"bytes {request.first}-{len(content) - 1}/{len(content)}"
        elif status != 200:
            body = b""
            headers["Content-Length"] = "0"
        if reply.chunked:
            headers |= {"Content-Length": None, "Transfer-Encoding": "chunked"}
        self.send_response(status)
        for name, value in {**headers, **reply.headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self._send(reply, body)

    def _send(self, reply: Reply, body: bytes) -> None:
        end = len(body) if reply.cut is None else min(reply.cut, len(body))
        for start in range(0, end, reply.block):
            block = body[start : min(start + reply.block, end)]
            time.sleep(reply.pause)
            self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if reply.chunked else block)
        if reply.chunked and reply.cut is None:
            self.wfile.write(b"0\r\n\r\n")


@contextmanager
def serving(content: bytes, *script: Reply, **scripts: list[Reply]) -> Iterator[Server]:
    """Serve `content` under "/" by `script`, and under "/<name>" by the scripts parameters by name."""
    server = Server(content, {"/": list(script)} | {f"/{name}": replies for name, replies in scripts.items()})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
