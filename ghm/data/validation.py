"""What is checked of a data set before anything is trained on it, and how it is said.

An error stops the stage: with it, training would fail or mean nothing. A warning is counted in the manifest: the data
set can be used, and a reader of its results should know.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any

import cv2
import numpy as np
from PIL import Image as Picture
from tqdm import tqdm

from ghm.data.annotations import Annotations, Unlabelled
from ghm.errors import InputError
from ghm.files import digest

SAMPLE = 200  # images of a split that `check_images: sample` decodes
_ORIENTATION = 0x0112  # tag in EXIF; from 5 to 8, width and height change places

# Kind of finding -> its words after the count.
ERRORS = {
    "duplicate_image_ids": "images have an id that another one has",
    "duplicate_box_ids": "boxes have an id that another one has",
    "duplicate_categories": "categories have the id or the name of another one",
    "unknown_image_ids": "boxes name an image that the file does not have",
    "unknown_category_ids": "boxes name a category that the file does not have",
    "not_finite": "boxes hold a number that is not finite",
    "images_without_size": "images have a width or height below 1",
    "unsafe_file_names": "file names leave the image folder",
    "images_missing": "images are not in the image folder",
    "images_unreadable": "images cannot be decoded",
    "images_in_train_too": "images are in the training split too",
}
WARNINGS = {
    "boxes_outside": "boxes reach outside their image by more than a pixel (training clips them)",
    "boxes_without_area": "boxes are less than a pixel wide or high, or lie outside (training leaves them out)",
    "crowd_boxes": "boxes are marked as crowd (training leaves them out, evaluation ignores what they cover)",
    "boxes_with_id_0": "boxes have the id 0 (evaluation counts what finds them as false: number boxes from 1)",
    "images_listed_twice": "file names stand in the file more than once",
    "images_of_other_size": "images have another size than the file says",
    "classes_without_boxes": "classes have no box",
}


class Findings:
    """Kind of finding -> how many, and an example of each."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, str] = {}

    def add(self, kind: str, examples: Sequence[Any], words: Callable[[Any], str] = str) -> None:
        """Note `len(examples)` findings of a kind, if any; `words` says the first one."""
        if len(examples):
            self._counts[kind] = len(examples)
            self._examples[kind] = words(examples[0])

    def counts(self, severity: str) -> dict[str, int]:
        """The findings that are an "error" or a "warning"."""
        known = ERRORS if severity == "error" else WARNINGS
        return {kind: self._counts[kind] for kind in known if kind in self._counts}

    def stop_at_errors(self, path: Path) -> None:
        """Raise one `InputError` that names all errors of the annotation file `path`, if there are any."""
        errors = [self.sentence(kind) for kind in self.counts("error")]
        if errors:
            raise InputError(f"{path}: {'; '.join(errors)}")

    def sentence(self, kind: str) -> str:
        """Such as `3 images are not in the image folder, for example 1.jpg`."""
        return f"{self._counts[kind]} {(ERRORS | WARNINGS)[kind]}, for example {self._examples[kind]}"


def check(content: Unlabelled, folder: Path, sizes: dict[str, int], check_images: str) -> Findings:
    """Look for everything in `ERRORS` and `WARNINGS`.

    Args:
        content: of the annotation file.
        folder: of its images.
        sizes: name -> bytes of the images that are there.
        check_images: none | sample | all.
    """
    findings = Findings()
    _check_images(content, sizes, findings)
    _check_categories(content, findings)
    if isinstance(content, Annotations):
        _check_boxes(content, findings)
    if not findings.counts("error"):  # safe names, and every file is there
        _decode(content, folder, check_images, findings)
    return findings


