"""Laws of unpacking: everything wanted, and nothing outside the folder."""

import io
import random
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ghm.data.unpack import merge, unpack
from ghm.errors import InputError

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
    "lzma": lambda path, files: make_zip(path, files, zipfile.ZIP_LZMA),
    "tar": make_tar,
    "gz": lambda path, files: make_tar(path, files, "gz"),
    "xz": lambda path, files: make_tar(path, files, "xz"),
}


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(archive: Path, folder: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        unpack(archive, folder, **options)
    assert archive.name in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_is_known_by_its_content_and_unpacked(tmp_path: Path, kind: str):
    archive = MAKERS[kind](tmp_path / "archive", [("./", b"", {"type": tarfile.DIRTYPE})] * (kind == "tar") + entries())
    unpack(archive, tmp_path / "all")
    assert content(tmp_path / "all") == FILES
    unpack(archive, tmp_path / "some", ("top/BCCD/", "top/LICENSE"))
    assert content(tmp_path / "some") == {name: data for name, data in FILES.items() if "BCCD" in name or "LIC" in name}
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "some").rglob("*")]
    assert not any(mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IWOTH) for mode in modes)


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name", ["/etc/ghm-x", "../x", "a/../../x", "//ghm-x", "C:x", "a\\..\\..\\x", "a\nb", "~/x"])
def test_no_member_leads_elsewhere(tmp_path: Path, make: Any, name: str):
    archive = make(tmp_path / "archive", [("first", b"a", {}), (name, b"x", {})])
    if make is make_tar and "../" in name:
        assert "outside the destination" in refusal(archive, tmp_path / "to")
    else:
        unpack(archive, tmp_path / "to")
        assert sorted(content(tmp_path / "to").values()) == [b"a", b"x"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "to"]
    assert not Path("/etc/ghm-x").exists() and not Path("/ghm-x").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
@pytest.mark.parametrize("target", ["/etc", "..", "readme"])
def test_links_and_devices_of_a_tar_are_refused(tmp_path: Path, kind: bytes, target: str):
    bad = ("bad", b"", {"type": kind, "linkname": target})
    archive = make_tar(tmp_path / "archive", [*entries(), bad, ("bad/x", b"x", {})])
    assert "'bad' is a link or a device" in refusal(archive, tmp_path / "to")
    assert not (tmp_path / "to" / "bad").exists() and not (tmp_path / "x").exists()
    unpack(archive, tmp_path / "readme", ("readme",))
    assert content(tmp_path / "readme") == {"readme": b"r"}


@pytest.mark.parametrize("kind", [0o120777, 0o020666])
def test_links_and_devices_of_a_zip_are_plain_files(tmp_path: Path, kind: int):
    unpack(make_zip(tmp_path / "archive", [("bad", b"/etc", {"external_attr": kind << 16})]), tmp_path / "to")
    assert stat.S_ISREG((tmp_path / "to" / "bad").lstat().st_mode)
    assert content(tmp_path / "to") == {"bad": b"/etc"}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("fault", ["flip", "cut"])
def test_a_damaged_archive_is_named(tmp_path: Path, kind: str, fault: str):
    noise = {f"d/{number}": random.Random(number).randbytes(50_000) for number in range(4)}
    archive = MAKERS[kind](tmp_path / "archive", entries(noise))
    data = bytearray(archive.read_bytes())
    data[120_000] ^= fault == "flip"
    archive.write_bytes(data[: len(data) // 2] if fault == "cut" else data)
    if kind == "tar" and fault == "flip":
        unpack(archive, tmp_path / "to")  # a tar has no checksums
    else:
        assert "is no whole zip or tar archive" in refusal(archive, tmp_path / "to")


@pytest.mark.parametrize("data", [b"", b"<html>", b"PK\3\4", None], ids=["empty", "text", "start", "missing"])
def test_what_is_no_archive_is_refused(tmp_path: Path, data: bytes | None):
    if data is not None:
        (tmp_path / "archive.zip").write_bytes(data)
    refusal(tmp_path / "archive.zip", tmp_path / "to")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_room_is_needed_before_anything_is_written(tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch):
    archive = make(tmp_path / "archive", entries())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=150_000))
    assert "archive needs 190kB more in" in refusal(archive, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_a_merged_folder_has_what_both_had_and_the_last_paths_come_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    target = fill(tmp_path / "to", "VOC/images/1", "VOC/list/train.txt")
    source = fill(tmp_path / "new", "VOC/images/2", "VOC/list/test.txt", "VOC/zoo/3", "VOC/images/4")
    moved: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda path, to: (moved.append(str(to.relative_to(target))), replace(path, to))
    )
    merge(source, target, last=[target / "VOC/list/test.txt"])
    assert moved[-1] == "VOC/list/test.txt"
    assert sorted(moved[:-1]) == ["VOC/images/2", "VOC/images/4", "VOC/zoo"]
    assert content(target) == {name: name.encode() for name in content(target)} and len(content(target)) == 6
