"""Laws of unpacking: whole members, resumed, and nothing outside the folder."""

import hashlib
import io
import multiprocessing
import random
import shutil
import stat
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ghm.data import unpack as unpacking
from ghm.data.unpack import is_unpacking, tree_sha256, unpack
from ghm.errors import InputError

FORK = multiprocessing.get_context("fork")
FILES = {
    "top/BCCD/a.txt": b"a" * 100_000,
    "top/BCCD/sub/b.bin": random.Random(0).randbytes(90_000),
    "top/LICENSE": b"free",
    "top/empty": b"",
    "readme": b"r",
}
Entry = tuple[str, bytes, dict[str, Any]]  # name, content, fields of the header


def make_zip(path: Path, entries: list[Entry], packing: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, data, fields in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = packing
            for key, value in fields.items():
                setattr(info, key, value)
            archive.writestr(info, data)
    return path


def make_tar(path: Path, entries: list[Entry], packing: str = "") -> Path:
    mode: Any = f"w:{packing}"
    with tarfile.open(path, mode) as archive:
        for name, data, fields in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mode = 0o6777
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return path


def entries(files: dict[str, bytes] = FILES) -> list[Entry]:
    return [(name, data, {}) for name, data in files.items()]


MAKERS: dict[str, Callable[[Path, list[Entry]], Path]] = {
    "zip": make_zip,
    "stored": lambda path, files: make_zip(path, files, zipfile.ZIP_STORED),
    "bzip2": lambda path, files: make_zip(path, files, zipfile.ZIP_BZIP2),
    "lzma": lambda path, files: make_zip(path, files, zipfile.ZIP_LZMA),
    "tar": make_tar,
    "gz": lambda path, files: make_tar(path, files, "gz"),
    "bz2": lambda path, files: make_tar(path, files, "bz2"),
    "xz": lambda path, files: make_tar(path, files, "xz"),
}


def content(folder: Path) -> dict[str, bytes]:
    """The files of a folder but for locks, after a look for anything that should not be there."""
    found = [path for path in folder.rglob("*") if path.suffix != ".lock"]
    assert not [path for path in found if path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found if path.is_file()}


def refusal(archive: Path, folder: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        unpack(archive, folder, **options)
    assert archive.name in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def stripped(files: dict[str, bytes], *roots: str) -> dict[str, bytes]:
    short = {name.partition("/")[2]: data for name, data in files.items() if "/" in name}
    return {name: data for name, data in short.items() if not roots or name.startswith(roots)}


@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_is_known_by_its_content_and_unpacked(tmp_path: Path, kind: str):
    archive = MAKERS[kind](tmp_path / "archive", [("./", b"", {"type": tarfile.DIRTYPE})] * (kind == "tar") + entries())
    unpack(archive, tmp_path / "all")
    assert content(tmp_path / "all") == FILES
    unpack(archive, tmp_path / "some", strip=1, wanted=("BCCD", "LICENSE"))
    assert content(tmp_path / "some") == stripped(FILES, "BCCD/", "LICENSE")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "some").rglob("[!.]*")}
    assert modes == {0o644, 0o755}


@pytest.mark.parametrize("kind", MAKERS)
def test_the_digest_is_that_of_the_sorted_listing_of_what_would_be_unpacked(tmp_path: Path, kind: str):
    archive = MAKERS[kind](tmp_path / "archive", entries())
    files = stripped(FILES, "BCCD/", "LICENSE")
    listing = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    expected = hashlib.sha256(listing.encode()).hexdigest()
    assert tree_sha256(archive, strip=1, wanted=("BCCD", "LICENSE")) == expected
    assert tree_sha256(archive, strip=1) != expected
    assert sorted(tmp_path.iterdir()) == [archive]


