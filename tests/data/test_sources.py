"""Laws of where data sets come from: found before fetched, linked and never copied, verified before unpacked."""

import hashlib
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ghm import data, params
from ghm.data import sources
from ghm.data.download import Remote
from ghm.data.sources import Archive
from ghm.errors import InputError
from tests.data.conftest import SETTINGS, SHARED, Reply, Server, parameters, serving, write_coco

BCCD = SHARED / "bccd"
NAMES = ("annotations", "train2017", "val2017")
CUSTOM = params.Custom(
    **SETTINGS,
    train=params.CustomSplit("annotations/instances_train2017.json", "train2017"),
    val=params.CustomSplit("annotations/instances_val2017.json", "val2017"),
    test=None,
)


@pytest.fixture(autouse=True)
def place(here: Path) -> Path:
    return here


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "copy")


def zipped(root: Path, names: tuple[str, ...], top: str = "") -> bytes:
    """An archive of files and folders below `root`."""
    path = root.parent / "archive.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            for member in sorted([root / name, *(root / name).rglob("*")]):
                file.write(member, top + str(member.relative_to(root)))
    return path.read_bytes()


@pytest.fixture
def archives(copy: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Small archives in the place of COCO's, with their checksums in the table."""
    contents = {f"{name}.zip": zipped(copy, (name,)) for name in NAMES}
    table = []
    for name in NAMES:
        data_ = contents[f"{name}.zip"]
        provides = ("annotations/instances_train2017.json",) if name == "annotations" else (name,)
        remote = Remote(f"{name}.zip", ("http://127.0.0.1:9/",), f"md5:{hashlib.md5(data_).hexdigest()}", len(data_))
        table.append(Archive(remote, provides))
    monkeypatch.setitem(sources.ARCHIVES, "coco", tuple(table))
    return contents


@pytest.fixture
def server(archives: dict[str, bytes]) -> Iterator[Server]:
    with serving(b"", **{name: [Reply(content=data_)] for name, data_ in archives.items()}) as running:
        yield running


def linked(name: str = "coco") -> Path:
    return (Path("data") / name).resolve()


def test_what_is_missing_is_fetched_verified_unpacked_and_linked(place: Path, server: Server, copy: Path):
    setting = parameters("coco", source=server.url("/"))
    data.prepare(setting)
    assert linked() == place / "store" / "coco"
    for path in copy.rglob("*.*"):
        assert (linked() / path.relative_to(copy)).read_bytes() == path.read_bytes()
    assert data.read_manifest(setting)["splits"]["train"]["images"] == 2
    assert not list((place / "store" / "downloads").glob("*.zip"))  # what is unpacked is not kept twice
    data.prepare(setting)
    data.ensure(setting)
    assert [request.path for request in server.log] == [f"/{name}.zip" for name in NAMES]


def test_only_the_part_that_is_missing_is_fetched(server: Server):
    setting = parameters("coco", source=server.url())
    data.prepare(setting)
    shutil.rmtree(linked() / "val2017")
    data.prepare(setting)
    assert [request.path for request in server.log][3:] == ["/val2017.zip"]


def test_an_existing_copy_is_linked_and_neither_copied_nor_completed(place: Path, copy: Path, server: Server):
    data.prepare(parameters("coco", root=str(copy)))
    assert linked() == copy
    assert [path.name for path in (place / "store").iterdir()] == ["index"]  # checksums, and no copy
    shutil.rmtree(copy / "val2017")
    with pytest.raises(InputError, match="is no copy of coco: val2017 missing below it; set data.root to one"):
        data.prepare(parameters("coco", root=str(copy)))
    assert not server.log


def test_a_source_that_is_a_folder_has_the_archives(place: Path, archives: dict[str, bytes]):
    folder = place / "archives"
    folder.mkdir()
    (place / "file.zip").touch()
    for source in (str(folder), "none/such", str(place / "file.zip")):
        words = r"data\.source must be a URL or a folder with annotations\.zip, train2017\.zip, .*, got"
        with pytest.raises(InputError, match=f"{words} '{source}'"):
            data.prepare(parameters("coco", source=source))
    for name, data_ in archives.items():
        (folder / name).write_bytes(data_)
    data.prepare(parameters("coco", source=str(folder)))
    assert linked() == place / "store" / "coco"
    assert sorted(path.name for path in folder.iterdir()) == sorted(archives)


def test_an_archive_with_a_wrong_checksum_is_not_unpacked(place: Path, archives: dict[str, bytes]):
    for name, data_ in archives.items():
        (place / name).write_bytes(data_[:-1] + b"x")
    with pytest.raises(InputError, match=r"annotations\.zip is not the file that it should be: its md5 is"):
        data.prepare(parameters("coco", source=str(place)))
    assert not (place / "store" / "coco").exists()
    assert not Path("data").exists()


def test_an_unpacking_that_was_interrupted_is_begun_again(
    place: Path, archives: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    for name, data_ in archives.items():
        (place / name).write_bytes(data_)
    extract = zipfile.ZipFile.extract

    def broken(archive: zipfile.ZipFile, member: zipfile.ZipInfo, *rest: Any) -> str:
        if member.filename == "train2017/train2.jpg":
            raise KeyboardInterrupt
        return extract(archive, member, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(zipfile.ZipFile, "extract", broken)
        data.prepare(parameters("coco", source=str(place)))
    assert [path.name for path in (place / "store" / "coco").iterdir()] == ["annotations"]
    (place / "store" / ".coco.unpacking" / "train2017").mkdir(parents=True)  # of a process that was killed
    data.prepare(parameters("coco", source=str(place)))
    assert data.read_manifest(parameters("coco"))["splits"]["train"]["images"] == 2
    assert not list((place / "store").glob(".*.unpacking"))


def test_a_fetched_archive_that_is_damaged_and_has_no_checksum_is_fetched_again(place: Path, copy: Path):
    with serving(b"", **{"own.zip": [Reply(content=b"PK"), Reply(content=zipped(copy, NAMES))]}) as running:
        setting = parameters("custom", custom=CUSTOM, source=running.url("/own.zip"))
        with pytest.raises(InputError, match="is no whole zip or tar archive"):
            data.prepare(setting)
        data.prepare(setting)


def test_what_lies_in_the_way_is_reported_before_anything_is_fetched(copy: Path, archives: dict[str, bytes]):
    place = Path("data/coco")
    place.mkdir(parents=True)
    with pytest.raises(InputError, match="data/coco is in the way of a link"):
        data.prepare(parameters("coco"))
    place.rmdir()
    place.symlink_to(copy)
    with pytest.raises(InputError, match="data/coco is a link to .*copy, not .*set data.root to .*copy"):
        data.prepare(parameters("coco"))
    copy.rename(copy.with_name("moved"))
    with pytest.raises(InputError, match="data/coco is a link to .*copy, not .*: it is broken, remove it"):
        data.prepare(parameters("coco"))
    assert place.readlink() == copy


def test_a_data_set_of_ones_own_needs_no_list_of_classes(copy: Path, place: Path):
    data.prepare(parameters("custom", root=str(copy), custom=CUSTOM))
    assert data.read_manifest(parameters("custom"))["classes"] == ["seven", "three"]
    packed = zipped(copy, NAMES)
    (place / "own.tar").write_bytes(packed)
    with serving(packed) as running:
        address = running.url("/own.zip")
        for source in (f"{address}#sha256={hashlib.sha256(packed).hexdigest()}", str(place / "own.tar")):
            Path("data/custom").unlink()
            shutil.rmtree(place / "store")
            data.prepare(parameters("custom", source=source, custom=CUSTOM))
            assert data.read_manifest(parameters("custom"))["classes"] == ["seven", "three"]
        for source in (running.url(""), f"{address}#sha256=12", f"{address}#crc=12345678"):
            with pytest.raises(InputError, match=r"data\.source must be the URL of a file, with "):
                data.prepare(parameters("custom", source=source, custom=CUSTOM))
        with pytest.raises(InputError, match=r"own\.zip could not be fetched .*sha256"):
            data.prepare(parameters("custom", source=f"{address}#sha256={'0' * 64}", custom=CUSTOM))
    with pytest.raises(InputError, match="has no annotations/instances_train2017.json, .*, train2017, .*set data.root"):
        data.prepare(parameters("custom", custom=CUSTOM))


@pytest.mark.skipif(not BCCD.exists(), reason="a copy of BCCD is not there")
def test_bccd_is_unpacked_from_what_github_packs(place: Path, tmp_path: Path):
    root = tmp_path / "in" / "bccd"
    shutil.copytree(BCCD, root)
    top = "BCCD_Dataset-d272fb14cdff6e473fafeeeba32aba5f560e9e43/"
    with serving(zipped(root, ("BCCD", "LICENSE"), top)) as running:
        data.prepare(parameters("bccd", source=running.url("/BCCD.zip")))
    manifest = data.read_manifest(parameters("bccd"))
    assert {name: split["images"] for name, split in manifest["splits"].items()} == {
        "train": 205,
        "val": 87,
        "test": 72,
    }


def test_voc_appears_where_the_reference_has_it(place: Path, monkeypatch: pytest.MonkeyPatch):
    from tests.data.test_voc import thing
    from tests.data.test_voc import write as write_voc

    root = place / "VOCdevkit"
    for year, name, split in (("2007", "1", "trainval"), ("2007", "2", "test"), ("2012", "3", "trainval")):
        write_voc(root, f"VOC{year}", name, thing("dog") + thing("cat", difficult="1"), split)
        Image.new("RGB", (9, 8), (int(name), 0, 0)).save(root / f"VOC{year}" / "JPEGImages" / f"{name}.jpg")
    setting = parameters("voc", "none", root=str(root))
    data.prepare(setting)
    assert Path("data/VOCdevkit").resolve() == root
    train = data.read_manifest(setting)["splits"]["train"]
    assert (train["images"], train["boxes"], train["warnings"]["crowd_boxes"]) == (2, 4, 2)
    assert (Path("data/voc") / train["folder"] / "VOC2012" / "JPEGImages" / "3.jpg").exists()
    Path("data/VOCdevkit").unlink()
    data.ensure(setting)
    assert Path("data/VOCdevkit").resolve() == root
