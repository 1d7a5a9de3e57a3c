"""Laws of downloads, against a server that misbehaves."""

import hashlib
import multiprocessing
import random
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ghm.data import download
from ghm.data.download import Remote, fetch, verify
from ghm.errors import InputError
from tests.data.conftest import Reply, Server, noise, serving

FORK = multiprocessing.get_context("fork")  # a child that imports everything anew takes seconds
SIZE = 1_000_003
UNKNOWN = [{}, {"checksum": None, "bytes": None}]


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name, value in (("TIMEOUT", 0.3), ("ATTEMPTS", 3), ("PAUSE", 0.001)):
        monkeypatch.setattr(download, name, value)


def remote(server: Server, *paths: str, **changes: Any) -> Remote:
    """The server's file with everything known about it, but for `changes`."""
    checksum = "sha256:" + hashlib.sha256(server.content).hexdigest()[:8]
    whole = Remote("file.zip", tuple(server.url(path) for path in paths or ("/",)), checksum, len(server.content))
    return replace(whole, **changes)


def assert_whole(folder: Path, server: Server) -> None:
    assert (folder / "file.zip").read_bytes() == server.content
    assert {path.name for path in folder.iterdir()} <= {"file.zip", ".file.zip.lock"}


def refusal(wanted: Remote, folder: Path) -> str:
    """The one sentence with which a file is not fetched; nothing that looks like the file may be left."""
    with pytest.raises(InputError) as caught:
        fetch(wanted, folder)
    assert not (folder / "file.zip").exists()
    assert "file.zip" in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("changes", UNKNOWN)
@pytest.mark.parametrize("size", [0, SIZE])
@pytest.mark.parametrize("reply", [Reply(), Reply(chunked=True)])
def test_a_good_server_is_asked_once(tmp_path: Path, changes: dict[str, Any], size: int, reply: Reply):
    with serving(noise(size), reply) as server:
        for _ in range(2):
            assert fetch(remote(server, **changes), tmp_path) == tmp_path / "file.zip"
        assert len(server.log) <= 1 and not any(request.range for request in server.log)
        assert_whole(tmp_path, server)


