"""Where the public data sets come from: every URL and checksum, and how a copy of them is found or fetched.

A copy is looked for in `data.root`, then in `data.source` when that is a folder, then in the store; what the store
lacks is fetched, verified and unpacked there. An archive that was fetched is deleted once it is unpacked.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urldefrag, urlsplit

from ghm.data import download, unpack
from ghm.data.part import Part, Remote
from ghm.errors import InputError
from ghm.files import alone, require_space

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Archive:
    """An archive and what it leaves in the data set's folder."""

    remote: Remote
    provides: tuple[str, ...]  # paths below the root; whoever has them does not need the archive
    strip: int = 0  # leading folders of the names inside that are dropped
    wanted: tuple[str, ...] = ()  # what is unpacked, () = all
    tree_sha256: str | None = None  # of the wanted files, for hosts that pack anew what they send


# MD5 of COCO as published with the data set; sizes as its servers report them. COCO's host has no valid certificate for
# https, so it is the checksum that protects. fast.ai's bucket holds the same files.
def _coco(name: str, folder: str, md5: str, size: int) -> Remote:
    urls = (f"http://images.cocodataset.org/{folder}/{name}", f"https://s3.amazonaws.com/fast-ai-coco/{name}")
    return Remote(name, urls, f"md5:{md5}", size)


def _voc(year: int, name: str, md5: str, size: int) -> Remote:
    path = f"pascal/VOC/voc{year}/{name}"
    urls = (
        f"http://host.robots.ox.ac.uk/{path}",
        f"https://thor.robots.ox.ac.uk/{path}",
        f"https://data.pjreddie.com/files/{name}",
    )
    return Remote(name, urls, f"md5:{md5}", size)


_INSTANCES = ("annotations/instances_train2017.json", "annotations/instances_val2017.json")
_BCCD_COMMIT = "d272fb14cdff6e473fafeeeba32aba5f560e9e43"

ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "coco": (
        Archive(
            _coco("annotations_trainval2017.zip", "annotations", "f4bbac642086de4f52a3fdda2de5fa2c", 252_907_541),
            provides=_INSTANCES,
            wanted=_INSTANCES,
        ),
        Archive(
            _coco("val2017.zip", "zips", "442b8da7639aecaf257c1dceb8ba8c80", 815_585_330),
            provides=("val2017",),
        ),
        Archive(
            _coco("train2017.zip", "zips", "cced6f7f71b7629ddf16f17bbcfab6b2", 19_336_861_798),
            provides=("train2017",),
        ),
    ),
    "coco test2017": (
        Archive(
            # No checksum of this file is published: its length and the CRCs inside are all that is checked.
            Remote("image_info_test2017.zip", ("http://images.cocodataset.org/annotations/image_info_test2017.zip",)),
            provides=("annotations/image_info_test-dev2017.json",),
        ),
        Archive(
            _coco("test2017.zip", "zips", "77ad2c53ac5d0aea611d422c0938fb35", 6_646_970_404),
            provides=("test2017",),
        ),
    ),
    "voc": (
        Archive(
            _voc(2007, "VOCtrainval_06-Nov-2007.tar", "c52e279531787c972589f7e41ab4ae64", 460_032_000),
            provides=("VOC2007/ImageSets/Main/trainval.txt",),
            strip=1,
        ),
        Archive(
            _voc(2007, "VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f", 451_020_800),
            provides=("VOC2007/ImageSets/Main/test.txt",),
            strip=1,
        ),
        Archive(
            _voc(2012, "VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd", 1_999_639_040),
            provides=("VOC2012/ImageSets/Main/trainval.txt",),
            strip=1,
        ),
    ),
    "bccd": (
        Archive(
            Remote(
                f"BCCD_Dataset-{_BCCD_COMMIT}.zip",
                (
                    f"https://github.com/Shenggan/BCCD_Dataset/archive/{_BCCD_COMMIT}.zip",
                    f"https://codeload.github.com/Shenggan/BCCD_Dataset/zip/{_BCCD_COMMIT}",
                ),
            ),
            provides=("BCCD",),
            strip=1,
            wanted=("BCCD", "LICENSE"),
            tree_sha256="b5fa7e32e92e3cfdbc59cdfbc09b4ff959804ac2a06c7ed59f89833c1fd97879",
        ),
    ),
}


def given(name: str, root: str, archives: tuple[Archive, ...]) -> Path:
    """The existing copy at `root`, whole.

    Raises:
        InputError: it is not there, or lacks something; nothing is fetched into a folder that a person named.
    """
    place = Path(root).expanduser().absolute()
    if not place.is_dir():
        needed = ", ".join(path for archive in archives for path in archive.provides)
        raise InputError(f"{place} is missing: set data.root or GHM_DATA_ROOT to a copy of {name} with {needed}")
    lacking = [path for archive in archives for path in archive.provides if not (place / path).exists()]
    if lacking:
        raise InputError(f"{place} is no copy of {name}: {', '.join(lacking)} missing below it; correct data.root")
    return place


