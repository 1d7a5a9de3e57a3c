"""What is checked of a data set before anything is trained on it.

An error stops the stage: with it, training would fail or mean nothing. A warning is counted in the manifest: the data
set can be used, and a reader of its results should know.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from tqdm import tqdm

from ghm.data import images
from ghm.data.annotations import Annotations, Image
from ghm.data.content import Content
from ghm.words import count

SAMPLE = 200  # images of a split that `check_images: sample` decodes
USELESS_SHARE = 0.5  # of the boxes that are not crowd: with more of them the file is wrong, with fewer some boxes are
COPIES_SHARE = 0.05  # of a split that may be copies of training images
# Found by decoding images, as many as `machine.check_images` says: in the log, and not in the manifest, which does not
# depend on a setting of the machine.
BY_DECODING = ("images_of_other_size", "images_left_out")
_LEFT_OUT = "training leaves them out"
# Warnings of boxes: kind -> subject and verb, and the rest of the sentence.
_BOXES = {
    "boxes_outside": ("box reaches|boxes reach", "outside the image by more than a pixel (training clips them)"),
    "boxes_without_area": ("box is|boxes are", f"less than a pixel wide or high, or outside the image ({_LEFT_OUT})"),
    "boxes_of_area_0": ("box has|boxes have", f"an `area` of 0 or less ({_LEFT_OUT}; without the key it is computed)"),
    "crowd_boxes": ("box is|boxes are", f"marked as crowd ({_LEFT_OUT}, evaluation ignores what they cover)"),
    "ignored_boxes": ("box is|boxes are", f"marked `ignore` ({_LEFT_OUT}, evaluation counts them)"),
}


class Findings:
    """What is wrong with a split, in sentences such as `3 images are not in the image folder, for example 1.jpg`."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: dict[str, tuple[int, str]] = {}  # kind -> how many, and the sentence

    def error(self, subject: str, rest: str, cases: Sequence[Any], words: Callable[[Any], str] = str) -> None:
        """Note `cases`, if any; `subject` is in the singular and the plural, and `words` says the first case."""
        if cases:
            self.errors.append(_sentence(subject, rest, cases, words))

    def warn(self, kind: str, subject: str, rest: str, cases: Sequence[Any], words: Callable[[Any], str] = str) -> None:
        """As `error`, and counted as `kind`."""
        if cases:
            self.warnings[kind] = len(cases), _sentence(subject, rest, cases, words)


def check(content: Annotations, purpose: str, findings: Findings) -> None:
    """Look at the content of an annotation file of a split to "train on" or to "measure"."""
    names, classes = [image.file_name for image in content.images], [entry.name for entry in content.categories]
    unsafe = [name for name in names if leaves_folder(name)]
    sizeless = [image.file_name for image in content.images if min(image.width, image.height) < 1]
    ids = _repeated(image.id for image in content.images)
    findings.error("image has|images have", "an id that another one has", ids)
    findings.error("image has|images have", "a width or height below 1", sizeless)
    findings.error(
        "file name leaves|file names leave", "the image folder or cannot be a file's name", unsafe, words=ascii
    )
    findings.warn(
        "images_listed_twice", "file name stands|file names stand", "in the file more than once", _repeated(names)
    )
    same = _repeated(entry.id for entry in content.categories) + _repeated(classes)
    findings.error("category has|categories have", "the id or the name of another one", same, words=repr)
    odd = [name for name in classes if not _is_text(name)]
    findings.error("class has|classes have", "a name that is no text", odd, words=ascii)
    _check_boxes(content, purpose, findings)