@pytest.mark.parametrize("changes", UNKNOWN)
@pytest.mark.parametrize("chunked", [False, True])
def test_cut_connections_are_continued_where_they_were_cut_if_a_checksum_will_tell(
    tmp_path: Path, changes: dict[str, Any], chunked: bool
):
    dice = random.Random(0)
    cuts = [Reply(cut=dice.randrange(1 << 16, SIZE // 6), chunked=chunked) for _ in range(3)]
    with serving(noise(SIZE), *cuts, Reply(chunked=chunked)) as server:
        fetch(remote(server, **changes), tmp_path)
        assert_whole(tmp_path, server)
        assert len(server.log) == 4
        starts = [request.first for request in server.log]
        if "checksum" in changes:
            assert starts == [0] * 4
        else:
            assert starts == sorted(set(starts))


@pytest.mark.parametrize(
    "script",
    [
        [Reply(status=500), Reply(status=429), Reply()],
        [Reply(cut=70_000, ranges=False), Reply(ranges=False)],
        [Reply(cut=70_000, block=10_000, pause=0.05), Reply()],
        [Reply(status=302, headers={"Location": "/other"})],
        [Reply(chunked=True, cut=SIZE), Reply(chunked=True)],
        [Reply(cut=0), Reply(cut=70_000), Reply(cut=0), Reply(cut=0), Reply(cut=140_000), Reply(cut=0), Reply()],
    ],
)
@pytest.mark.parametrize("changes", [{}, {"checksum": None}])
def test_a_server_that_recovers_gives_the_file(tmp_path: Path, script: list[Reply], changes: dict[str, Any]):
    with serving(noise(SIZE), *script) as server:
        fetch(remote(server, **changes), tmp_path)
        assert_whole(tmp_path, server)


@pytest.mark.parametrize(
    "second",
    [Reply(content=bytes(SIZE)), Reply(status=416), Reply(headers={"Content-Range": "bytes 40-99/1000003"})],
)
def test_pieces_that_do_not_fit_are_refused_and_the_next_call_begins_anew(tmp_path: Path, second: Reply):
    with serving(noise(SIZE), Reply(cut=70_000), second, Reply()) as server:
        refusal(remote(server), tmp_path)
        fetch(remote(server), tmp_path)
        assert_whole(tmp_path, server)


@pytest.mark.parametrize(
    ("changes", "script", "words"),
    [
        ({}, [Reply(status=404)], "404 Client Error: Not Found"),
        ({}, [Reply(status=503)], "too many 503 error responses"),
        ({}, [Reply(status=302, headers={"Location": "/bad"})], "redirects"),
        ({}, [Reply(status=302, headers={"Location": "/\xff"})], "codec"),
        ({}, [Reply(cut=99_000), Reply(cut=0)], "more expected"),
        ({}, [Reply(cut=99, chunked=True), Reply(cut=0, chunked=True)], "ended prematurely"),
        ({}, [Reply(block=1, pause=0.5, cut=1)], "timed out"),
        ({}, [Reply(content=noise(SIZE)[1:])], "has 1000002 bytes instead of 1000003"),
        ({}, [Reply(content=noise(SIZE) + b"1", chunked=True)], "instead of 1000003"),
        ({}, [Reply(flip=77)], "its sha256 is"),
        ({"bytes": None}, [Reply(headers={"Content-Length": "90"})], "its sha256 is"),
    ],
)
def test_a_hopeless_server_is_given_up_and_the_next_mirror_asked(
    tmp_path: Path, changes: dict[str, Any], script: list[Reply], words: str
):
    with serving(noise(SIZE), bad=script, good=[Reply()]) as server:
        message = refusal(remote(server, "/bad", **changes), tmp_path / "alone")
        assert words in message and server.url("/bad") in message
        assert message.endswith(": fetch it elsewhere and set data.source to the file or its folder")
    with serving(noise(SIZE), bad=script, good=[Reply()]) as server:
        fetch(remote(server, "/bad", "/good", **changes), tmp_path)
        assert (tmp_path / "file.zip").read_bytes() == server.content


@pytest.mark.parametrize("changes", [{}, {"checksum": None}])
def test_another_mirror_or_a_later_call_continues_a_part_if_a_checksum_will_tell(
    tmp_path: Path, changes: dict[str, Any]
):
    with serving(noise(SIZE), a=[Reply(cut=70_000), Reply(status=404)], b=[Reply(status=404), Reply()]) as server:
        refusal(remote(server, "/a", "/b", **changes), tmp_path)
        fetch(remote(server, "/b", **changes), tmp_path)
        assert bool(server.log[-2].first) == bool(server.log[-1].first) == (not changes)
        assert_whole(tmp_path, server)


def test_a_whole_part_needs_no_server_and_a_wrong_file_under_the_name_is_replaced(tmp_path: Path):
    with serving(noise(SIZE)) as server:
        (tmp_path / ".file.zip.part").write_bytes(server.content)
        fetch(remote(server), tmp_path)
        assert not server.log
        (tmp_path / "file.zip").write_bytes(bytes(SIZE))
        fetch(remote(server), tmp_path)
        assert_whole(tmp_path, server)


def test_checksums_are_compared_as_far_as_they_are_given(tmp_path: Path):
    path = tmp_path / "x"
    path.write_bytes(b"x")
    md5, sha256 = hashlib.md5(b"x").hexdigest(), hashlib.sha256(b"x").hexdigest()
    for checksum in (f"md5:{md5}", f"sha256:{sha256[:9].upper()}", None):
        assert verify(path, Remote("x", ("http://x",), checksum, 1)) is None
    assert verify(path, Remote("x", ("http://x",), "md5:00000000")) == f"its md5 is {md5[:8]} instead of 00000000"


def test_room_is_needed_for_what_is_missing_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=SIZE - 70))
    with serving(noise(SIZE)) as server:
        assert f"1.00MB more in {tmp_path}, where 1.00MB are free" in refusal(remote(server), tmp_path)
        assert not (tmp_path / ".file.zip.part").exists()
        (tmp_path / ".file.zip.part").write_bytes(server.content[:70])
        fetch(remote(server), tmp_path)
        assert_whole(tmp_path, server)


def test_a_folder_in_the_way_and_one_that_cannot_be_made_are_told(tmp_path: Path):
    wanted = Remote("file.zip", ("http://127.0.0.1:1",))
    (tmp_path / "file.zip").mkdir()
    (tmp_path / "taken").write_text("")
    for folder in (tmp_path, tmp_path / "taken" / "x"):
        with pytest.raises(InputError, match=f"file.zip cannot be stored in {folder}"):
            fetch(wanted, folder)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.0005)


