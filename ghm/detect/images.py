"""The user's images: found, told apart, and kept from being overwritten."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ghm.errors import InputError

ENDINGS = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Listed:
    """An image to look at."""

    path: Path
    picture: str  # name of the picture that is made of it, no other's


def collect(places: Sequence[Path], out: Path) -> list[Listed]:
    """The images that `places` name, each once. Folders are searched, not for hidden files, and not below `out`.

    Raises:
        InputError: a place does not exist, or a folder holds no image.
    """
    paths: dict[Path, Path] = {}  # where it really is -> as it was named
    for place in places:
        if not place.exists():
            raise InputError(f"{place} does not exist: name an image or a folder of images")
        for path in _search(place, out) if place.is_dir() else [place]:
            paths.setdefault(path.resolve(), path)
    return [Listed(path, name) for path, name in zip(paths.values(), _pictures(list(paths.values())), strict=True)]


def require_apart(images: Sequence[Listed], out: Path) -> None:
    """Raise InputError where a picture in `out` would take the place of an image."""
    originals = {image.path.resolve() for image in images}
    lost = [out / image.picture for image in images if (out / image.picture).resolve() in originals]
    if lost:
        raise InputError(f"a picture would overwrite your image {lost[0]}: name another --out, or give --no-pictures")


def _search(folder: Path, out: Path) -> list[Path]:
    ours = out.resolve()
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in ENDINGS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and (ours == folder.resolve() or ours not in path.resolve().parents)
    ]
    if not found:
        raise InputError(f"{folder} holds no image that can be read ({', '.join(ENDINGS)}): name a folder that does")
    return found


def _pictures(paths: Sequence[Path]) -> list[str]:
    """`a.jpg` for a.png; `a-2.jpg` for the second file of that name. Some disks take `A.jpg` for `a.jpg`."""
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        name, number = f"{path.stem}.jpg", 1
        while name.casefold() in taken:
            number += 1
            name = f"{path.stem}-{number}.jpg"
        names.append(name)
        taken.add(name.casefold())
    return names
