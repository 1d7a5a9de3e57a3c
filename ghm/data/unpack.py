"""Zip and tar archives: unpacked into a folder and nowhere else, and moved to their place once they are whole."""

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ghm import files
from ghm.errors import InputError

# What the libraries raise on damaged archives and on methods that they do not know.
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError)


def unpack(archive: Path, folder: Path, wanted: tuple[str, ...] = ("",)) -> None:
    """Unpack an archive, zip or tar, plain or packed with gzip, bzip2 or xz, into the new folder `folder`.

    Args:
        wanted: only members whose names begin with one of these.

    Raises:
        InputError: the archive is none, is damaged, or a tar with a member that is no plain file or folder or leads out
            of `folder`; or there is no room or no right to write. Such names and links in a zip become plain files.
    """
    try:
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as opened:
                members = [member for member in opened if member.name.startswith(wanted)]
                files.require_space(sum(member.size for member in members), folder, archive.name)
                for member in _progress(archive, members):
                    if not (member.isreg() or member.isdir()):
                        raise InputError(f"{archive} is not unpacked: its member {member.name!r} is a link or a device")
                    opened.extract(member, folder, filter="data")
                while opened.fileobj and opened.fileobj.read(1 << 20):
                    pass  # the checksum of a packed archive comes last
        else:
            with zipfile.ZipFile(archive) as opened:
                infos = [info for info in opened.infolist() if info.filename.startswith(wanted)]
                files.require_space(sum(info.file_size for info in infos), folder, archive.name)
                for info in _progress(archive, infos):
                    opened.extract(info, folder)
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise InputError(
                f"{archive} cannot be unpacked into {folder} ({error.strerror}): make room or set the rights"
            ) from None
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{archive} is no whole zip or tar archive ({reason}): fetch it again") from None


def merge(source: Path, target: Path, last: Collection[Path]) -> None:
    """Move all that is below one folder to another, what is or holds the paths `last` after all else.

    So whoever sees those has everything, whenever the process was killed. A folder is moved at once where the target
    lacks it.
    """
    if not target.exists():
        source.replace(target)
        return
    moves = [(any(target / old.name in (path, *path.parents) for path in last), old) for old in source.iterdir()]
    for _, old in sorted(moves):
        new = target / old.name
        if old.is_dir() and new.is_dir() and not new.is_symlink():
            merge(old, new, last)
        else:
            old.replace(new)


def _progress(archive: Path, members: Sequence[Any]) -> tqdm:
    return tqdm(members, desc=f"unpacking {archive.name}", unit="file", mininterval=2, delay=1, leave=False)
