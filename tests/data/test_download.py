"""Laws of downloads, against a server that misbehaves."""

import errno
import hashlib
import io
import logging
import multiprocessing
import random
import shutil
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ghm.data import download
from ghm.data.download import Patience, Remote, fetch, verify
from ghm.errors import InputError
from tests.data.server import HASTY, SIZE, Reply, assert_whole, content, refusal, remote, serving

FORK = multiprocessing.get_context("fork")  # a child that imports everything anew takes seconds


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("os.fsync", lambda number: None)  # only a power failure could tell


UNKNOWN = [{}, {"checksum": None}, {"bytes": None}, {"checksum": None, "bytes": None}]


@pytest.mark.parametrize("changes", UNKNOWN)
@pytest.mark.parametrize("size", [0, SIZE])
@pytest.mark.parametrize("reply", [Reply(), Reply(chunked=True)])
def test_a_good_server_is_asked_once(tmp_path: Path, changes: dict[str, Any], size: int, reply: Reply):
    with serving(content(size), reply) as server:
        assert fetch(remote(server, **changes), tmp_path, patience=HASTY) == tmp_path / "file.zip"
        assert fetch(remote(server, **changes), tmp_path, patience=HASTY) == tmp_path / "file.zip"
        assert [request.range for request in server.log] == [None]
        assert server.log[0].headers["accept-encoding"] == "identity"
        assert_whole(tmp_path, server)


