"""What is checked of a data set before anything is trained on it."""

import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from tqdm import tqdm

from ghm.data import images
from ghm.data.annotations import Annotations, Box, Unlabelled
from ghm.data.content import Content
from ghm.data.findings import Findings
from ghm.words import count

SAMPLE = 200  # images of a split that `check_images: sample` decodes
USELESS_SHARE = 0.5  # of the boxes that are not crowd: with more of them the file is wrong, with fewer some boxes are


def check(
    content: Unlabelled,
    folder: Path,
    found: dict[str, Content],
    check_images: str,
    max_bad_images: int,
    purpose: str,
    findings: Findings,
) -> list[str]:
    """Look for everything that `findings` knows.

    Args:
        content: of the annotation file.
        folder: of its images.
        found: name -> content of the images that are there.
        check_images: none | sample | all: which are decoded. The ends of all files are looked at.
        max_bad_images: how many images may be missing or unreadable.
        purpose: what the split is for: "train on" | "measure".
        findings: gets what is found.

    Returns:
        The names of the images that are missing, or unreadable as far as that shows without decoding them.
    """
    _check_images(content, findings)
    _check_categories(content, findings)
    if isinstance(content, Annotations):
        _check_boxes(content, purpose, findings)
    if "unsafe_file_names" in findings.counts("error"):
        return []
    return _check_files(content, folder, found, check_images, max_bad_images, findings)


def _repeated(values: Iterable[Any]) -> list[Any]:
    return [value for value, number in Counter(values).items() if number > 1]


def _check_images(content: Unlabelled, findings: Findings) -> None:
    entries = content.images
    findings.add("duplicate_image_ids", _repeated(image.id for image in entries))
    findings.add("images_without_size", [image.file_name for image in entries if min(image.width, image.height) < 1])
    findings.add("unsafe_file_names", [image.file_name for image in entries if leaves_folder(image.file_name)], ascii)
    findings.add("images_listed_twice", _repeated(image.file_name for image in entries))


def leaves_folder(name: str) -> bool:
    """Whether a file name of an annotation file leads out of its image folder, or cannot be the name of a file."""
    leaves = (".." in name and ".." in PurePath(name).parts) or name.startswith("/") or "\\" in name
    return leaves or name.strip("./") == "" or not _is_text(name)


def _is_text(name: str) -> bool:
    """Whether a name can be written: JSON can escape half a character, and NUL."""
    return "\0" not in name and (name.isascii() or name.encode(errors="ignore").decode() == name)


def _check_categories(content: Unlabelled, findings: Findings) -> None:
    repeated = _repeated(entry.id for entry in content.categories) + _repeated(
        entry.name for entry in content.categories
    )
    findings.add("duplicate_categories", repeated, repr)
    findings.add("unsafe_classes", [entry.name for entry in content.categories if not _is_text(entry.name)], ascii)


def _check_boxes(content: Annotations, purpose: str, findings: Findings) -> None:
    boxes = content.annotations
    findings.add("duplicate_box_ids", _repeated(box.id for box in boxes))
    findings.add("boxes_with_id_0", [box for box in boxes if box.id == 0], lambda box: str(list(box.bbox)))
    places = {image.id: place for place, image in enumerate(content.images)}
    known = {entry.id for entry in content.categories}
    findings.add("unknown_image_ids", [box.image_id for box in boxes if box.image_id not in places])
    findings.add("unknown_category_ids", [box.category_id for box in boxes if box.category_id not in known])
    used = {box.category_id for box in boxes}
    findings.add("classes_without_boxes", [entry.name for entry in content.categories if entry.id not in used], repr)
    if not boxes:
        findings.refuse(f"it has no boxes: there is nothing to {purpose}")
    elif "unknown_image_ids" not in findings.counts("error"):
        _Geometry(content, places).check(purpose, findings)


