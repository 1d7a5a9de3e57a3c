"""Laws of links: made, kept, moved within our own store; what is somebody else's is reported and stays."""

from pathlib import Path

import pytest
from ghm.data.links import link

from ghm.errors import InputError


def test_a_link_is_made_kept_and_moved_within_our_own_store(tmp_path: Path):
    store, place = tmp_path / "store", tmp_path / "data" / "digits"
    for name in ("a", "b"):
        (store / name).mkdir(parents=True)
    link(store / "a", place, replaceable=store)
    link(store / "a", place, replaceable=store)
    assert place.resolve() == store / "a"
    link(store / "b", place, replaceable=store)
    assert place.resolve() == store / "b"
    assert [path.name for path in place.parent.iterdir()] == ["digits"]


def test_a_foreign_link_a_broken_one_and_a_real_folder_are_reported_and_stay(tmp_path: Path):
    store, foreign, place = tmp_path / "store", tmp_path / "foreign", tmp_path / "data" / "coco"
    foreign.mkdir()
    place.parent.mkdir()
    place.symlink_to(foreign)
    with pytest.raises(InputError, match="is a link to .*foreign.*: remove it or set data.root to .*foreign"):
        link(store / "coco", place, replaceable=store)
    assert place.resolve() == foreign
    for gone in (tmp_path / "gone", store / "gone"):
        place.unlink()
        place.symlink_to(gone)
        with pytest.raises(InputError, match="is a broken link to .*gone.*: remove it"):
            link(store / "coco", place, replaceable=store)
        assert place.readlink() == gone
    place.unlink()
    place.mkdir()
    with pytest.raises(InputError, match="is in the way of a link"):
        link(store / "coco", place, replaceable=store)
    assert place.is_dir()