def test_of_two_processes_one_fetches_and_the_other_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with serving(noise(SIZE), Reply(block=8192, pause=0.005)) as server:
        child = FORK.Process(target=fetch, args=(remote(server), tmp_path))
        child.start()
        wait_for((tmp_path / ".file.zip.part").exists)
        assert fetch(remote(server), tmp_path) == tmp_path / "file.zip"
        child.join()
        assert child.exitcode == 0 and len(server.log) == 1
        assert "another process works on file.zip: waiting" in caplog.text
        assert_whole(tmp_path, server)


def test_a_download_killed_ten_times_goes_on_where_it_was(tmp_path: Path):
    part = tmp_path / ".file.zip.part"

    def stored() -> int:
        return part.stat().st_size if part.exists() else 0

    with serving(noise(8_000_000), Reply(block=1 << 16, pause=0.001)) as server:
        for kill in range(10):
            asked, before = len(server.log), stored()
            child = FORK.Process(target=fetch, args=(remote(server), tmp_path))
            child.start()
            if kill:
                wait_for(lambda goal=before + 200_000: stored() >= goal)  # else also before the first byte
            child.kill()
            child.join()
            assert not (tmp_path / "file.zip").exists()
            assert [request.first for request in server.log[asked:]] in ([], [before])
        before = stored()
        fetch(remote(server), tmp_path)
        assert server.log[-1].first == before > 0
        assert_whole(tmp_path, server)


@pytest.mark.parametrize("seed", range(12))
def test_any_mix_of_faults_gives_the_right_file_or_none(tmp_path: Path, seed: int):
    dice = random.Random(seed)

    def any_reply() -> Reply:
        wrong = dice.choice([{}, {"Content-Length": None}, {"Content-Length": "1"}, {"Content-Range": "bytes 5-9/x"}])
        return Reply(
            status=dice.choice([None] * 8 + [206, 404, 416, 429, 503]),
            headers=dice.choice([wrong, {}, {}]),
            content=dice.choice([None] * 6 + [noise(SIZE - 1), noise(SIZE + 1), b"<html>"]),
            cut=dice.choice([None, None, 0, 10, SIZE - 10, dice.randrange(SIZE)]),
            flip=dice.choice([None] * 8 + [0]),
            ranges=dice.random() < 0.8,
            chunked=dice.random() < 0.2,
        )

    # The last reply is kept: if it were cut after some bytes, it would take as many requests as there are bytes.
    scripts = {
        name: [any_reply() for _ in range(dice.randrange(9))] + [replace(any_reply(), cut=dice.choice([None, 0]))]
        for name in ("a", "b")
    }
    with serving(noise(SIZE), **scripts) as server:
        for _ in range(2):
            with suppress(InputError):
                fetch(remote(server, "/a", "/b", **dice.choice([{}, {"bytes": None}])), tmp_path)
            if (tmp_path / "file.zip").exists():
                assert_whole(tmp_path, server)