def check_images(
    content: Annotations,
    folder: Path,
    contents: dict[str, Content],
    which: str,
    max_bad_images: int,
    findings: Findings,
) -> list[str]:
    """Find the images that are missing, look damaged, or, of those that are decoded, cannot be.

    Args:
        content: of the annotation file.
        folder: of its images.
        contents: name -> content of the images that are there.
        which: none | sample | all: which are decoded. The ends of all files are looked at.
        max_bad_images: how many images may be missing or unreadable.
        findings: of `check`; gets what is found.

    Returns:
        The names of the images that are missing, or unreadable as far as that shows without decoding them.
    """
    names = dict.fromkeys(image.file_name for image in content.images if not leaves_folder(image.file_name))
    missing = [name for name in names if name not in contents]
    unreadable = {name: entry.fault for name, entry in contents.items() if entry.fault is not None}
    bad = [*missing, *unreadable]
    if len(bad) <= max_bad_images and not findings.errors:
        unreadable |= _decode(content, folder, set(bad), which, findings)
    number = len(missing) + len(unreadable)

    def shown(name: str) -> str:
        return f"{name} ({unreadable[name]})" if name in unreadable else name

    if number <= max_bad_images and number < len(content.images):
        rest = "missing or cannot be decoded, and left out"
        findings.warn("images_left_out", "image is|images are", rest, [*missing, *unreadable], shown)
        return bad
    findings.error("image is|images are", "not in the image folder", missing)
    findings.error("image|images", "cannot be decoded", list(unreadable), shown)
    findings.errors.append(
        f"data.max_bad_images is {max_bad_images}: mend or add them, or raise it to leave them out"
        if number < len(content.images)
        else "no image is left"
    )
    return bad


def check_overlap(train: dict[str, str], other: dict[str, str], findings: Findings) -> None:
    """Find images of `other`, path -> checksum, that are in `train`: the same path, or the same content.

    Content under another name is a warning where it is little: published data sets have some.
    """
    known: dict[str, list[str]] = {}
    for path, checksum in train.items():
        known.setdefault(checksum, []).append(path)
    names = {(path.rpartition("/")[2], checksum) for path, checksum in train.items()}
    same = [path for path, checksum in other.items() if path in train or (path.rpartition("/")[2], checksum) in names]
    copies = sorted({path for path, checksum in other.items() if checksum in known} - {*same})

    def shown(path: str) -> str:
        return f"{path}, a copy of {known[other[path]][0]}"

    findings.error("image is|images are", "in the training split too", same)
    if len(copies) > COPIES_SHARE * len(other):
        findings.error("image is|images are", "in the training split too, under other names", copies, shown)
    else:
        rest = "in the training split too, under other names"
        findings.warn("copies_of_training_images", "image is|images are", rest, copies, shown)


def leaves_folder(name: str) -> bool:
    """Whether a file name of an annotation file leads out of its image folder, or cannot be the name of a file."""
    leaves = (".." in name and ".." in PurePath(name).parts) or name.startswith("/") or "\\" in name
    return leaves or name.strip("./") == "" or not _is_text(name)


def _sentence(subject: str, rest: str, cases: Sequence[Any], words: Callable[[Any], str]) -> str:
    return f"{count(len(cases), subject)} {rest}, for example {words(cases[0])}"


def _is_text(name: str) -> bool:
    """Whether a name can be written: JSON can escape half a character, and NUL."""
    return "\0" not in name and (name.isascii() or name.encode(errors="ignore").decode() == name)


def _repeated(values: Iterable[Any]) -> list[Any]:
    return [value for value, number in Counter(values).items() if number > 1]


def _check_boxes(content: Annotations, purpose: str, findings: Findings) -> None:
    boxes = content.annotations
    known_images, known = {image.id for image in content.images}, {entry.id for entry in content.categories}
    used = {box.category_id for box in boxes}
    lost = [box.image_id for box in boxes if box.image_id not in known_images]
    findings.error("box has|boxes have", "an id that another one has", _repeated(box.id for box in boxes))
    findings.error("box names|boxes name", "an image that the file does not have", lost)
    unknown = [box.category_id for box in boxes if box.category_id not in known]
    findings.error("box names|boxes name", "a category that the file does not have", unknown)
    unused = [entry.name for entry in content.categories if entry.id not in used]
    findings.warn("classes_without_boxes", "class has|classes have", "no box", unused, words=repr)
    if not boxes:
        findings.errors.append(f"it has no boxes: there is nothing to {purpose}")
    elif not lost:
        _check_geometry(content, purpose, findings)


