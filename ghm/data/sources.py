"""Where the public data sets come from: every URL and checksum, and how a copy of them is found or fetched.

A copy is looked for in `data.root`, or else in the store; what the store lacks is fetched, or taken from
`data.source`, verified and unpacked there. An archive that was fetched is deleted once it is unpacked.
"""

import logging
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urldefrag, urlsplit

from ghm import files
from ghm.data import download, unpack
from ghm.data.download import Remote
from ghm.errors import InputError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Archive:
    """An archive and what it leaves in the data set's folder."""

    remote: Remote
    provides: tuple[str, ...]  # paths below the root; whoever has them does not need the archive
    top: str = ""  # the folder inside that becomes the root
    wanted: tuple[str, ...] = ("",)  # beginnings of the names inside that are unpacked


# MD5 of COCO as published with the data set; sizes as its servers report them. COCO's host has no valid certificate for
# https, so it is the checksum that protects. fast.ai's bucket holds the same files.
def _coco(name: str, folder: str, md5: str, size: int) -> Remote:
    urls = (f"http://images.cocodataset.org/{folder}/{name}", f"https://s3.amazonaws.com/fast-ai-coco/{name}")
    return Remote(name, urls, f"md5:{md5}", size)


def _voc(year: int, name: str, images: str, md5: str, size: int) -> Archive:
    hosts = ("http://host.robots.ox.ac.uk", "https://thor.robots.ox.ac.uk")
    urls = tuple(f"{host}/pascal/VOC/voc{year}/{name}" for host in hosts)
    remote = Remote(name, (*urls, f"https://data.pjreddie.com/files/{name}"), f"md5:{md5}", size)
    return Archive(remote, (f"VOC{year}/ImageSets/Main/{images}.txt",), "VOCdevkit")


_INSTANCES = ("annotations/instances_train2017.json", "annotations/instances_val2017.json")
_ANNOTATIONS = _coco("annotations_trainval2017.zip", "annotations", "f4bbac642086de4f52a3fdda2de5fa2c", 252_907_541)
_BCCD = "d272fb14cdff6e473fafeeeba32aba5f560e9e43"  # commit
_BCCD_URLS = (
    f"https://github.com/Shenggan/BCCD_Dataset/archive/{_BCCD}.zip",
    f"https://codeload.github.com/Shenggan/BCCD_Dataset/zip/{_BCCD}",
)

ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "coco": (
        Archive(_ANNOTATIONS, _INSTANCES, wanted=_INSTANCES),
        Archive(_coco("val2017.zip", "zips", "442b8da7639aecaf257c1dceb8ba8c80", 815_585_330), ("val2017",)),
        Archive(_coco("train2017.zip", "zips", "cced6f7f71b7629ddf16f17bbcfab6b2", 19_336_861_798), ("train2017",)),
    ),
    "voc": (
        _voc(2007, "VOCtrainval_06-Nov-2007.tar", "trainval", "c52e279531787c972589f7e41ab4ae64", 460_032_000),
        _voc(2007, "VOCtest_06-Nov-2007.tar", "test", "b6e924de25625d8de591ea690078ad9f", 451_020_800),
        _voc(2012, "VOCtrainval_11-May-2012.tar", "trainval", "6cd6e144f989b92b3379bac3b3de84fd", 1_999_639_040),
    ),
    "bccd": (
        Archive(
            Remote(f"BCCD_Dataset-{_BCCD}.zip", _BCCD_URLS),
            ("BCCD",),
            top=f"BCCD_Dataset-{_BCCD}",
            wanted=(f"BCCD_Dataset-{_BCCD}/BCCD/", f"BCCD_Dataset-{_BCCD}/LICENSE"),
        ),
    ),
}


def existing_copy(name: str, root: Path, archives: tuple[Archive, ...]) -> Path:
    """The copy at `root`, whole.

    Raises:
        InputError: it is not there, or lacks something; nothing is fetched into a folder that a person named.
    """
    if missing := _absent(archives, root):
        raise InputError(f"{root} is no copy of {name}: {', '.join(missing)} missing below it; set data.root to one")
    return root


