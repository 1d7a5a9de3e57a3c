"""Image files: the one way to decode them, for training, evaluation and detection, and why one cannot be read."""

import contextlib
import io

import cv2
import numpy as np
from PIL import Image

FORMATS = "JPEG, PNG, BMP, TIFF, WebP, GIF, AVIF"
_PNG = b"\x89PNG"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class UnreadableError(Exception):
    """An image cannot be read; the message says why."""


def decode(content: bytes) -> np.ndarray:
    """Decode an image file, turned as its EXIF says: uint8 [height, width, 3] in B, G, R.

    Of an animation, it is the first image.

    Raises:
        UnreadableError: it is no image; it is cut off, which OpenCV would fill with grey; or it has not 8 bits per
            channel: of 16, OpenCV would keep the upper 8, and what a camera with 12 saw would be almost black.
    """
    if reason := fault(content):
        raise UnreadableError(reason)
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise UnreadableError(" ".join(str(error).split())) from None
    if image is None:
        raise UnreadableError("it is no image that OpenCV can decode")
    if image.dtype != np.uint8:
        raise UnreadableError(f"its numbers are {image.dtype}: convert it to 8 bits per channel")
    return image


def fault(content: bytes) -> str | None:
    """Why the content of a file is no whole image, as far as it can be seen without decoding; None where it is one.

    What ends in an unusual way is decoded by Pillow, which notices what is missing, and what begins in an unusual way
    by OpenCV.
    """
    if not content:
        return "the file is empty"
    if _is_whole(content[:64], content[-64:], len(content)):
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
    with contextlib.suppress(cv2.error):
        if cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) is not None:
            return None
    return f"it is no image that OpenCV can decode ({FORMATS} are)"


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
