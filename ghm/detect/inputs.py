"""What to detect on: images, folders and patterns that people name, and what a COCO file says of them."""

import contextlib
import glob
import logging
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from ghm.data import annotations
from ghm.data.annotations import Image, Unlabelled
from ghm.data.images import UnreadableError, decode, fault
from ghm.data.layouts.tree import IMAGE
from ghm.errors import InputError
from ghm.words import count

WHOLE = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
DEPTHS = (8, 10, 12, 14, 16)  # bits of a channel that cameras and scanners give, each in 16
_log = logging.getLogger(__name__)


def collect(named: Sequence[Path], out: Path) -> list[Path]:
    """The images that were named, each once. Folders are searched, not for hidden files, and not below `out`.

    Raises:
        InputError: what was named is not there, or holds no image.
    """
    paths: dict[Path, Path] = {}  # where it really is -> as it was named
    for path in named:
        images = [path] if path.is_file() else []
        if not path.exists():
            pattern = glob.glob(str(path), recursive=True)  # noqa: PTH207  (Path.glob takes no absolute one)
            images = [image for image in sorted(map(Path, pattern)) if image.is_file()]
            if not images:
                raise InputError(f"{path} does not exist: name an image, a folder of images or a pattern (`a/*.jpg`)")
        elif path.is_dir():
            images = [
                image
                for image in sorted(path.rglob("*"))
                if image.suffix.lower() in IMAGE
                and image.is_file()
                and not any(part.startswith(".") for part in image.relative_to(path).parts)
                and (out.resolve() == path.resolve() or out.resolve() not in image.resolve().parents)
            ]
        if not images:
            raise InputError(f"{path} holds no image that can be read ({', '.join(IMAGE)}): name a folder that does")
        for image in images:
            paths.setdefault(image.resolve(), image)
    return list(paths.values())


def read(path: Path) -> np.ndarray:
    """Decode an image as training does, and one of 16 bits per channel, too: uint8 [height, width, 3] in B, G, R.

    Of 16 bits the fewest of DEPTHS that hold the brightest pixel are taken for all of the range, and its upper 8 kept:
    what a camera with 12 saw is not almost black.

    Raises:
        UnreadableError: it cannot be read; the message says why.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UnreadableError(error.strerror or str(error)) from None
    try:
        return decode(content)
    except UnreadableError:
        image: Any = None
        with contextlib.suppress(cv2.error):
            image = None if fault(content) else cv2.imdecode(np.frombuffer(content, np.uint8), WHOLE)
        if image is None or image.dtype != np.uint16:
            raise
        bits = next(bits for bits in DEPTHS if image.max() < 2**bits)
        return (image >> (bits - 8)).astype(np.uint8)


def known(paths: Sequence[Path], file: Path, classes: Sequence[str]) -> tuple[dict[Path, Image], dict[str, int]]:
    """What a COCO file, which needs no boxes, says of images: the rows of those it has, and the ids of its classes.

    A row belongs to the image whose path ends in its file name.

    Args:
        classes: that are detected: the file must have them all.

    Raises:
        InputError: the file is no COCO file or ambiguous, has none of the images, or lacks a class.
    """
    content = annotations.read(file, Unlabelled, any_encoding=True)
    rows = {PurePosixPath(image.file_name.replace("\\", "/")).as_posix(): image for image in content.images}
    if len(rows) < len(content.images) or len({image.id for image in content.images}) < len(content.images):
        raise InputError(f"{file} has an id or a file name of an image twice: boxes could not be told apart by it")
    ids = {category.name: category.id for category in content.categories}
    if missing := [name for name in classes if name not in ids]:
        raise InputError(
            f"{file} has no class {missing[0]!r}, which the detector finds: leave it out with --classes, of "
            f"{', '.join(ids)}"
        )
    found: dict[Path, Image] = {}
    path_of: dict[int, Path] = {}
    for path in paths:
        parts = path.absolute().parts
        names = (Path(*parts[start:]).as_posix() for start in range(len(parts)))
        if row := next((rows[name] for name in names if name in rows), None):
            if path_of.setdefault(row.id, path) != path:
                raise InputError(f"{row.file_name} of {file} may be {path_of[row.id]} or {path}: name one of them")
            found[path] = row
    if not found:
        raise InputError(f"{file} names none of {count(len(paths), 'image')}, such as {paths[0]}")
    if len(found) < len(paths):
        _log.warning("%s that %s does not name: left out", count(len(paths) - len(found), "image"), file)
    if len(found) < len(rows):
        _log.warning("%s of %s: not among the images", count(len(rows) - len(found), "image"), file)
    return found, ids