HOSTILE_NAMES = ["/etc/x", "../x", "a/../../x", "C:x", "c:/x", "a\\x", "..\\x", "a\nb", "a/..", ".archive.unpacking"]


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_no_member_leads_elsewhere(tmp_path: Path, make: Any, name: str):
    assert repr(name) in refusal(make(tmp_path / "archive", [*entries(), (name, b"x", {})]), tmp_path / "to")
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"type": tarfile.SYMTYPE, "linkname": "/etc"}, "is a symbolic link"),
        ({"type": tarfile.LNKTYPE, "linkname": "readme"}, "is a hard link"),
        ({"type": tarfile.CHRTYPE}, "is no plain file or folder"),
        ({"type": tarfile.BLKTYPE}, "is no plain file or folder"),
        ({"type": tarfile.FIFOTYPE}, "is no plain file or folder"),
        ({"type": tarfile.GNUTYPE_SPARSE}, "is no"),
        ({"pax_headers": {"path": "a\0b"}}, "has a control character in its name"),
    ],
)
def test_special_members_of_a_tar_are_refused_before_anything_is_written(
    tmp_path: Path, fields: dict[str, Any], words: str
):
    archive = make_tar(tmp_path / "archive", [*entries(), ("bad", b"", fields)])
    assert words in refusal(archive, tmp_path / "to", wanted=("readme",))
    with pytest.raises(InputError, match=words):
        tree_sha256(archive)
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"external_attr": 0o120777 << 16}, "is a symbolic link"),
        ({"external_attr": 0o010644 << 16}, "is no plain file or folder"),
        ({"external_attr": 0o040755 << 16}, "is no plain file or folder"),
    ],
)
def test_special_members_of_a_zip_are_refused_before_anything_is_written(
    tmp_path: Path, fields: dict[str, Any], words: str
):
    archive = make_zip(tmp_path / "archive", [*entries(), ("bad", b"/etc", fields)])
    assert words in refusal(archive, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def patched(path: Path, old: bytes, new: bytes) -> Path:
    assert old in path.read_bytes() and len(old) == len(new)
    path.write_bytes(path.read_bytes().replace(old, new))
    return path


def test_encrypted_members_and_names_with_nul_are_refused(tmp_path: Path):
    archive = make_zip(tmp_path / "archive", [("safe", b"x", {}), ("name", b"x", {})])
    assert "has a control character" in refusal(patched(archive, b"name", b"n\0me"), tmp_path / "to")
    archive = make_zip(tmp_path / "archive", [("name", b"x", {})])
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(data)
    assert "'name' is encrypted" in refusal(archive, tmp_path / "to")
    assert not (tmp_path / "to").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize(
    ("names", "strip", "words"),
    [
        (["a", "a"], 0, "'a' is there twice"),
        (["a/b", "./a//b"], 0, "is there twice"),
        (["x/a", "y/a"], 1, "'y/a' is there twice"),
        (["a", "a/b"], 0, "'a' is a file and a folder"),
        (["a/b/c", "a/b"], 0, "'a/b' is a file and a folder"),
    ],
)
def test_one_name_is_one_file(tmp_path: Path, make: Any, names: list[str], strip: int, words: str):
    archive = make(tmp_path / "archive", [(name, b"x", {}) for name in names])
    assert words in refusal(archive, tmp_path / "to", strip=strip)
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("declared", [3, 9])
def test_a_member_has_the_bytes_that_it_declares(tmp_path: Path, packing: int, declared: int):
    archive = make_zip(tmp_path / "archive", [("name", b"123456", {})], packing)
    data = bytearray(archive.read_bytes())
    place = data.index(b"PK\1\2")
    data[place + 24 : place + 28] = struct.pack("<I", declared)
    archive.write_bytes(data)
    refusal(archive, tmp_path / "to")
    assert not (tmp_path / "to" / "name").exists()
    assert (tmp_path / "to").exists() == (packing == zipfile.ZIP_DEFLATED)


def test_a_link_in_the_folder_is_not_followed(tmp_path: Path):
    archive = make_zip(tmp_path / "archive", entries({"a/b": b"12345", "c": b"12345"}))
    outside, folder = tmp_path / "outside", tmp_path / "to"
    outside.mkdir()
    folder.mkdir()
    (folder / "a").symlink_to(outside)
    assert f"{folder / 'a'} is in the way" in refusal(archive, folder)
    (folder / "a").unlink()
    (folder / "a").write_text("file")
    assert f"{folder / 'a'} is in the way" in refusal(archive, folder)
    (folder / "a").unlink()
    (outside / "c").write_bytes(b"54321")
    (folder / "c").symlink_to(outside / "c")
    unpack(archive, folder)
    assert (outside / "c").read_bytes() == b"54321"
    assert not (folder / "c").is_symlink() and (folder / "c").read_bytes() == b"12345"


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("fault", ["flip", "cut", "short"])
def test_a_damaged_archive_is_named_and_leaves_no_half_member(tmp_path: Path, kind: str, fault: str):
    noise = {f"d/{number}": random.Random(number).randbytes(50_000) for number in range(4)}
    archive = MAKERS[kind](tmp_path / "archive", entries(noise))
    data = bytearray(archive.read_bytes())
    end = {"flip": len(data), "cut": len(data) // 2, "short": len(data) - 10}[fault]
    data[120_000 if fault == "flip" else 0] ^= fault == "flip"
    archive.write_bytes(data[:end])
    if kind == "tar" and fault != "cut":
        unpack(archive, tmp_path / "to")  # a tar has no checksums, and more zeros at its end than it needs
        return
    assert "no whole zip or tar archive" in refusal(archive, tmp_path / "to") or fault == "flip"
    left = {name: (tmp_path / "to" / name).read_bytes() for name in noise if (tmp_path / "to" / name).exists()}
    assert left.items() < noise.items()
    assert is_unpacking(tmp_path / "to") == (["archive"] if (tmp_path / "to").exists() else [])


def test_a_tar_that_ends_between_members_or_at_a_broken_header_is_damaged(tmp_path: Path):
    archive = make_tar(tmp_path / "archive", entries({"a": b"x" * 512, "b": b"y" * 512}))
    whole = archive.read_bytes()
    for data in (whole[:1024], whole[:1500], whole[:1024] + b"z" * 512 + whole[1536:]):
        archive.write_bytes(data)
        assert "no whole zip or tar archive" in refusal(archive, tmp_path / "to")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    "data", [b"", b"<html>", b"PK\3\4", bytes(1024), None], ids=["empty", "text", "start", "zeros", "missing"]
)
def test_what_is_no_archive_is_refused(tmp_path: Path, data: bytes | None):
    if data is not None:
        (tmp_path / "archive.zip").write_bytes(data)
    refusal(tmp_path / "archive.zip", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_something_wanted_that_is_not_there_is_named(tmp_path: Path):
    archive = make_zip(tmp_path / "archive", entries())
    assert "holds no BCC:" in refusal(archive, tmp_path / "to", strip=1, wanted=("BCCD", "BCC"))


def test_room_is_needed_for_what_is_missing_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    archive = make_zip(tmp_path / "archive", entries())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=150_000))
    assert "archive needs 190kB more in" in refusal(archive, tmp_path / "to")
    assert not (tmp_path / "to").exists()
    (tmp_path / "to/top/BCCD").mkdir(parents=True)
    (tmp_path / "to/top/BCCD/a.txt").write_bytes(FILES["top/BCCD/a.txt"])
    unpack(archive, tmp_path / "to")
    assert content(tmp_path / "to") == FILES