@pytest.mark.parametrize("changes", UNKNOWN)
@pytest.mark.parametrize(("seed", "chunked"), [(0, False), (1, True)])
def test_cut_connections_are_continued_where_they_were_cut(
    tmp_path: Path, changes: dict[str, Any], seed: int, chunked: bool
):
    dice = random.Random(seed)
    cuts = [Reply(cut=dice.randrange(1, SIZE // 6), chunked=chunked) for _ in range(5)]
    with serving(content(), *cuts, Reply(chunked=chunked)) as server:
        fetch(remote(server, **changes), tmp_path, patience=HASTY)
        assert_whole(tmp_path, server)
        assert len(server.log) == 6
        for before, after in zip(server.log, server.log[1:], strict=False):
            assert after.range == f"bytes={before.first + before.sent}-"
            assert after.headers["if-range"] == '"1"'


@pytest.mark.parametrize(
    "script",
    [
        [Reply(status=503, headers={"Retry-After": "0"}), Reply()],
        [Reply(status=500), Reply(status=429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), Reply()],
        [Reply(cut=0), Reply(cut=7), Reply(cut=0), Reply(cut=0), Reply(cut=9), Reply(cut=0), Reply()],
        [Reply(cut=50), Reply(headers={"Content-Range": "bytes 40-99/100003"}), Reply()],
        [Reply(cut=50), Reply(headers={"Content-Range": None}), Reply()],
        [Reply(cut=50), Reply(status=416), Reply()],
        [Reply(cut=50, ranges=False), Reply(ranges=False)],
        [Reply(cut=50, content=bytes(SIZE)), Reply(etag='"2"')],
        [Reply(cut=50, content=bytes(SIZE)), Reply(etag='"2"', if_range=False), Reply(etag='"2"')],
        [Reply(cut=50, etag=None, headers={"Last-Modified": "x"}), Reply(etag=None, headers={"Last-Modified": "x"})],
        [Reply(cut=50, etag=None, content=bytes(SIZE)), Reply(etag=None), Reply(etag=None)],
        [Reply(cut=50, block=10, pause=0.05), Reply()],
        [Reply(status=302, headers={"Location": "/other"})],
        [Reply(status=302, headers={"Location": "/cut"})],
        [Reply(chunked=True, cut=SIZE), Reply(chunked=True)],
    ],
)
@pytest.mark.parametrize("changes", [{}, {"checksum": None}])
def test_a_server_that_recovers_gives_the_file(tmp_path: Path, script: list[Reply], changes: dict[str, Any]):
    with serving(content(), *script, cut=[Reply(cut=99), Reply()]) as server:
        fetch(remote(server, **changes), tmp_path, patience=HASTY)
        assert_whole(tmp_path, server)


@pytest.mark.parametrize(
    ("changes", "script", "words"),
    [
        ({}, [Reply(status=404)], "answers 404 Not Found"),
        ({}, [Reply(status=503)], "answers 503 Service Unavailable, 3 times in a row"),
        ({}, [Reply(status=302, headers={"Location": "/bad"})], "redirects"),
        ({}, [Reply(status=302, headers={"Location": "ftp://127.0.0.1/"})], "ftp"),
        ({}, [Reply(status=302, headers={"Location": "/\xff"})], "codec"),
        (
            {},
            [Reply(cut=50), Reply(status=206, headers={"Content-Range": "bytes 50-99/" + "9" * 5000})],
            "another range",
        ),
        ({}, [Reply(cut=99), Reply(cut=0)], "IncompleteRead(0 bytes read, 99904 more expected)), 3 times"),
        ({}, [Reply(cut=9, ranges=False)], "3 times in a row"),
        ({}, [Reply(cut=99, chunked=True), Reply(cut=0, chunked=True)], "the connection failed"),
        ({}, [Reply(block=1, pause=0.5, cut=1)], "nothing came for 0.3 s"),
        ({}, [Reply(content=content()[1:])], "has 100002 bytes instead of 100003"),
        ({}, [Reply(content=content() + b"1", chunked=True)], "instead of 100003"),
        ({}, [Reply(flip=77)], "its sha256 is"),
        ({}, [Reply(headers={"Content-Length": "90"})], "has 90 bytes instead of 100003"),
        ({"bytes": None}, [Reply(headers={"Content-Length": "90"})], "its sha256 is"),
        ({"bytes": None}, [Reply(headers={"Content-Length": "100004"})], "the"),
        ({"bytes": None}, [Reply(headers={"Content-Length": None}, cut=99)], "its sha256 is"),
        ({"checksum": None}, [Reply(headers={"Content-Length": None}, cut=99), Reply(cut=0)], "3 times in a row"),
        ({"checksum": None, "bytes": None}, [Reply(headers={"Content-Length": None})], "its end cannot be told"),
        ({"checksum": None, "bytes": None}, [Reply(headers={"Content-Length": "100004"})], "the"),
        ({}, [Reply(cut=50), Reply(headers={"Content-Range": "bytes 1-2/3"}, ranges=True, cut=50)], "3 times in a row"),
    ],
)
def test_a_hopeless_server_is_given_up_and_the_next_mirror_asked(
    tmp_path: Path, changes: dict[str, Any], script: list[Reply], words: str
):
    with serving(content(), bad=script, good=[Reply()]) as server:
        told = refusal(remote(server, "/bad", **changes), tmp_path / "alone")
        assert words in told
        assert server.url("/bad") in told
        assert told.endswith(": fetch it elsewhere and set data.source to the file or its folder")
    with serving(content(), bad=script, good=[Reply()]) as server:
        fetch(remote(server, "/bad", "/good", **changes), tmp_path, patience=HASTY)
        assert (tmp_path / "file.zip").read_bytes() == content()


def test_every_mirror_and_its_reason_are_named_with_the_given_remedy(tmp_path: Path):
    with serving(content(), a=[Reply(status=404)], b=[Reply(status=403)]) as server:
        closed = "http://127.0.0.1:1/c"
        wanted = replace(remote(server, "/a", "/b"), urls=(server.url("/a"), server.url("/b"), closed))
        with pytest.raises(InputError) as caught:
            fetch(wanted, tmp_path, patience=HASTY, remedy="look\nelsewhere")
    assert f"{server.url('/a')}: the server answers 404 Not Found; {server.url('/b')}: the" in str(caught.value)
    assert "Connection refused" in str(caught.value)
    assert str(caught.value).endswith(": look elsewhere")


def test_a_wrong_length_is_noticed_before_anything_is_fetched(tmp_path: Path):
    with serving(content()) as server:
        refusal(remote(server, bytes=5), tmp_path)
        assert not (tmp_path / ".file.zip.part").exists()
        assert len(server.log) == 1


def test_a_file_with_flipped_bits_is_fetched_once_more_from_the_beginning(tmp_path: Path):
    with serving(content(), Reply(flip=3), Reply()) as server:
        fetch(remote(server), tmp_path, patience=HASTY)
        assert [request.range for request in server.log] == [None, None]
        assert_whole(tmp_path, server)


def test_a_stalled_trickle_is_left_and_continued(tmp_path: Path):
    patience = replace(HASTY, slowest_rate=1e6, window=0.05)
    with serving(content(), Reply(block=5, pause=0.01), Reply()) as server:
        fetch(remote(server), tmp_path, patience=patience)
        assert len(server.log) == 2 and server.log[1].first > 0
        assert_whole(tmp_path, server)


def test_a_server_is_given_the_time_it_asks_for_up_to_the_longest_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pauses: list[float] = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    script = [Reply(status=503, headers={"Retry-After": text}) for text in ("7", "9999", "soon")]
    with serving(content(), *script, Reply()) as server:
        fetch(remote(server), tmp_path, patience=Patience(timeout=1))
    assert pauses[:2] == [7, 60] and 3 <= pauses[2] <= 5


@pytest.mark.parametrize(("checksum", "start"), [("sha256:", 70), (None, 0)])
def test_another_mirror_continues_a_part_only_if_a_checksum_will_tell(tmp_path: Path, checksum: str | None, start: int):
    with serving(content(), a=[Reply(cut=70), Reply(status=404)], b=[Reply()]) as server:
        wanted = remote(server, "/a", "/b")
        fetch(replace(wanted, checksum=checksum and wanted.checksum), tmp_path, patience=HASTY)
        assert [(request.path, request.first) for request in server.log] == [("/a", 0), ("/a", 70), ("/b", start)]
        assert "if-range" not in server.log[2].headers
        assert_whole(tmp_path, server)


@pytest.mark.parametrize("changes", UNKNOWN)
def test_a_later_call_continues_what_an_earlier_one_left(tmp_path: Path, changes: dict[str, Any]):
    with serving(content(), Reply(cut=70), *[Reply(status=503)] * 3, Reply()) as server:
        refusal(remote(server, **changes), tmp_path)
        fetch(remote(server, **changes), tmp_path, patience=HASTY)
        assert server.log[-1].range == "bytes=70-"
        assert_whole(tmp_path, server)


@pytest.mark.parametrize("changes", [{}, {"checksum": None}])
@pytest.mark.parametrize("notes", ["", "{", '{"url": "elsewhere"}'])
def test_a_part_of_unknown_origin_spoils_nothing(tmp_path: Path, changes: dict[str, Any], notes: str):
    (tmp_path / ".file.zip.part").write_bytes(bytes(70))
    (tmp_path / ".file.zip.part.json").write_text(notes)
    with serving(content()) as server:
        fetch(remote(server, **changes), tmp_path, patience=HASTY)
        assert_whole(tmp_path, server)


def test_a_whole_part_needs_no_server_and_the_end_of_an_unknown_length_is_found(tmp_path: Path):
    with serving(content()) as server:
        (tmp_path / ".file.zip.part").write_bytes(content())
        fetch(remote(server), tmp_path, patience=HASTY)
        assert not server.log
        (tmp_path / "file.zip").rename(tmp_path / ".file.zip.part")
        fetch(remote(server, bytes=None), tmp_path, patience=HASTY)
        assert [request.status for request in server.log] == [416]
        assert_whole(tmp_path, server)


def test_a_wrong_file_under_the_name_is_replaced_or_at_least_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file.zip").write_bytes(b"wrong")
    with serving(content(), bad=[Reply(status=404)]) as server:
        fetch(remote(server), tmp_path, patience=HASTY)
        assert_whole(tmp_path, server)
        (tmp_path / "file.zip").write_bytes(bytes(SIZE))
        refusal(remote(server, "/bad"), tmp_path)
    assert "it has 5 bytes instead of 100003" in caplog.text and "its sha256 is" in caplog.text


def test_checksums_are_compared_as_far_as_they_are_given(tmp_path: Path):
    path = tmp_path / "x"
    path.write_bytes(b"x")
    md5, sha256 = hashlib.md5(b"x").hexdigest(), hashlib.sha256(b"x").hexdigest()
    for checksum in (f"md5:{md5}", f"md5:{md5[:8]}", f"sha256:{sha256}", f"sha256:{sha256[:9].upper()}", None):
        assert verify(path, Remote("x", ("http://x",), checksum, 1)) is None
    assert verify(path, Remote("x", ("http://x",), "md5:00000000")) == f"its md5 is {md5[:8]} instead of 00000000"
    assert verify(path, Remote("x", ("http://x",), None, 2)) == "it has 1 bytes instead of 2"
    assert verify(tmp_path / "y", Remote("y", ("http://x",))) == "it is missing"


@pytest.mark.parametrize(
    "fields",
    [
        {"checksum": "sha256:" + "0" * 65},
        {"checksum": "md5:0000000g"},
        {"checksum": "00000000"},
        {"checksum": "md5:"},
        {"urls": ("file:///etc/passwd",)},
        {"name": "../x"},
        {"name": ""},
        {"bytes": -1},
    ],
)
def test_a_malformed_remote_is_the_programmers_mistake(fields: dict[str, Any]):
    with pytest.raises(ValueError, match=f"^{next(iter(fields))} must") as caught:
        Remote(**{"name": "x", "urls": ("http://x",), **fields})
    assert not isinstance(caught.value, InputError)


def test_room_is_needed_for_what_is_missing_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=SIZE - 70))
    with serving(content()) as server:
        told = refusal(remote(server), tmp_path)
        assert not server.log
        assert f"100kB more in {tmp_path}, where 99.9kB are free" in told
        refusal(remote(server, bytes=None), tmp_path)
        assert not (tmp_path / ".file.zip.part").exists()
        (tmp_path / ".file.zip.part").write_bytes(content()[:70])
        fetch(remote(server), tmp_path, patience=HASTY)
        assert_whole(tmp_path, server)


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "No space left"), (errno.EACCES, "Permission denied")])
def test_what_came_before_a_write_failed_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
):
    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() > SIZE // 2:
                raise OSError(number, words)
            return super().write(bytes(data)[:999])

    def opened(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        return Full(path, "a") if mode == "ab" else real(path, mode, *rest, **options)

    real = Path.open
    with serving(content()) as server:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", opened)
            assert words in refusal(remote(server), tmp_path)
        assert SIZE // 2 < (tmp_path / ".file.zip.part").stat().st_size < SIZE
        fetch(remote(server), tmp_path, patience=HASTY)
        assert server.log[1].first > SIZE // 2
        assert_whole(tmp_path, server)


def test_a_folder_in_the_way_and_one_that_cannot_be_made_are_told(tmp_path: Path):
    (tmp_path / "file.zip").mkdir()
    wanted = Remote("file.zip", ("http://127.0.0.1:1",))
    with pytest.raises(InputError, match="is a folder where a file is to be"):
        fetch(wanted, tmp_path)
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="file.zip cannot be stored in .*taken/x"):
        fetch(wanted, tmp_path / "taken" / "x")