def _check_geometry(content: Annotations, purpose: str, findings: Findings) -> None:
    """Judge the boxes, all of known images. Shapes: B boxes."""
    boxes, entries = content.annotations, {image.id: image for image in content.images}

    def shown(index: int) -> str:
        box = boxes[index]
        return f"{list(box.bbox)} of image {box.image_id} ({entries[box.image_id].file_name})"

    number_B5 = np.array([(*box.bbox, box.area) for box in boxes], dtype=np.float64)
    sides = ((entries[box.image_id].width, entries[box.image_id].height) for box in boxes)
    side_B2 = np.array(list(sides), dtype=np.float64)
    start_B2, extent_B2 = number_B5[:, :2], number_B5[:, 2:4]
    infinite = np.flatnonzero(~np.isfinite(number_B5).all(axis=1)).tolist()
    findings.error("box holds|boxes hold", "a number that is not finite, or no `area`", infinite, shown)
    if infinite:
        return
    end_B2 = start_B2 + extent_B2
    visible_B2 = np.minimum(end_B2, side_B2) - np.maximum(start_B2, 0)
    outside_B = ((start_B2 < -1) | (end_B2 > side_B2 + 1)).any(axis=1)
    # What mmdet's CocoDataset leaves out.
    empty_B = (extent_B2 < 1).any(axis=1) | (visible_B2 <= 0).any(axis=1)
    flat_B = (number_B5[:, 4] <= 0) & ~empty_B
    crowd_B = np.array([bool(box.iscrowd) for box in boxes])
    ignored_B = np.array([bool(box.ignore) for box in boxes])
    for kind, mask_B in zip(_BOXES, (outside_B, empty_B, flat_B, crowd_B, ignored_B), strict=True):
        findings.warn(kind, *_BOXES[kind], np.flatnonzero(mask_B).tolist(), shown)
    useless_B = (empty_B | flat_B | (ignored_B & (purpose == "train on"))) & ~crowd_B
    if crowd_B.all():
        findings.errors.append(f"all of its boxes are marked as crowd: there is nothing to {purpose}")
    elif useless_B.sum() > USELESS_SHARE * (~crowd_B).sum():
        kinds = ["boxes_without_area", "boxes_of_area_0", *["ignored_boxes"] * (purpose == "train on")]
        reasons = "; ".join(findings.warnings[kind][1] for kind in kinds if kind in findings.warnings)
        findings.errors.append(
            f"{useless_B.sum():,} of {count(int((~crowd_B).sum()), 'box|boxes')} cannot be used, too little is left "
            f"to {purpose}: {reasons}"
        )


def _decode(
    content: Annotations, folder: Path, known: set[str], check_images: str, findings: Findings
) -> dict[str, str]:
    """Decode all images but the known bad ones, or some, evenly spaced. Return name -> what is wrong."""
    entries = [image for image in content.images if image.file_name not in known and check_images != "none"]
    if check_images == "sample" and len(entries) > SAMPLE:
        entries = [entries[index] for index in np.linspace(0, len(entries) - 1, SAMPLE).round().astype(int)]

    def size(image: Image) -> tuple[int, int] | str:
        """Width and height as training sees them, or why the image cannot be read."""
        try:
            height, width = images.decode((folder / image.file_name).read_bytes()).shape[:2]
        except (images.UnreadableError, OSError) as error:
            return str(error)
        return width, height

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sizes = pool.map(size, entries)
        progress = tqdm(sizes, "decoding images", len(entries), unit="image", mininterval=2, leave=False)
        measured = list(zip(entries, progress, strict=True))
    others = [
        f"{image.file_name}, {size} and not {(image.width, image.height)}"
        for image, size in measured
        if not isinstance(size, str) and size != (image.width, image.height)
    ]
    findings.warn("images_of_other_size", "image has|images have", "another size than the file says", others)
    return {image.file_name: size for image, size in measured if isinstance(size, str)}
