"""Detect on images, draw what is found, and write it as a COCO file."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ghm import files
from ghm.data.images import decode
from ghm.detect import drawing, images
from ghm.detect.detector import Detector
from ghm.errors import InputError
from ghm.predict import predict
from ghm.runs import DETECTIONS
from ghm.training.samples import BadImages
from ghm.words import count

_log = logging.getLogger(__name__)


def detect(
    detector: Detector, named: Sequence[Path], out: Path, *, score: float, batch_size: int, pictures: bool
) -> None:
    """Detect on images and write `out/detections.json` and `out/<name>.jpg`.

    Args:
        named: images, and folders to search for images.
        score: detections below it are left out.
        batch_size: images at once, at most. Results do not depend on it.
        pictures: whether to draw.

    Raises:
        InputError: what was named is not there, or no image can be read: then nothing is written. Or some images cannot
            be read: then everything else is.
    """
    paths = images.collect(named, out)
    drawn = images.pictures(paths, out) if pictures else {}
    bad_images = BadImages(len(paths))
    read: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    with logging_redirect_tqdm():
        batches = detector.batches(tqdm(paths, unit="image", disable=None), batch_size)
        for sample, found in predict(detector.model, batches, bad_images):
            found = found.above(score)
            path, (height, width) = Path(sample.img_path), sample.ori_shape
            read.append({"id": sample.img_id, "file_name": path.as_posix(), "width": width, "height": height})
            for row in found.coco(sample.img_id, detector.category_ids):
                boxes.append({"id": len(boxes) + 1, **row, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0})
            if pictures:
                out.mkdir(parents=True, exist_ok=True)
                labelled = zip(found.label_N, found.score_N, strict=True)
                texts = [f"{detector.classes[label]} {certainty:.2f}" for label, certainty in labelled]
                drawing.save(drawing.draw(decode(path.read_bytes()), found, texts), drawn[path])
    if not read:
        raise InputError(f"none of {count(len(paths), 'file')} is an image that can be read, see above")
    named_ids = zip(detector.category_ids, detector.classes, strict=True)
    categories = [{"id": number, "name": name} for number, name in named_ids]
    files.write_json(out / DETECTIONS, {"images": read, "annotations": boxes, "categories": categories})
    _log.info("%s on %s: %s", count(len(boxes), "box|boxes"), count(len(read), "image"), out / DETECTIONS)
    if bad_images.found:
        raise InputError(
            f"{len(bad_images.found):,} of {count(len(paths), 'image')} cannot be read, see above: all others are done"
        )