def find_or_fetch(name: str, root: Path, archives: tuple[Archive, ...], source: str | None) -> Path:
    """Return where the data set lies, `root` or the folder `source`, after fetching and unpacking what `root` lacks.

    Args:
        name: of the data set, for messages.
        root: its place in the store.
        archives: what it consists of.
        source: `data.source`; a URL of the folder that holds the archives, or of the only archive; a folder that holds
            the data set or the archives; the only archive.

    Raises:
        InputError: nothing there fits, or an archive cannot be had, verified or unpacked.
    """
    local = Path(source).expanduser().absolute() if source and not _is_url(source) else None
    if local is not None and not local.exists():
        raise InputError(f"data.source must be a URL or an existing folder or archive, got {source!r}")
    if local is not None and local.is_dir():
        if all((local / path).exists() for archive in archives for path in archive.provides):
            return local
        absent = [archive.remote.name for archive in archives if not (local / archive.remote.name).is_file()]
        if absent:
            raise InputError(f"data.source: {local} holds neither a copy of {name} nor {', '.join(absent)}")
    if not _lacking(archives, root):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with alone(root.with_name(f".{root.name}.lock"), name):  # whoever waited here finds everything there
        lacking = _lacking(archives, root)
        size = sum(archive.remote.bytes or 0 for archive in lacking)
        _log.info("%s: %d archives to get, %.1f GB, into %s", name, len(lacking), size / 1e9, root)
        downloads = root.parent / "downloads"
        if local is None:
            _require_space(name, lacking, downloads)
        for archive in lacking:
            file = _archive_file(archive, archives, source, local, downloads)
            _unpack(archive, root, file, fetched=local is None)
    return root


def _require_space(name: str, archives: list[Archive], downloads: Path) -> None:
    """Room for all that is unpacked, of images about as much as the archives have, and for one archive at a time."""
    sizes = [archive.remote.bytes or 0 for archive in archives]
    there = [Part(archive.remote, downloads).size for archive in archives]
    require_space(sum(sizes) + max(size - part for size, part in zip(sizes, there, strict=True)), downloads, name)


def _is_url(text: str) -> bool:
    return urlsplit(text).scheme in ("http", "https")


def _lacking(archives: tuple[Archive, ...], root: Path) -> list[Archive]:
    """Those whose files are not there, or may be there in part."""
    begun, names = set(unpack.is_unpacking(root)), {archive.remote.name for archive in archives}
    if begun - names:  # the only archive, unpacked from a file of another name
        return list(archives)
    return [
        archive
        for archive in archives
        if archive.remote.name in begun or not all((root / path).exists() for path in archive.provides)
    ]


def _archive_file(
    archive: Archive, archives: tuple[Archive, ...], source: str | None, local: Path | None, downloads: Path
) -> Path:
    """The archive on disk, verified."""
    remote = archive.remote
    if local is not None:
        if local.is_file() and len(archives) > 1:
            names = ", ".join(each.remote.name for each in archives)
            raise InputError(f"data.source must be the folder that holds {names}, got the file {local}")
        file = local if local.is_file() else local / remote.name
        wrong = download.verify(file, remote)
        if wrong:
            raise InputError(f"data.source: {file} is not the file that it should be: {wrong}")
        return file
    if source:
        remote = replace(remote, urls=(_elsewhere(source, remote.name, alone=len(archives) == 1),))
    return download.fetch(remote, downloads)


def _elsewhere(source: str, name: str, alone: bool) -> str:
    is_file = urlsplit(source).path.endswith((".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2"))
    if is_file and not alone:
        raise InputError(f"data.source must be the URL of the folder that holds {name} and the others, got {source!r}")
    return source if is_file else f"{source.rstrip('/')}/{name}"


def _unpack(archive: Archive, root: Path, file: Path, fetched: bool) -> None:
    if archive.tree_sha256:
        found = unpack.tree_sha256(file, strip=archive.strip, wanted=archive.wanted)
        if found != archive.tree_sha256:
            if fetched:
                file.unlink()
            raise InputError(
                f"the files in {file} are not those that were published: SHA-256 of their list must be "
                f"{archive.tree_sha256}, got {found}"
            )
    unpack.unpack(file, root, strip=archive.strip, wanted=archive.wanted)
    if fetched:
        file.unlink()


def own_archive(source: str, provides: tuple[str, ...]) -> Archive:
    """The archive of a data set that is not in the table: a file, or a URL with `#sha256=<hex>` or `#md5=<hex>`.

    Raises:
        InputError: the URL names no file, or its checksum is none.
    """
    if not _is_url(source):
        return Archive(Remote(Path(source).name, ()), provides)
    address, fragment = urldefrag(source)
    if not fragment:
        _log.warning("data.source has no checksum (#sha256=<hex> after the URL): what arrives is not verified")
    name = Path(urlsplit(address).path).name
    try:
        return Archive(Remote(name, (address,), fragment.replace("=", ":", 1) or None), provides)
    except ValueError as error:
        raise InputError(f"data.source {source!r} cannot be used: {error}") from None
