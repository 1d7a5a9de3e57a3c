"""Symlinks from `data/` to where a data set lies."""

import os
from pathlib import Path

from ghm.errors import InputError


def link(target: Path, place: Path, replaceable: Path) -> None:
    """Make `place` a symlink to `target`.

    Raises:
        InputError: something else is at `place` that `check_place` does not let go.
    """
    if place.is_symlink() and place.readlink() == target:
        return
    check_place(place, replaceable, wanted=f"a link to {target}")
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    temporary.symlink_to(target)
    temporary.replace(place)


def check_place(place: Path, replaceable: Path, wanted: str) -> None:
    """Let only a sound link into `replaceable` be replaced, the folder of what this program made or fetched.

    A link to anywhere else, a broken one, and a real file or folder are somebody's and stay.

    Raises:
        InputError: one of these is at `place`, where `wanted` should be.
    """
    if place.is_symlink():
        current = place.readlink()
        if not place.exists():
            raise InputError(f"{place} is a broken link to {current}, not {wanted}: remove it")
        if replaceable not in current.parents:
            raise InputError(f"{place} is a link to {current}, not {wanted}: remove it or set data.root to {current}")
    elif place.exists():
        raise InputError(f"{place} is in the way of {wanted}: move it and set data.root to where it is")
