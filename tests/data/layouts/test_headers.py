"""Laws of the sizes of images: labels are made to fit them, as EXIF turns them and whatever they say."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ghm.data.images import decode
from ghm.data.layouts import headers
from ghm.errors import InputError
from tests.data.layouts.conftest import (
    Writer,
    everything,
    picture,
    plain_coco,
    plain_voc,
    plain_yolo,
    prepared,
    said,
    voc,
    write,
    yolo,
)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_an_image_is_as_large_as_training_decodes_it(orientation: int, suffix: str, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(tmp_path / f"a.{suffix}", 0, exif=exif)
    height, width = decode((tmp_path / f"a.{suffix}").read_bytes()).shape[:2]
    assert headers.upright(headers.read(tmp_path, [f"a.{suffix}"])[f"a.{suffix}"]) == (width, height)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_labelled_before_exif_turned_the_image_lie_on_the_same_pixels(orientation: int, root: Path):
    plain_voc(root)
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[6:18, 4:24] = 255  # the box of the label
    Image.fromarray(pixels).save(root / "0.png", exif=exif)
    (root / "0.jpg").unlink()
    write(root / "0.xml", voc([(0, (4, 6, 20, 12))]))
    prepared(root)
    ((_, (x, y, w, h)),) = everything()["0.png"]
    seen = decode((root / "0.png").read_bytes()) > 0
    assert (
        seen.shape[:2] == (40, 30) and seen.sum() == seen[int(y) : int(y + h), int(x) : int(x + w)].sum() == 20 * 12 * 3
    )


@pytest.mark.parametrize(
    ("size", "box", "words"),
    [
        ((80, 60), (8, 12, 40, 24), "1 image of another size than labelled, in the same shape, boxes scaled along"),
        (
            (60, 30),
            (4, 6, 20, 12),
            "1 image of another size than labelled, boxes taken in pixels of the image",
        ),
    ],
)
def test_sizes_that_disagree_are_said_and_boxes_scaled_where_the_shape_is_the_same(
    size: tuple[int, int], box: tuple[float, ...], words: str, root: Path, caplog: pytest.LogCaptureFixture
):
    plain_voc(root)
    picture(root / "0.jpg", 0, size)
    assert words in said(root, caplog)
    assert everything()["0.jpg"][0] == ("cat", box)


@pytest.mark.parametrize("layout", [plain_yolo, plain_voc, plain_coco], ids=lambda each: each.__name__)
def test_an_image_that_cannot_be_read_is_refused_by_name(layout: Writer, root: Path):
    layout(root)
    next(root.rglob("3.jpg")).write_bytes(b"no image")
    with pytest.raises(InputError, match=r"1 image cannot be decoded, for example (images/)?3\.jpg .*max_bad_im"):
        prepared(root)


def test_yolo_boxes_are_shares_of_the_image_as_it_is_seen(root: Path):
    plain_yolo(root)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(root / "images/0.jpg", 0, exif=exif)
    write(root / "labels/0.txt", yolo([(0, (10, 15, 20, 15))]))
    prepared(root)
    assert everything()["images/0.jpg"] == [("cat", (7.5, 20, 15, 20))]