def test_of_two_processes_one_fetches_and_the_other_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    with serving(content(), Reply(block=8192, pause=0.01)) as server:
        child = FORK.Process(target=fetch, args=(remote(server), tmp_path))
        child.start()
        wait_for(lambda: (tmp_path / ".file.zip.part").exists())
        assert fetch(remote(server), tmp_path) == tmp_path / "file.zip"
        child.join()
        assert child.exitcode == 0
        assert [request.sent for request in server.log] == [SIZE]
        assert "another process works on file.zip: waiting" in caplog.text
        assert_whole(tmp_path, server)


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.0005)


def test_every_byte_is_on_disk_as_soon_as_it_came(tmp_path: Path):
    part = tmp_path / ".file.zip.part"
    with serving(content(50), Reply(block=1, pause=0.01)) as server:
        child = FORK.Process(target=fetch, args=(remote(server), tmp_path))
        child.start()
        wait_for(lambda: part.exists() and 5 < part.stat().st_size < 50)
        child.join()
        assert_whole(tmp_path, server)


def test_a_download_killed_twenty_times_fetches_no_byte_twice(tmp_path: Path):
    dice = random.Random(1)
    part = tmp_path / ".file.zip.part"

    def stored() -> int:
        return part.stat().st_size if part.exists() else 0

    with serving(content(1_500_000), Reply(block=4096, pause=0.001)) as server:
        for kill in range(20):
            asked, before = len(server.log), stored()
            child = FORK.Process(target=fetch, args=(remote(server), tmp_path))
            child.start()
            if kill % 5:
                goal = before + dice.randrange(1, 60_000)
                wait_for(lambda goal=goal: stored() >= goal)
            else:
                time.sleep(dice.uniform(0, 0.05))  # also before the first byte
            child.kill()
            child.join()
            child.close()
            assert not (tmp_path / "file.zip").exists()
            assert [request.first for request in server.log[asked:]] in ([], [before])
        before = stored()
        fetch(remote(server), tmp_path)
        assert server.log[-1].first == before > 0
        assert_whole(tmp_path, server)


