"""Laws of image files: one way to decode for training, evaluation and detection, and a reason for what it refuses."""

import io
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from ghm.data.images import UnreadableError, decode, fault


def picture(height: int = 90, width: int = 120) -> np.ndarray:
    """Smooth colours: uint8 [height, width, 3]."""
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(kind: str, image: np.ndarray | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture() if image is None else image).save(buffer, kind, **options)
    return buffer.getvalue()


ANIMATION = encoded("GIF", save_all=True, append_images=[Image.fromarray(255 - picture())])
FILES = {
    "jpg": encoded("JPEG"),
    "png": encoded("PNG"),
    "bmp": encoded("BMP"),
    "tiff": encoded("TIFF"),
    "lzw.tiff": encoded("TIFF", compression="tiff_lzw"),
    "webp": encoded("WEBP"),
    "gif": encoded("GIF"),
    "avif": encoded("AVIF"),
    "jp2": encoded("JPEG2000"),
    "animated.gif": ANIMATION,
}


@pytest.mark.parametrize("kind", FILES)
def test_every_format_is_read_as_pillow_reads_it(kind: str):
    with Image.open(io.BytesIO(FILES[kind])) as image:
        expected = np.asarray(image.convert("RGB"))[..., ::-1]
    assert fault(FILES[kind]) is None
    tolerance = kind == "jpg"  # two decoders of JPEG may differ
    assert np.abs(decode(FILES[kind]).astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("kind", FILES)
def test_a_part_of_a_file_is_refused_or_holds_the_whole_image(kind: str):
    content = FILES[kind]
    whole, reasons = decode(content), []
    for length in [*range(0, len(content), max(1, len(content) // 40)), *range(len(content) - 9, len(content))]:
        try:
            assert np.array_equal(decode(content[:length]), whole), length
        except UnreadableError as error:
            reasons.append(str(error))
    assert all(reason.strip() and "\n" not in reason for reason in reasons)
    assert len(reasons) > 20 or kind == "animated.gif"


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "gif", "jp2"])
def test_that_a_file_is_cut_off_is_seen_without_decoding_it_whole(kind: str):
    assert fault(FILES[kind]) is None
    assert fault(FILES[kind][: len(FILES[kind]) // 2])
    assert fault(b"") == "the file is empty"
    assert str(fault(b"<html>not found</html>")).startswith("it is no image that OpenCV can decode (JPEG, PNG, ")


@pytest.mark.parametrize("ending", [".png", ".tiff"])
@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_numbers_that_8_bits_cannot_hold_are_refused(ending: str, kind: Any):
    if (ending, kind) != (".png", np.float32):
        image = np.linspace(0, 1023, 90 * 120 * 3).astype(kind).reshape(90, 120, 3)
        with pytest.raises(UnreadableError, match=f"its numbers are {kind.__name__}: convert it to 8 bits per channel"):
            decode(cv2.imencode(ending, image)[1].tobytes())