def test_a_full_disk_is_told_and_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    archive = make_zip(tmp_path / "archive", entries())
    real = unpacking._make_folder

    def full(place: Path) -> None:
        if place.name == "sub":
            raise OSError(28, "No space left on device")
        real(place)

    with monkeypatch.context() as patch:
        patch.setattr(unpacking, "_make_folder", full)
        assert "No space left on device" in refusal(archive, tmp_path / "to")
    assert is_unpacking(tmp_path / "to") == ["archive"]
    unpack(archive, tmp_path / "to")
    assert content(tmp_path / "to") == FILES


@pytest.mark.parametrize("kind", ["zip", "gz"])
def test_an_unpacking_killed_in_its_middle_is_resumed(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    files = {f"d{number % 3}/{number}": random.Random(number).randbytes(20_000) for number in range(60)}
    archive, folder = MAKERS[kind](tmp_path / "archive", entries(files)), tmp_path / "to"
    real = unpacking._blocks

    def slow(*arguments: Any) -> Any:
        for block in real(*arguments):
            yield block[: len(block) // 2]
            time.sleep(0.002)
            yield block[len(block) // 2 :]

    monkeypatch.setattr(unpacking, "_blocks", slow)
    times: dict[str, int] = {}
    for goal in (1, 15, 40):
        child = FORK.Process(target=unpack, args=(archive, folder))
        child.start()
        end = time.monotonic() + 20
        while len(list(folder.glob("d*/*"))) < goal and time.monotonic() < end:
            time.sleep(0.0005)
        child.kill()
        child.join()
        child.close()
        assert is_unpacking(folder) == ["archive"]
        there = {str(path.relative_to(folder)): path for path in folder.glob("d*/*")}
        assert goal <= len(there) < len(files)
        assert all(path.read_bytes() == files[name] for name, path in there.items())
        assert times.items() <= {name: path.stat().st_mtime_ns for name, path in there.items()}.items()
        times = {name: path.stat().st_mtime_ns for name, path in there.items()}
    unpack(archive, folder)
    assert content(folder) == files
    assert is_unpacking(folder) == []
    assert all((folder / name).stat().st_mtime_ns == when for name, when in times.items())