class _Geometry:
    """The boxes of a file as arrays. Shapes: B boxes."""

    def __init__(self, content: Annotations, places: dict[int, int]) -> None:
        boxes = content.annotations
        self.boxes, self.images, self.places = boxes, content.images, places
        number_B5 = np.array([(*box.bbox, box.area) for box in boxes], dtype=np.float64)
        self.finite_B = np.isfinite(number_B5).all(axis=1)
        side_I2 = np.array([(image.width, image.height) for image in content.images], dtype=np.float64)
        side_B2 = side_I2[[places[box.image_id] for box in boxes]]
        start_B2, extent_B2 = number_B5[:, :2], number_B5[:, 2:4]
        with np.errstate(invalid="ignore", over="ignore"):
            end_B2 = start_B2 + extent_B2
            visible_B2 = np.minimum(end_B2, side_B2) - np.maximum(start_B2, 0)
        self.outside_B = self.finite_B & ((start_B2 < -1) | (end_B2 > side_B2 + 1)).any(axis=1)
        # What mmdet's CocoDataset leaves out.
        self.empty_B = self.finite_B & ((extent_B2 < 1).any(axis=1) | (visible_B2 <= 0).any(axis=1))
        self.flat_B = self.finite_B & (number_B5[:, 4] <= 0) & ~self.empty_B
        self.crowd_B = np.array([bool(box.iscrowd) for box in boxes])
        self.ignored_B = np.array([bool(box.ignore) for box in boxes])
        # Rounding may take a box that fills its image a little beyond 1.
        self.is_share = bool(((start_B2 >= 0) & (extent_B2 > 0) & (end_B2 <= 1.01)).all() and (side_B2 > 2).all())

    def check(self, purpose: str, findings: Findings) -> None:
        kinds = {
            "not_finite": ~self.finite_B,
            "boxes_outside": self.outside_B,
            "boxes_without_area": self.empty_B,
            "boxes_of_area_0": self.flat_B,
            "crowd_boxes": self.crowd_B,
            "ignored_boxes": self.ignored_B,
        }
        for kind, chosen_B in kinds.items():
            findings.add(kind, np.flatnonzero(chosen_B).tolist(), self._word)
        if self.finite_B.all():
            self._check_use(purpose, findings)

    def _check_use(self, purpose: str, findings: Findings) -> None:
        """Refuse a split of which nothing, or less than half, can be used."""
        ignored_B = self.ignored_B & ~self.empty_B & ~self.flat_B & (purpose == "train on")
        masks = {
            "less than a pixel wide or high or outside the image": self.empty_B & ~self.crowd_B,
            "of `area` 0 (leave `area` out, and it is computed)": self.flat_B & ~self.crowd_B,
            "marked `ignore`": ignored_B & ~self.crowd_B,
        }
        useless_B = np.any(list(masks.values()), axis=0)
        useless, candidates = int(useless_B.sum()), int((~self.crowd_B).sum())
        if self.is_share:
            findings.refuse(
                f"its boxes look normalised to 0..1 and must be in pixels, for example {self._word(0)}: multiply them "
                "by the width and height of their image"
            )
        elif not candidates:
            findings.refuse(f"all of its boxes are marked as crowd: there is nothing to {purpose}")
        elif useless > USELESS_SHARE * candidates:
            reasons = ", ".join(f"{mask_B.sum():,} {why}" for why, mask_B in masks.items() if mask_B.any())
            findings.refuse(
                f"{useless:,} of {count(candidates, 'box|boxes')} cannot be used: {reasons}, for example "
                f"{self._word(int(np.argmax(useless_B)))}: there is "
                f"{'nothing' if useless == candidates else 'too little'} to {purpose}"
            )

    def _word(self, index: int) -> str:
        box: Box = self.boxes[index]
        return f"{list(box.bbox)} of image {box.image_id} ({self.images[self.places[box.image_id]].file_name})"


def _check_files(
    content: Unlabelled,
    folder: Path,
    found: dict[str, Content],
    check_images: str,
    max_bad_images: int,
    findings: Findings,
) -> list[str]:
    """Find the images that are missing, look damaged, or, of those that are decoded, cannot be."""
    missing = list(dict.fromkeys(image.file_name for image in content.images if image.file_name not in found))
    faults: dict[str, str] = {}
    decoded: dict[str, str] = {}
    if len(missing) <= max_bad_images and not findings.errors():
        faults = {name: entry.fault for name, entry in found.items() if entry.fault is not None}
        if len(missing) + len(faults) <= max_bad_images:
            decoded = _decode(content, folder, {*missing, *faults}, check_images, findings)
    unreadable = faults | decoded
    bad = [*missing, *unreadable]

    def word(name: str) -> str:
        return f"{name} ({unreadable[name]})" if name in unreadable else name

    if len(bad) <= max_bad_images and len(bad) < len(content.images):
        findings.add("images_left_out", bad, word)
        return [*missing, *faults]
    findings.add("images_missing", missing)
    findings.add("images_unreadable", list(unreadable), word)
    findings.refuse(
        f"data.max_bad_images is {max_bad_images}: mend or add them, or raise it to leave them out"
        if len(bad) < len(content.images)
        else "no image is left"
    )
    return bad


def _decode(
    content: Unlabelled, folder: Path, known: set[str], check_images: str, findings: Findings
) -> dict[str, str]:
    """Decode all images but the known bad ones, or some spread evenly over the file. Return name -> what is wrong."""
    if check_images == "none":
        return {}
    entries = [image for image in content.images if image.file_name not in known]
    if check_images == "sample" and len(entries) > SAMPLE:
        entries = [entries[place] for place in np.linspace(0, len(entries) - 1, SAMPLE).round().astype(int)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sizes = pool.map(lambda image: _size(folder / image.file_name), entries)
        shown = tqdm(sizes, total=len(entries), desc="decoding images", unit="image", mininterval=2, leave=False)
        measured = list(zip(entries, shown, strict=True))
    findings.add(
        "images_of_other_size",
        [
            (image, size)
            for image, size in measured
            if not isinstance(size, str) and size != (image.width, image.height)
        ],
        lambda pair: f"{pair[0].file_name}, {pair[1]} and not {(pair[0].width, pair[0].height)}",
    )
    return {image.file_name: size for image, size in measured if isinstance(size, str)}


def _size(path: Path) -> tuple[int, int] | str:
    """Width and height as training sees them, or why the image cannot be read."""
    try:
        height, width = images.decode(path.read_bytes()).shape[:2]
    except images.UnreadableError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
    return width, height


def check_overlap(train: dict[str, str], other: dict[str, str], findings: Findings) -> None:
    """Find images of `other`, path -> checksum, that are in `train`: the same path, or the same name and content."""
    known = {(path.rpartition("/")[2], checksum) for path, checksum in train.items()}
    same = [path for path, checksum in other.items() if path in train or (path.rpartition("/")[2], checksum) in known]
    findings.add("images_in_train_too", same)
