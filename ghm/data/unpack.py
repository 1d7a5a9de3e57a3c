"""Archives unpacked whole, resumably, and only where they may write: zip and tar, told apart by their content."""

import copy
import hashlib
import logging
import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from ghm.errors import InputError
from ghm.files import alone, require_space

_log = logging.getLogger(__name__)

_BLOCK = 1 << 20  # bytes read at a time
_MARKER = ".unpacking"
# What the libraries raise on damaged archives and on methods that they do not know.
_DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error,
    EOFError, OSError, NotImplementedError, RuntimeError, ValueError, IndexError, MemoryError,
)  # fmt: skip


@dataclass(frozen=True)
class _Member:
    original: str  # its name in the archive
    name: str  # the same without "." and trailing "/"; later without the leading folders that are stripped
    size: int  # bytes
    is_folder: bool
    fault: str | None  # why its kind is not unpacked
    open: Callable[[], IO[bytes]]


def is_unpacking(folder: Path) -> list[str]:
    """Names of the archives whose unpacking into `folder` has begun and not ended."""
    return sorted(path.name[1 : -len(_MARKER)] for path in folder.glob(f".*{_MARKER}"))


def unpack(archive: Path, folder: Path, *, strip: int = 0, wanted: tuple[str, ...] = ()) -> None:
    """Unpack a zip or tar archive into `folder`; what an interrupted call has unpacked is not unpacked again.

    Args:
        archive: zip, or tar, plain or packed with gzip, bzip2 or xz.
        folder: where to; made where it is missing.
        strip: how many leading folders to drop from the members' names. Members with no more than that are left out.
        wanted: stripped names of the files and folders to unpack, folders with all below them; () means all.

    Raises:
        InputError: the archive is none, is damaged, lacks something wanted, or has a member, wanted or not, that is
            no plain file or folder below `folder`; or there is no room or no right to write. All names and sizes are
            checked before anything is written.
    """
    with _opened(archive, strip, wanted) as members:
        try:
            require_space(sum(member.size for member in _missing(members, folder, archive)), folder, archive.name)
            folder.mkdir(parents=True, exist_ok=True)
            with alone(folder / f".{archive.name}.lock", archive.name):
                marker = folder / f".{archive.name}{_MARKER}"
                marker.touch()
                _write(archive, members, folder)
                marker.unlink()
        except OSError as error:
            raise InputError(
                f"{archive} cannot be unpacked into {folder} ({error.strerror or error}): make room or set the rights, "
                "then start again, what is unpacked is kept"
            ) from error


def tree_sha256(archive: Path, *, strip: int = 0, wanted: tuple[str, ...] = ()) -> str:
    """SHA-256 of the lines `<SHA-256 of content>  <stripped name>`, sorted by name, of the wanted files.

    Read straight from the archive: content can be checked before any of it is unpacked. It is the digest of what
    `sha256sum` prints for the unpacked files in that order.

    Raises:
        InputError: as `unpack`, but for what is about writing.
    """
    digests = {}
    with _opened(archive, strip, wanted) as members, _progress(f"checking {archive.name}", members) as bar:
        for member in members:
            if not member.is_folder:
                checksum = hashlib.sha256()
                for block in _blocks(archive, member):
                    checksum.update(block)
                    bar.update(len(block))
                digests[member.name] = checksum.hexdigest()
    listing = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()


