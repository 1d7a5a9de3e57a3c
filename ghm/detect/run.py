"""Detect on images, draw what is found and write COCO files."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ghm import drawing, files
from ghm.data import annotations
from ghm.detect import inputs
from ghm.detect.detector import Detector
from ghm.errors import InputError
from ghm.predict import Detections, predict
from ghm.runs import DETECTIONS
from ghm.training.samples import BadImages
from ghm.words import count

RESULTS = "results.json"  # the boxes alone, as pycocotools' `loadRes` takes them
LONGEST = 65_500  # pixels of a side that Pillow writes as JPEG
JPEG: Any = {"format": "JPEG", "quality": 95, "subsampling": 0}  # so that thin coloured lines stay sharp
_log = logging.getLogger(__name__)


def detect(
    detector: Detector, named: Sequence[Path], out: Path, *, pictures: bool = True, crops: bool = False,
    classes: Sequence[str] = (), file: Path | None = None,
) -> None:  # fmt: skip
    """Detect on images and write `out/detections.json` and pictures, `-<id>` in their names where one is there twice.

    Args:
        named: images, folders to search for images, and patterns of their paths.
        pictures: whether to write `out/<name>.jpg`, with boxes.
        crops: whether to write `out/crops/<class>/<name>-<id of the box>.jpg`.
        classes: the others are left out; none: all classes.
        file: a COCO file whose images are detected on, with its ids of images and classes; writes `results.json`, too.

    Raises:
        InputError: what was named is not there, a picture might overwrite an image, or no image can be read: then
            nothing is written. Or some images cannot be read: then everything else is.
    """
    paths = inputs.collect(named, out)
    if (pictures or crops) and out.resolve() in {path.resolve().parent for path in paths}:
        raise InputError(f"pictures might overwrite your images in {out}: name another --out, or give --no-pictures")
    if unknown := [name for name in classes if name not in detector.classes]:
        raise InputError(f"--classes must be among {', '.join(detector.classes)}, got {unknown[0]!r}")
    labels = [label for label, name in enumerate(detector.classes) if not classes or name in classes]
    rows, category_ids = {}, detector.category_ids
    categories = [*zip(detector.classes, category_ids, strict=True)]
    if file:
        rows, ids = inputs.known(paths, file, [detector.classes[label] for label in labels])
        paths, category_ids, categories = [*rows], [ids.get(name, 0) for name in detector.classes], [*ids.items()]
    bad_images, painter = BadImages(len(paths)), _Painter(detector, out, pictures, crops)
    read: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    best = 0.0
    with logging_redirect_tqdm():
        batches = detector.batches(tqdm(paths, unit="image", disable=None))
        for sample, everything in predict(detector.model, batches, bad_images):
            found = everything.where(np.isin(everything.label_N, labels))
            best, found = max([best, *found.score_N[:1].tolist()]), found.above(detector.score)
            path = Path(sample.img_path)
            read.append(_described(sample, rows.get(path)))
            painter(path, found, sample.img_id, len(boxes) + 1)
            for box in found.coco(read[-1]["id"], category_ids):
                boxes.append({"id": len(boxes) + 1, **box, "area": box["bbox"][2] * box["bbox"][3], "iscrowd": 0})
    if not read:
        raise InputError(f"none of {count(len(paths), 'file')} is an image that can be read, see above")
    content = {"images": read, "annotations": boxes, "categories": [{"id": n, "name": name} for name, n in categories]}
    files.write_json(out / DETECTIONS, content)
    if file:
        keys = ("image_id", "category_id", "bbox", "score")
        files.write_json(out / RESULTS, [{key: box[key] for key in keys} for box in boxes])
    rest = f"; the best score was {best:.3g}" if best else ", and none below that this detector keeps"
    said = f"{count(len(boxes), 'box|boxes')} above {detector.score:.3g}{detector.score_is}{'' if boxes else rest}"
    _log.info("%s: %s, of %s", said, out / DETECTIONS, count(len(read), "image"))
    if bad_images.found:
        raise InputError(
            f"{len(bad_images.found):,} of {count(len(paths), 'image')} cannot be read, see above: all others are done"
        )


def _described(sample: Any, row: annotations.Image | None) -> dict[str, Any]:
    """An image as a COCO file has it, by its `row` in one that has it already."""
    height, width = sample.ori_shape
    if row is None:
        return {"id": sample.img_id, "file_name": Path(sample.img_path).as_posix(), "width": width, "height": height}
    if (row.width, row.height) != (width, height):
        sizes = f"{width} x {height} pixels, not {row.width} x {row.height} as its annotations say"
        _log.warning("%s has %s: its boxes are in its own", sample.img_path, sizes)
    return {"id": row.id, "file_name": row.file_name, "width": row.width, "height": row.height}


class _Painter:
    """Writes pictures and crops of what is found on an image."""

    def __init__(self, detector: Detector, out: Path, pictures: bool, crops: bool) -> None:
        self.classes, self.out, self.pictures, self.crops = detector.classes, out, pictures, crops
        self.colours = drawing.palette(len(self.classes))
        self.names: set[str] = set()

    def __call__(self, path: Path, found: Detections, image: int, first: int) -> None:
        """Write those of an image, whose boxes are numbered from `first`."""
        if not (self.pictures or self.crops):
            return
        name = path.stem
        while name.casefold() in self.names:  # some disks take `A.jpg` for `a.jpg`
            name += f"-{image}"
        self.names.add(name.casefold())
        picture = Image.fromarray(np.ascontiguousarray(inputs.read(path)[..., ::-1]))
        classes = [self.classes[label] for label in found.label_N]
        for number in range(len(classes)) if self.crops else ():
            start_2 = np.floor(found.box_N4[number, :2]).clip(0, np.array(picture.size) - 1)
            end_2 = np.ceil(found.box_N4[number, 2:]).clip(start_2 + 1, picture.size)
            folder = self.out / "crops" / re.sub(r"[^\w-]+", "_", classes[number])
            self._save(picture.crop((*start_2.tolist(), *end_2.tolist())), folder / f"{name}-{first + number}.jpg")
        if self.pictures:
            names = classes if len(self.classes) > 1 else [""] * len(classes)
            colours = [self.colours[label] for label in found.label_N]
            drawing.draw(picture, found.box_N4, names, colours, found.score_N.tolist())
            self._save(picture, self.out / f"{name}.jpg")

    def _save(self, picture: Image.Image, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if max(picture.size) > LONGEST:
            picture.thumbnail((LONGEST, LONGEST))
        picture.save(path, **JPEG)
