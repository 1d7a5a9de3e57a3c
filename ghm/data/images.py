"""Image files: the one way to decode them, for training, evaluation and detection, and why one cannot be read."""

import io

import cv2
import numpy as np
from PIL import Image

FORMATS = "JPEG, PNG, BMP, TIFF, WebP, GIF, AVIF"
HEAD = 64  # bytes that tell a format
TAIL = 64  # bytes within which a whole file of JPEG or PNG ends
DARK = 1 << 12  # a 16-bit image whose values all lie below it would be 15 of 255 at its brightest
_PNG = b"\x89PNG"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class UnreadableError(Exception):
    """An image cannot be read; the message says why."""


def decode(content: bytes) -> np.ndarray:
    """Decode an image file, turned as its EXIF says: uint8 [height, width, 3] in B, G, R.

    Of an animation, it is the first image.

    Raises:
        UnreadableError: it is no image; it is cut off, which OpenCV would fill with grey; or its numbers would turn
            almost black in 8 bits.
    """
    reason = fault(content)
    image = None
    if reason is None:
        try:
            image = _decode(content, cv2.IMREAD_COLOR)
            reason = _depth_fault(content)
        except cv2.error as error:
            reason = " ".join(str(error).split())
    if reason is None and image is None:
        reason = "it is no image that OpenCV can decode"
    if reason is not None:
        raise UnreadableError(reason)
    assert image is not None
    return image


def fault(content: bytes) -> str | None:
    """Why the content of a file is no whole image, as far as it can be seen without decoding; None where it is one.

    What ends in an unusual way is decoded by Pillow, which notices what is missing, and what begins in an unusual way
    by OpenCV.
    """
    if not content:
        return "the file is empty"
    if _is_whole(content[:HEAD], content[-TAIL:], len(content)):
        return None
    if content.startswith((b"\xff\xd8", _PNG, b"GIF8")):
        try:
            with Image.open(io.BytesIO(content)) as image:
                image.load()
        except Image.UnidentifiedImageError:
            return "it is cut off"
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            return str(error).strip() or type(error).__name__
        return None
    if content.startswith(b"RIFF"):
        return "it is cut off"
    try:
        known = _decode(content, cv2.IMREAD_COLOR) is not None
    except cv2.error:
        known = False
    return None if known else f"it is no image that OpenCV can decode ({FORMATS} are)"


def _is_whole(head: bytes, tail: bytes, size: int) -> bool:
    """Whether a file of a known format ends as it should, or nothing can be said without decoding it."""
    if head.startswith(b"\xff\xd8"):
        return b"\xff\xd9" in tail
    if head.startswith(_PNG):
        return b"IEND" in tail
    if head.startswith(b"GIF8"):
        return tail.rstrip(b"\0").endswith(b";")
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return int.from_bytes(head[4:8], "little") + 8 <= size
    is_avif = head[4:8] == b"ftyp" and b"avi" in head[8:32]
    return is_avif or head.startswith((b"BM", *_TIFF))


def _depth_fault(content: bytes) -> str | None:
    """Why an image of more than 8 bits per channel would not be seen as it is: OpenCV keeps the upper 8 of 16 bits."""
    if not (content.startswith(_TIFF) or (content.startswith(_PNG) and content[24:25] == b"\x10")):
        return None
    image = _decode(content, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if image is None or image.dtype == np.uint8:
        return None
    if image.dtype != np.uint16:
        return f"its numbers are {image.dtype}: convert it to 8 bits per channel"
    if image.max() >= DARK:
        return None
    return (
        f"it has 16 bits per channel and its largest value is {image.max()}, which would be seen as almost black: "
        "convert it to 8 bits per channel"
    )


def _decode(content: bytes, flags: int) -> np.ndarray | None:
    return cv2.imdecode(np.frombuffer(content, np.uint8), flags)  # type: ignore[return-value]