def _progress(what: str, members: list[_Member]) -> tqdm:
    total = sum(member.size for member in members)
    return tqdm(total=total, desc=what, unit="B", unit_scale=True, mininterval=2, leave=False)


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Turn what the libraries raise on damaged archives into one sentence."""
    try:
        yield
    except InputError:
        raise
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno:
            raise InputError(f"the archive {archive} cannot be read ({error.strerror})") from None
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{archive} is no whole zip or tar archive ({reason}): fetch it again") from None


@contextmanager
def _opened(archive: Path, strip: int, wanted: tuple[str, ...]) -> Iterator[list[_Member]]:
    """Open an archive and give its wanted members, after all of its members were checked."""
    with ExitStack() as stack:
        with _reading(archive):
            with archive.open("rb") as file:
                is_zip = file.read(4) in (b"PK\3\4", b"PK\5\6")
            if is_zip:
                members = _zip_members(stack.enter_context(zipfile.ZipFile(archive)))
            else:
                members = _tar_members(stack.enter_context(tarfile.open(archive)), archive.name)
            for member in members:
                fault = member.fault or _name_fault(member)
                if fault:
                    raise _refusal(archive, member, fault)
            _check_tree(archive, members)
            members = _choose(archive, members, strip, wanted)
            _check_tree(archive, members)  # stripping can make two names one
        yield members


def _zip_members(opened: zipfile.ZipFile) -> list[_Member]:
    members = []
    for info in opened.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        fault = None
        if "\0" in info.orig_filename:  # zipfile cuts the name there
            fault = "has a control character in its name"
        elif info.flag_bits & 0x41:
            fault = "is encrypted"
        elif kind == stat.S_IFLNK:
            fault = "is a symbolic link"
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR) or (kind == stat.S_IFDIR and not info.is_dir()):
            fault = "is no plain file or folder"
        elif info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
            fault = "has more or fewer bytes than declared"
        # One byte more than declared is allowed here, so that _blocks sees content that goes on.
        longer = copy.copy(info)
        longer.file_size += 1
        size = 0 if info.is_dir() else info.file_size
        members.append(
            _Member(
                info.filename,
                str(PurePosixPath(info.filename)),
                size,
                info.is_dir(),
                fault,
                partial(opened.open, longer),
            )
        )
    return members


def _tar_members(opened: tarfile.TarFile, name: str) -> list[_Member]:
    members = []
    for info in tqdm(opened, desc=f"reading {name}", unit="member", mininterval=2, leave=False):
        fault = None
        if info.issym() or info.islnk():
            fault = "is a symbolic link" if info.issym() else "is a hard link"
        elif not info.isdir() and (not info.isreg() or info.issparse()):
            fault = "is no plain file or folder"
        size = 0 if info.isdir() else info.size
        members.append(
            _Member(
                info.name, str(PurePosixPath(info.name)), size, info.isdir(), fault, partial(_open_tar, opened, info)
            )
        )
    # tarfile takes a broken header for the end, and stops before the checksum of a packed archive.
    assert opened.fileobj is not None
    opened.fileobj.seek(opened.offset)
    if opened.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("its end is missing")
    while opened.fileobj.read(_BLOCK):
        pass
    return members


def _open_tar(opened: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    stream = opened.extractfile(info)
    assert stream is not None, "only plain files are opened"
    return stream


def _name_fault(member: _Member) -> str | None:
    name = member.original
    if re.search(r"[\x00-\x1f\x7f]", name):
        return "has a control character in its name"
    if name.startswith("/") or re.match("[A-Za-z]:", name) or "\\" in name:
        return "has an absolute path or one of another system"
    if ".." in name.split("/"):
        return "leads out of its folder"
    if member.size < 0 or (not member.is_folder and not PurePosixPath(name).parts):
        return "has no name or no size"
    return None


def _refusal(archive: Path, member: _Member, fault: str) -> InputError:
    return InputError(f"{archive} is not unpacked: its member {member.original!r} {fault}")


def _check_tree(archive: Path, members: list[_Member]) -> None:
    """No file twice, and none that is a folder too; a folder may be named again."""
    folders = {member.name for member in members if member.is_folder} | _parents(members)
    files: set[str] = set()
    for member in members:
        if not member.is_folder:
            if member.name in files:
                raise _refusal(archive, member, "is there twice")
            if member.name in folders:
                raise _refusal(archive, member, "is a file and a folder")
            files.add(member.name)


def _parents(members: list[_Member]) -> set[str]:
    return {str(parent) for member in members for parent in PurePosixPath(member.name).parents}


def _choose(archive: Path, members: list[_Member], strip: int, wanted: tuple[str, ...]) -> list[_Member]:
    """The wanted members under their stripped names."""
    roots = {PurePosixPath(root).parts for root in wanted}
    found, chosen = set(), []
    for member in members:
        parts = PurePosixPath(member.name).parts[strip:]
        if parts and parts[0].startswith(f".{archive.name}."):
            raise _refusal(archive, member, "has a name that is needed while it is unpacked")
        heads = {parts[:length] for length in range(1, len(parts) + 1)}
        if parts and (not roots or roots & heads):
            found |= roots & heads
            chosen.append(replace(member, name="/".join(parts)))
    if roots - found:
        raise InputError(f"{archive} holds no {'/'.join(min(roots - found))}: it is not the archive that is meant")
    if all(member.is_folder for member in chosen):
        raise InputError(f"{archive} holds no file: it is empty or damaged, fetch it again")
    return chosen


def _missing(members: list[_Member], folder: Path, archive: Path) -> list[_Member]:
    """Files that are not unpacked yet; one of the right size is whole, because it got its name last.

    Raises:
        InputError: something in `folder` is in the way. A link is, even to a folder: it may lead anywhere.
    """
    for name in _parents(members) | {member.name for member in members if member.is_folder}:
        place = folder / name
        if name != "." and (place.is_symlink() or (place.exists() and not place.is_dir())):
            raise InputError(f"{place} is in the way of a folder of {archive}: move it away")
    missing = []
    for member in members:
        if not member.is_folder:
            place = folder / member.name
            state = place.lstat() if place.exists() or place.is_symlink() else None
            if state and stat.S_ISDIR(state.st_mode):
                raise InputError(f"{place} is in the way of a file of {archive}: move it away")
            if not state or not stat.S_ISREG(state.st_mode) or state.st_size != member.size:
                missing.append(member)
    return missing


def _write(archive: Path, members: list[_Member], folder: Path) -> None:
    missing = {member.name for member in _missing(members, folder, archive)}
    # One name for all members in turn: what a killed process leaves is overwritten by the next.
    temporary = folder / f".{archive.name}.member"
    with _progress(f"unpacking {archive.name}", members) as bar:
        for member in members:
            place = folder / member.name
            if member.is_folder:
                _make_folder(place)
            elif member.name not in missing:
                bar.update(member.size)
            else:
                _make_folder(place.parent)
                temporary.unlink(missing_ok=True)
                try:
                    with temporary.open("xb") as file:
                        for block in _blocks(archive, member):
                            file.write(block)
                            bar.update(len(block))
                    temporary.chmod(0o644)
                    temporary.replace(place)
                finally:
                    temporary.unlink(missing_ok=True)


def _make_folder(place: Path) -> None:
    if not place.is_dir():
        _make_folder(place.parent)
        place.mkdir()
        place.chmod(0o755)


def _blocks(archive: Path, member: _Member) -> Iterator[bytes]:
    """The content of a file, which must have the bytes that were declared."""
    left = member.size
    with _reading(archive), member.open() as stream:
        while block := stream.read(_BLOCK):
            left -= len(block)
            if left < 0:
                break
            yield block
    if left:
        raise InputError(f"{archive} is damaged: {member.original!r} has more or fewer bytes than declared")
