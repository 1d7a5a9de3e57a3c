"""Laws of changed data: noticed by content, whatever their times say; and nothing is read twice without need."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ghm import data
from ghm.data import content
from ghm.errors import InputError
from tests.data.conftest import parameters, write_coco


@pytest.fixture
def root(here: Path) -> Path:
    """A copy of a data set `coco` whose files have been there for years, by their times."""
    root = write_coco(here / "coco")
    for path in root.rglob("*"):
        os.utime(path, ns=(10**18, 10**18))
    return root


def manifest(root: Path) -> bytes:
    data.prepare(parameters("coco", root=str(root)))
    data.ensure(parameters("coco", root=str(root)))
    return data.manifest_path(parameters("coco", root=str(root))).read_bytes()


def swap_two_category_ids(root: Path) -> None:
    """As many bytes as before."""
    path = root / "annotations/instances_train2017.json"
    size, file = path.stat().st_size, json.loads(path.read_text())
    for box in file["annotations"]:
        box["category_id"] = 10 - box["category_id"]
    path.write_text(json.dumps(file))
    assert path.stat().st_size == size


def change_a_bit_and_hide_it(root: Path) -> None:
    """The same number of bytes, and the same time of modification."""
    path = root / "train2017" / "train1.jpg"
    before = path.stat()
    content = bytearray(path.read_bytes())
    place = next(n for n in range(len(content) - 9, 0, -1) if 0xFF not in (content[n - 1], content[n], content[n] ^ 1))
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


@pytest.mark.parametrize("change", [swap_two_category_ids, change_a_bit_and_hide_it])
def test_data_that_change_are_refused_by_every_stage_and_described_anew_by_the_first(
    root: Path, change: Callable[[Path], None]
):
    before = manifest(root)
    change(root)
    with pytest.raises(InputError, match=r"data are not those that data/coco\.json describes: .*coco.* changed"):
        data.ensure(parameters("coco", root=str(root)))
    assert data.manifest_path(parameters("coco", root=str(root))).read_bytes() == before
    assert manifest(root) != before


def test_a_missing_image_is_named(root: Path):
    manifest(root)
    (root / "val2017" / "val2.jpg").unlink()
    with pytest.raises(InputError, match=r"1 image missing in .*val2017, for example val2\.jpg"):
        data.ensure(parameters("coco", root=str(root)))


def test_the_same_content_is_the_same_data_touched_copied_or_moved(root: Path, tmp_path: Path):
    before = manifest(root)
    for path in root.rglob("*"):
        path.touch()
    assert manifest(root) == before
    moved = tmp_path / "elsewhere"
    root.rename(moved)
    data.FOLDER.joinpath("coco").unlink()  # a link that is somebody's is never replaced
    assert manifest(moved) == before
    shutil.copytree(moved, root)
    data.FOLDER.joinpath("coco").unlink()
    assert manifest(root) == before


def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read from now on."""
    names: list[str] = []
    own = content._read
    monkeypatch.setattr(content, "_read", lambda path, is_image: (names.append(path.name), own(path, is_image))[1])
    return names


def test_what_has_not_changed_is_not_read_again(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(content, "SETTLED", -(10**12))  # as if all had been written long ago
    manifest(root)
    names = read(monkeypatch)
    manifest(root)
    assert names == []
    (root / "val2017" / "val1.jpg").touch()
    manifest(root)
    assert names == ["val1.jpg"]


def test_a_file_that_was_written_just_before_it_was_read_is_read_again(root: Path, monkeypatch: pytest.MonkeyPatch):
    """Its time may be that of the next change, too."""
    path = root / "val2017" / "val1.jpg"
    path.write_bytes(path.read_bytes())
    manifest(root)
    names = read(monkeypatch)
    data.ensure(parameters("coco", root=str(root)))
    assert "val1.jpg" in names


def test_checksums_that_cannot_be_kept_or_are_damaged_are_made_again(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    before = manifest(root)
    for path in (tmp_path / "store" / "index").iterdir():
        path.write_bytes(b'{"a": [')
    assert manifest(root) == before
    (tmp_path / "file").touch()
    assert content.contents(tmp_path / "file", root / "val2017", ["val1.jpg", "nowhere.jpg"]).keys() == {"val1.jpg"}
    assert "checksums cannot be kept in" in caplog.text and "set GHM_DATA_ROOT" in caplog.text.replace("Set", "set")