@pytest.mark.parametrize("seed", range(20))
def test_any_mix_of_faults_gives_the_right_file_or_none(tmp_path: Path, seed: int):
    dice = random.Random(seed)

    def any_reply() -> Reply:
        wrong = dice.choice(
            [{}, {}, {"Content-Length": None}, {"Content-Length": "1"}, {"Content-Range": "bytes 5-9/x"}]
        )
        return Reply(
            status=dice.choice([None] * 8 + [206, 404, 416, 429, 503]),
            headers=dice.choice([wrong, {}, {}]),
            content=dice.choice([None] * 6 + [content(SIZE - 1), content(SIZE + 1), b"<html>"]),
            cut=dice.choice([None, None, 0, 10, SIZE - 10, dice.randrange(SIZE)]),
            flip=dice.choice([None] * 8 + [0]),
            ranges=dice.random() < 0.8,
            if_range=dice.random() < 0.9,
            etag=dice.choice(['"1"'] * 4 + ['"2"', 'W/"1"', None]),
            chunked=dice.random() < 0.2,
        )

    # The last reply is kept: if it were cut after some bytes, it would take as many requests as there are bytes.
    scripts = {
        name: [any_reply() for _ in range(dice.randrange(9))] + [replace(any_reply(), cut=dice.choice([None, 0]))]
        for name in ("a", "b")
    }
    with serving(content(), **scripts) as server:
        for _ in range(2):
            with suppress(InputError):
                fetch(remote(server, "/a", "/b", **dice.choice([{}, {"bytes": None}])), tmp_path, patience=HASTY)
            if (tmp_path / "file.zip").exists():
                assert_whole(tmp_path, server)
