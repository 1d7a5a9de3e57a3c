"""Detect on images, draw what is found and write a COCO file; or on a split, for COCO's evaluation server."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ghm import files
from ghm.data.images import decode
from ghm.detect import drawing
from ghm.detect.detector import Detector
from ghm.errors import InputError
from ghm.predict import predict
from ghm.runs import DETECTIONS
from ghm.training.samples import BadImages
from ghm.words import count

ENDINGS = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_log = logging.getLogger(__name__)


def detect(detector: Detector, named: Sequence[Path], out: Path, score: float, pictures: bool) -> None:
    """Detect on images and write `out/detections.json` and `out/<name>.jpg`, `<name>-<id>` where a name is there twice.

    Args:
        named: images, and folders to search for images.
        score: detections below it are left out.
        pictures: whether to draw.

    Raises:
        InputError: what was named is not there, a picture might overwrite an image, or no image can be read: then
            nothing is written. Or some images cannot be read: then everything else is.
    """
    paths = _collect(named, out)
    if pictures and out.resolve() in {path.resolve().parent for path in paths}:
        raise InputError(f"pictures might overwrite your images in {out}: name another --out, or give --no-pictures")
    bad_images = BadImages(len(paths))
    read: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    names: set[str] = set()
    with logging_redirect_tqdm():
        batches = detector.batches(tqdm(paths, unit="image", disable=None))
        for sample, found in predict(detector.model, batches, bad_images):
            found = found.above(score)
            path, (height, width) = Path(sample.img_path), sample.ori_shape
            read.append({"id": sample.img_id, "file_name": path.as_posix(), "width": width, "height": height})
            for row in found.coco(sample.img_id, detector.category_ids):
                boxes.append({"id": len(boxes) + 1, **row, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0})
            if pictures:
                out.mkdir(parents=True, exist_ok=True)
                texts = [f"{detector.classes[n]} {s:.2f}" for n, s in zip(found.label_N, found.score_N, strict=True)]
                name = path.stem
                while name.casefold() in names:  # some disks take `A.jpg` for `a.jpg`
                    name += f"-{sample.img_id}"
                names.add(name.casefold())
                drawing.draw(decode(path.read_bytes()), found, texts, out / f"{name}.jpg")
    if not read:
        raise InputError(f"none of {count(len(paths), 'file')} is an image that can be read, see above")
    pairs = zip(detector.category_ids, detector.classes, strict=True)
    categories = [{"id": number, "name": name} for number, name in pairs]
    files.write_json(out / DETECTIONS, {"images": read, "annotations": boxes, "categories": categories})
    _log.info("%s on %s: %s", count(len(boxes), "box|boxes"), count(len(read), "image"), out / DETECTIONS)
    if bad_images.found:
        raise InputError(
            f"{len(bad_images.found):,} of {count(len(paths), 'image')} cannot be read, see above: all others are done"
        )


def _collect(named: Sequence[Path], out: Path) -> list[Path]:
    """The images that were named, each once. Folders are searched, not for hidden files, and not below `out`."""
    paths: dict[Path, Path] = {}  # where it really is -> as it was named
    for path in named:
        if not path.exists():
            raise InputError(f"{path} does not exist: name an image or a folder of images")
        images = [path]
        if path.is_dir():
            images = [
                image
                for image in sorted(path.rglob("*"))
                if image.suffix.lower() in ENDINGS
                and image.is_file()
                and not any(part.startswith(".") for part in image.relative_to(path).parts)
                and (out.resolve() == path.resolve() or out.resolve() not in image.resolve().parents)
            ]
        if not images:
            raise InputError(f"{path} holds no image that can be read ({', '.join(ENDINGS)}): name a folder that does")
        for image in images:
            paths.setdefault(image.resolve(), image)
    return list(paths.values())
