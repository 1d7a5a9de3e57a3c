"""The user's images: found, told apart, and kept from being overwritten."""

from collections.abc import Sequence
from pathlib import Path

from ghm.errors import InputError

ENDINGS = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def collect(named: Sequence[Path], out: Path) -> list[Path]:
    """The images that were named, each once. Folders are searched, not for hidden files, and not below `out`.

    Raises:
        InputError: what was named does not exist, or a folder holds no image.
    """
    paths: dict[Path, Path] = {}  # where it really is -> as it was named
    for path in named:
        if not path.exists():
            raise InputError(f"{path} does not exist: name an image or a folder of images")
        for image in _search(path, out) if path.is_dir() else [path]:
            paths.setdefault(image.resolve(), image)
    return list(paths.values())


def _search(folder: Path, out: Path) -> list[Path]:
    images = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in ENDINGS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and (out.resolve() == folder.resolve() or out.resolve() not in path.resolve().parents)
    ]
    if not images:
        raise InputError(f"{folder} holds no image that can be read ({', '.join(ENDINGS)}): name a folder that does")
    return images


def pictures(images: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Image -> the picture in `out` that is made of it: `a.jpg` for a.png, `a-2.jpg` for the second file of that name.

    Raises:
        InputError: a picture would take the place of an image.
    """
    names: dict[str, Path] = {}
    for image in images:
        name, number = f"{image.stem}.jpg", 1
        while name.casefold() in map(str.casefold, names):  # some disks take `A.jpg` for `a.jpg`
            number += 1
            name = f"{image.stem}-{number}.jpg"
        names[name] = image
    originals = {image.resolve() for image in images}
    for name in names:
        if (out / name).resolve() in originals:
            raise InputError(
                f"a picture would overwrite your image {out / name}: name another --out, or give --no-pictures"
            )
    return {image: out / name for name, image in names.items()}