def find_or_fetch(name: str, root: Path, archives: tuple[Archive, ...], source: str | None) -> Path:
    """Return `root`, where the data set lies, after fetching and unpacking what it lacks.

    Args:
        name: of the data set, for messages.
        root: its folder in the store.
        archives: what it consists of.
        source: `data.source`; a URL of the folder that holds the archives, or of the only archive; a folder that holds
            the archives; the only archive.

    Raises:
        InputError: nothing there fits, or an archive cannot be had, verified or unpacked.
    """
    local = Path(source).expanduser().absolute() if source and not _is_url(source) else None
    if local is not None:
        names = [archive.remote.name for archive in archives]
        is_archive = local.is_file() and len(archives) == 1
        if absent := [name for name in names if not (is_archive or (local / name).is_file())]:
            raise InputError(f"data.source must be a URL or a folder with {', '.join(absent)}, got {source!r}")
    if not _absent(archives, root):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with files.locked(root.with_name(f".{root.name}.lock"), name):
        # None where another process was waited for.
        missing = [archive for archive in archives if _absent((archive,), root)]
        downloads = root.parent / "downloads"
        sizes = [archive.remote.bytes or 0 for archive in missing]
        _log.info("%s: %d archives to get, %.1f GB, into %s", name, len(missing), sum(sizes) / 1e9, root)
        if local is None:  # images take about as much room as their archives, of which one at a time is kept
            arrived = sum(download.part_size(archive.remote, downloads) for archive in missing)
            files.require_space(sum(sizes) + max(sizes, default=0) - arrived, downloads, name)
        for archive in missing:
            if local is not None:
                file = local if local.is_file() else local / archive.remote.name
                if wrong := download.verify(file, archive.remote):
                    raise InputError(f"data.source: {file} is not the file that it should be: {wrong}")
                _unpack(archive, file, root)
            else:
                file = download.fetch(_at(source, archive.remote, len(archives) == 1), downloads)
                try:
                    _unpack(archive, file, root)
                except InputError:
                    if archive.remote.checksum is None:  # the next call would take the file for whole
                        file.unlink()
                    raise
                file.unlink()
    return root


def _absent(archives: tuple[Archive, ...], root: Path) -> list[str]:
    """What of the archives a folder lacks."""
    return [path for archive in archives for path in archive.provides if not (root / path).exists()]


def _is_url(text: str) -> bool:
    return urlsplit(text).scheme in ("http", "https")


def _at(source: str | None, remote: Remote, is_only: bool) -> Remote:
    """The remote file at the address that `data.source` names."""
    if source is None:
        return remote
    if is_only and urlsplit(source).path.endswith((".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")):
        return replace(remote, urls=(source,))
    return replace(remote, urls=(f"{source.rstrip('/')}/{remote.name}",))


def _unpack(archive: Archive, file: Path, root: Path) -> None:
    """Unpack into a folder beside the rest, and move what is whole and verified to its place."""
    new = root.with_name(f".{root.name}.unpacking")
    shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
    try:
        unpack.unpack(file, new, archive.wanted)
        unpacked = new / archive.top
        if missing := _absent((archive,), unpacked):
            raise InputError(f"{file} holds no {missing[0]}: it is not the archive that is meant")
        unpack.merge(unpacked, root, last=[root / path for path in archive.provides])
    except OSError as error:
        raise InputError(
            f"{file} cannot be unpacked into {root} ({error.strerror}): clear what is there away"
        ) from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def custom_archive(source: str, provides: tuple[str, ...]) -> Archive:
    """The archive of a data set that is not in the table: a file, or a URL with `#sha256=<hex>` or `#md5=<hex>`.

    Raises:
        InputError: the URL names no file, or its checksum is none.
    """
    if not _is_url(source):
        return Archive(Remote(Path(source).name, ()), provides)
    address, fragment = urldefrag(source)
    name = Path(urlsplit(address).path).name
    if not fragment:
        _log.warning("data.source has no checksum (#sha256=<hex> after the URL): what arrives is not verified")
    if not name or not re.fullmatch(r"((md5|sha256)=[0-9a-fA-F]{8,64})?", fragment):
        raise InputError(f"data.source must be the URL of a file, with #sha256=<hex> or #md5=<hex>, got {source!r}")
    return Archive(Remote(name, (address,), fragment.replace("=", ":") or None), provides)