def _repeated(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _check_images(content: Unlabelled, sizes: dict[str, int], findings: Findings) -> None:
    images = content.images
    findings.add("duplicate_image_ids", _repeated(image.id for image in images))
    findings.add("images_without_size", [image.file_name for image in images if min(image.width, image.height) < 1])
    unsafe = [image.file_name for image in images if leaves_folder(image.file_name)]
    findings.add("unsafe_file_names", unsafe, repr)
    findings.add("images_missing", [image.file_name for image in images if image.file_name not in sizes])
    findings.add("images_listed_twice", _repeated(image.file_name for image in images))


def leaves_folder(name: str) -> bool:
    """Whether a file name of an annotation file leads out of its image folder."""
    return (".." in name and ".." in PurePath(name).parts) or name.startswith("/") or "\\" in name or "\0" in name


def _check_categories(content: Unlabelled, findings: Findings) -> None:
    repeated = _repeated(entry.id for entry in content.categories) + _repeated(
        entry.name for entry in content.categories
    )
    findings.add("duplicate_categories", repeated, repr)


def _check_boxes(content: Annotations, findings: Findings) -> None:
    boxes, images = content.annotations, content.images
    findings.add("duplicate_box_ids", _repeated(box.id for box in boxes))
    places = {image.id: place for place, image in enumerate(images)}
    known = {entry.id for entry in content.categories}
    findings.add("unknown_image_ids", [box.image_id for box in boxes if box.image_id not in places])
    findings.add("unknown_category_ids", [box.category_id for box in boxes if box.category_id not in known])

    def word(index: int) -> str:
        return f"box {boxes[index].id} of image {boxes[index].image_id}: {list(boxes[index].bbox)}"

    findings.add("crowd_boxes", [index for index, box in enumerate(boxes) if box.iscrowd], word)
    findings.add("boxes_with_id_0", [index for index, box in enumerate(boxes) if box.id == 0], word)
    used = {box.category_id for box in boxes}
    findings.add("classes_without_boxes", [entry.name for entry in content.categories if entry.id not in used], repr)
    if boxes and "unknown_image_ids" not in findings.counts("error"):
        _check_geometry(content, places, findings, word)


def _check_geometry(
    content: Annotations, places: dict[int, int], findings: Findings, word: Callable[[int], str]
) -> None:
    boxes = content.annotations
    number_B5 = np.array([(*box.bbox, box.area) for box in boxes], dtype=np.float64)
    finite_B = np.isfinite(number_B5).all(axis=1)
    findings.add("not_finite", np.flatnonzero(~finite_B).tolist(), word)
    side_I2 = np.array([(image.width, image.height) for image in content.images], dtype=np.float64)
    side_B2 = side_I2[[places[box.image_id] for box in boxes]]
    start_B2, extent_B2 = number_B5[:, :2], number_B5[:, 2:4]
    with np.errstate(invalid="ignore", over="ignore"):
        end_B2 = start_B2 + extent_B2
        outside_B = ((start_B2 < -1) | (end_B2 > side_B2 + 1)).any(axis=1)
        visible_B2 = np.minimum(end_B2, side_B2) - np.maximum(start_B2, 0)
    # What mmdet's CocoDataset leaves out.
    empty_B = (extent_B2 < 1).any(axis=1) | (visible_B2 <= 0).any(axis=1) | (number_B5[:, 4] <= 0)
    findings.add("boxes_outside", np.flatnonzero(finite_B & outside_B).tolist(), word)
    findings.add("boxes_without_area", np.flatnonzero(finite_B & empty_B).tolist(), word)


def _decode(content: Unlabelled, folder: Path, check_images: str, findings: Findings) -> None:
    """Decode all images, or some spread evenly over the file."""
    images = content.images
    if check_images == "none":
        return
    Picture.MAX_IMAGE_PIXELS = None  # what training can read is not too large to be checked
    if check_images == "sample" and len(images) > SAMPLE:
        images = [images[place] for place in np.linspace(0, len(images) - 1, SAMPLE).round().astype(int)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda image: _size(folder / image.file_name), images)
        shown = tqdm(found, total=len(images), desc="decoding images", unit="image", mininterval=2, leave=False)
        measured = list(zip(images, shown, strict=True))
    findings.add(
        "images_unreadable",
        [(image.file_name, size) for image, size in measured if isinstance(size, str)],
        lambda pair: f"{pair[0]} ({pair[1]})",
    )
    findings.add(
        "images_of_other_size",
        [
            (image, size)
            for image, size in measured
            if size != (image.width, image.height) and not isinstance(size, str)
        ],
        lambda pair: f"{pair[0].file_name}, {pair[1]} and not {(pair[0].width, pair[0].height)}",
    )


def _size(path: Path) -> tuple[int, int] | str:
    """Width and height as training will see them, or why the image cannot be read.

    Pillow decodes, since it notices files that end too early, which OpenCV fills with grey; training reads by OpenCV.
    """
    try:
        with Picture.open(path) as picture:
            picture.load()
            turned = picture.getexif().get(_ORIENTATION) in (5, 6, 7, 8)  # it may be anything
            width, height = picture.size
    except Exception as error:  # Pillow's decoders raise whatever they stumble over
        return str(error).replace(str(path), path.name) or type(error).__name__
    if not cv2.haveImageReader(str(path)):
        return "OpenCV has no reader for this format"
    return (height, width) if turned else (width, height)


def check_overlap(root: Path, train: dict[str, int], other: dict[str, int], findings: Findings) -> None:
    """Find images of `other`, path -> bytes, that are in `train`: the same path, or the same name and content.

    A copy under another name is not found: all of COCO would have to be read for it.
    """
    by_name = {(path.rpartition("/")[2], size): path for path, size in train.items()}
    same = [
        path
        for path, size in other.items()
        if path in train
        or ((twin := by_name.get((path.rpartition("/")[2], size))) and digest(root / twin) == digest(root / path))
    ]
    findings.add("images_in_train_too", same)
