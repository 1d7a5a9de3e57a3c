"""`python -m ghm.detect --variant ghmc_ghmr photos/ --out found`: a trained detector on your own images.

Writes `found/<name>.jpg`, the images with boxes drawn into them, and `found/detections.json`, a COCO file whose
annotations have scores. With `--config` and `--checkpoint` in place of `--variant`: any detector of mmdet. With
`--split` in place of images: a split of the data set, as COCO's evaluation server takes it.
"""

import argparse
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ghm import files, params
from ghm.cli import run
from ghm.data.images import UnreadableError
from ghm.detect import drawing, images, submission
from ghm.detect.detector import Detections, Detector, Sample, Source, find_run
from ghm.detect.images import Listed
from ghm.errors import InputError
from ghm.words import count

DETECTIONS = "detections.json"
_log = logging.getLogger(__name__)


def detect(
    detector: Detector, places: Sequence[Path], out: Path, *, score: float, batch_size: int, pictures: bool
) -> None:
    """Detect on images and write what is found into the folder `out`.

    Args:
        places: images, and folders to search for images.
        score: detections below it are left out.
        batch_size: images at once, at most. Results do not depend on it.
        pictures: whether to draw.

    Raises:
        InputError: a place is not there, or no image can be read: then nothing is written. Or some images cannot be
            read: then everything else is.
    """
    listed = images.collect(places, out)
    if pictures:
        images.require_apart(listed, out)
    record = _Record(detector)
    drawn = {image.path: out / image.picture for image in listed} if pictures else {}
    unreadable: list[Path] = []
    with tqdm(total=len(listed), unit="image", disable=None) as bar, logging_redirect_tqdm():
        for batch in detector.batches(_read(detector, listed, unreadable), batch_size):
            for sample, every in zip(batch, detector(batch), strict=True):
                found = every.above(score)
                record.add(sample, found)
                if pictures:
                    _draw(detector, sample, found, drawn[sample.path])
            bar.update(len(record.images) + len(unreadable) - bar.n)
    if not record.images:
        raise InputError(f"none of {count(len(listed), 'file')} is an image that can be read, see above")
    files.write_json(out / DETECTIONS, record.content())
    boxes, shown = count(len(record.boxes), "box|boxes"), count(len(record.images), "image")
    _log.info("%s on %s: %s", boxes, shown, out / DETECTIONS)
    if unreadable:
        raise InputError(
            f"{len(unreadable):,} of {count(len(listed), 'image')} cannot be read, see above: all others are done"
        )


def _read(detector: Detector, listed: Sequence[Listed], unreadable: list[Path]) -> Iterator[Sample]:
    """The samples of the images that can be read; others are named, and added to `unreadable`."""
    for image in listed:
        try:
            yield detector.read(image.path)
        except UnreadableError as error:
            _log.warning("%s cannot be read: %s", image.path, error)
            unreadable.append(image.path)


def _draw(detector: Detector, sample: Sample, found: Detections, path: Path) -> None:
    scored = zip(found.label_N.tolist(), found.score_N.tolist(), strict=True)
    texts = [f"{detector.name(label)} {score:.2f}" for label, score in scored]
    drawing.save(drawing.draw(sample.image, found.box_N4, found.label_N, texts), path)


class _Record:
    """The content of a COCO file, image after image."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.labels = len(detector.classes)  # how many are known
        self.images: list[dict[str, Any]] = []
        self.boxes: list[dict[str, Any]] = []

    def add(self, sample: Sample, found: Detections) -> None:
        height, width = sample.image.shape[:2]
        number = len(self.images) + 1
        self.images.append({"id": number, "file_name": sample.path.as_posix(), "width": width, "height": height})
        sizes_N2 = found.box_N4[:, 2:] - found.box_N4[:, :2]
        for box, score, label in zip(
            np.concatenate([found.box_N4[:, :2], sizes_N2], axis=1).tolist(),
            found.score_N.tolist(),
            found.label_N.tolist(),
            strict=True,
        ):
            self.labels = max(self.labels, label + 1)
            self.boxes.append(
                {
                    "id": len(self.boxes) + 1,
                    "image_id": number,
                    "category_id": self.detector.category(label),
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "score": score,
                }
            )

    def content(self) -> dict[str, Any]:
        detector = self.detector
        categories = [{"id": detector.category(label), "name": detector.name(label)} for label in range(self.labels)]
        return {"images": self.images, "annotations": self.boxes, "categories": categories}


def main() -> None:
    arguments = _parser().parse_args()
    _check(arguments)
    if arguments.variant:
        seed = params.load().seeds[0] if arguments.seed is None else arguments.seed
        source = find_run(arguments.variant, seed)
        if arguments.split:
            submission.write(params.load(), arguments.variant, seed, source.checkpoint, arguments.split, arguments.out)
            return
    else:
        source = Source(arguments.config, arguments.checkpoint)
    detect(
        Detector(source, arguments.score),
        arguments.images,
        arguments.out,
        score=arguments.score,
        batch_size=arguments.batch_size,
        pictures=arguments.pictures,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ghm.detect", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("images", metavar="IMAGE_OR_FOLDER", nargs="*", type=Path, help="folders are searched for images")
    add("--variant", help="a trained variant: the model of runs/<variant>/seed_<n>/")
    add("--seed", type=int, help="which of its models; the first of `seeds` in params.yaml")
    add("--config", type=Path, help="a config of mmdet, in place of --variant")
    add("--checkpoint", type=Path, help="the checkpoint that belongs to --config")
    add("--split", help="a split of the data set in place of images, such as test-dev")
    add("--out", type=Path, required=True, metavar="DIR", help="where the results go")
    add("--score", type=float, default=0.3, help="the lowest score that is shown (%(default)s)")
    add("--batch-size", type=int, default=8, help="images at once (%(default)s)")
    add("--no-pictures", dest="pictures", action="store_false", help="write detections.json alone")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what does not go together."""
    files_of_mmdet = [arguments.config, arguments.checkpoint]
    wrong = {
        "name a detector: --variant, or --config and --checkpoint": not arguments.variant and not any(files_of_mmdet),
        "--config and --checkpoint belong together: name both": any(files_of_mmdet) and not all(files_of_mmdet),
        "--variant takes the place of --config and --checkpoint: leave one out": arguments.variant
        and any(files_of_mmdet),
        "--seed belongs to --variant: leave it out": arguments.seed is not None and not arguments.variant,
        "--split needs --variant: it is about a trained variant": arguments.split and not arguments.variant,
        "name images or folders, or else a --split": bool(arguments.images) == bool(arguments.split),
        f"--score must be in [0, 1], got {arguments.score}": not 0 <= arguments.score <= 1,
        f"--batch-size must be 1 or greater, got {arguments.batch_size}": arguments.batch_size < 1,
        f"--out must be a folder, {arguments.out} is a file": arguments.out.exists() and not arguments.out.is_dir(),
    }
    for sentence, is_so in wrong.items():
        if is_so:
            raise InputError(sentence)


if __name__ == "__main__":
    run(main)
