"""The sizes of images from their headers, and labels made to fit them."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ghm.data.annotations import Annotations, Rectangle
from ghm.words import count

Header = tuple[int, int, int]  # width and height as they are stored, and EXIF's orientation
_TURNED = ("JPEG", "PNG", "WEBP")  # where OpenCV heeds EXIF; it and Pillow turn a TIFF alike when they open it
_ORIENTATION = 0x0112
_SAME_SHAPE = 0.01  # difference of the ratio of the sides
_DONE = {
    "turned": "labelled before EXIF turns it, boxes turned along",
    "scaled": "of another size than labelled, in the same shape, boxes scaled along",
    "shape": "of another size than labelled, boxes taken in pixels of the image as it is",
}


def read(root: Path, names: Sequence[str]) -> dict[str, Header]:
    """The headers of the images `names` below `root`; an image that cannot be read has none."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sizes = pool.map(lambda name: _header(root / name), names)
        found = tqdm(sizes, "sizes of images", len(names), unit="image", delay=1, leave=False)
        return {name: header for name, header in zip(names, found, strict=True) if header}


def _header(path: Path) -> Header | None:
    try:
        with Image.open(path) as image:
            orientation = image.getexif().get(_ORIENTATION, 1) if image.format in _TURNED else 1
            return *image.size, orientation
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # told by `validation`, with the reason
        return None


def upright(header: Header) -> tuple[int, int]:
    """Width and height as the image is seen, turned as EXIF says."""
    width, height, orientation = header
    return (height, width) if orientation >= 5 else (width, height)


def fit(content: Annotations, headers: dict[str, Header]) -> list[str]:
    """Give images the sizes that they have, and boxes of labels made for another size what that needs.

    Returns:
        What was done, a sentence for each entry of `_DONE`.
    """
    changes: dict[int, tuple[float, ...]] = {}
    found: dict[str, list[str]] = {}
    for image in content.images:
        header = headers.get(image.file_name)
        own, size = (image.width, image.height), upright(header) if header else (0, 0)
        if header is None or own == size:
            continue
        image.width, image.height = size
        if min(own) < 1:  # the labels say none
            continue
        kind = "shape"
        if own == header[:2]:
            kind, changes[image.id] = "turned", header
        elif abs(own[0] * size[1] - own[1] * size[0]) <= _SAME_SHAPE * own[0] * size[1]:
            kind, changes[image.id] = "scaled", (size[0] / own[0], size[1] / own[1])
        found.setdefault(kind, []).append(f"{image.file_name}, {size} and not {own}")
    for box in content.annotations if changes else ():
        if box.image_id in changes:
            box.bbox, box.area = _changed(box.bbox, changes[box.image_id]), None
    return [f"{count(len(cases), 'image')} {_DONE[kind]}, for example {cases[0]}" for kind, cases in found.items()]


def _changed(box: Rectangle, change: tuple[float, ...]) -> Rectangle:
    """Turned from the frame of a header, or scaled by two factors."""
    x, y, w, h = box
    if len(change) == 2:
        return x * change[0], y * change[1], w * change[0], h * change[1]
    width, height, orientation = change
    right, below = width - x - w, height - y - h
    return {5: (y, x, h, w), 6: (below, x, h, w), 7: (below, right, h, w), 8: (y, right, h, w)}[int(orientation)]
