"""What is checked of a data set before anything is trained on it."""

import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from tqdm import tqdm

from ghm.data import images
from ghm.data.annotations import Annotations, Image, Unlabelled
from ghm.data.content import Content
from ghm.data.findings import Findings
from ghm.words import count

SAMPLE = 200  # images of a split that `check_images: sample` decodes
USELESS_SHARE = 0.5  # of the boxes that are not crowd: with more of them the file is wrong, with fewer some boxes are


def check(
    content: Unlabelled,
    folder: Path,
    contents: dict[str, Content],
    check_images: str,
    max_bad_images: int,
    purpose: str,
    findings: Findings,
) -> list[str]:
    """Look for everything that `findings` knows.

    Args:
        content: of the annotation file.
        folder: of its images.
        contents: name -> content of the images that are there.
        check_images: none | sample | all: which are decoded. The ends of all files are looked at.
        max_bad_images: how many images may be missing or unreadable.
        purpose: what the split is for: "train on" | "measure".
        findings: gets what is found.

    Returns:
        The names of the images that are missing, or unreadable as far as that shows without decoding them.
    """
    entries, categories = content.images, content.categories
    names, classes = [image.file_name for image in entries], [entry.name for entry in categories]
    findings.add("duplicate_image_ids", _repeated(image.id for image in entries))
    findings.add("images_without_size", [image.file_name for image in entries if min(image.width, image.height) < 1])
    findings.add("unsafe_file_names", [name for name in names if leaves_folder(name)], ascii)
    findings.add("images_listed_twice", _repeated(names))
    findings.add("duplicate_categories", _repeated(entry.id for entry in categories) + _repeated(classes), repr)
    findings.add("unsafe_classes", [name for name in classes if not _is_text(name)], ascii)
    if isinstance(content, Annotations):
        _check_boxes(content, purpose, findings)
    if "unsafe_file_names" in findings.counts("error"):
        return []
    return _check_files(content, folder, contents, check_images, max_bad_images, findings)


def check_overlap(train: dict[str, str], other: dict[str, str], findings: Findings) -> None:
    """Find images of `other`, path -> checksum, that are in `train`: the same path, or the same name and content."""
    known = {(path.rpartition("/")[2], checksum) for path, checksum in train.items()}
    same = [path for path, checksum in other.items() if path in train or (path.rpartition("/")[2], checksum) in known]
    findings.add("images_in_train_too", same)


def leaves_folder(name: str) -> bool:
    """Whether a file name of an annotation file leads out of its image folder, or cannot be the name of a file."""
    leaves = (".." in name and ".." in PurePath(name).parts) or name.startswith("/") or "\\" in name
    return leaves or name.strip("./") == "" or not _is_text(name)


def _is_text(name: str) -> bool:
    """Whether a name can be written: JSON can escape half a character, and NUL."""
    return "\0" not in name and (name.isascii() or name.encode(errors="ignore").decode() == name)


def _repeated(values: Iterable[Any]) -> list[Any]:
    return [value for value, number in Counter(values).items() if number > 1]


def _check_boxes(content: Annotations, purpose: str, findings: Findings) -> None:
    boxes = content.annotations
    findings.add("duplicate_box_ids", _repeated(box.id for box in boxes))
    findings.add("boxes_with_id_0", [box for box in boxes if box.id == 0], lambda box: str(list(box.bbox)))
    images, known = {image.id for image in content.images}, {entry.id for entry in content.categories}
    findings.add("unknown_image_ids", [box.image_id for box in boxes if box.image_id not in images])
    findings.add("unknown_category_ids", [box.category_id for box in boxes if box.category_id not in known])
    used = {box.category_id for box in boxes}
    findings.add("classes_without_boxes", [entry.name for entry in content.categories if entry.id not in used], repr)
    if not boxes:
        findings.refuse(f"it has no boxes: there is nothing to {purpose}")
    elif "unknown_image_ids" not in findings.counts("error"):
        _check_geometry(content, purpose, findings)


def _check_geometry(content: Annotations, purpose: str, findings: Findings) -> None:
    """Judge the boxes, all of known images. Shapes: B boxes."""
    boxes, images = content.annotations, {image.id: image for image in content.images}

    def shown(index: int) -> str:
        box = boxes[index]
        return f"{list(box.bbox)} of image {box.image_id} ({images[box.image_id].file_name})"

    number_B5 = np.array([(*box.bbox, box.area) for box in boxes], dtype=np.float64)
    sides = ((images[box.image_id].width, images[box.image_id].height) for box in boxes)
    side_B2 = np.array(list(sides), dtype=np.float64)
    start_B2, extent_B2 = number_B5[:, :2], number_B5[:, 2:4]
    finite_B = np.isfinite(number_B5).all(axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        end_B2 = start_B2 + extent_B2
        visible_B2 = np.minimum(end_B2, side_B2) - np.maximum(start_B2, 0)
    # What mmdet's CocoDataset leaves out.
    empty_B = finite_B & ((extent_B2 < 1).any(axis=1) | (visible_B2 <= 0).any(axis=1))
    flat_B = finite_B & (number_B5[:, 4] <= 0) & ~empty_B
    crowd_B = np.array([bool(box.iscrowd) for box in boxes])
    ignored_B = np.array([bool(box.ignore) for box in boxes])
    kinds = {
        "not_finite": ~finite_B,
        "boxes_outside": finite_B & ((start_B2 < -1) | (end_B2 > side_B2 + 1)).any(axis=1),
        "boxes_without_area": empty_B,
        "boxes_of_area_0": flat_B,
        "crowd_boxes": crowd_B,
        "ignored_boxes": ignored_B,
    }
    for kind, mask_B in kinds.items():
        findings.add(kind, np.flatnonzero(mask_B).tolist(), shown)
    if not finite_B.all():
        return
    # Rounding may take a box that fills its image a little beyond 1.
    if bool(((start_B2 >= 0) & (extent_B2 > 0) & (end_B2 <= 1.01)).all() and (side_B2 > 2).all()):
        findings.refuse(
            f"its boxes look normalised to 0..1 and must be in pixels, for example {shown(0)}: multiply them "
            "by the width and height of their image"
        )
        return
    useless = {
        "less than a pixel wide or high or outside the image": empty_B & ~crowd_B,
        "of `area` 0 (leave `area` out, and it is computed)": flat_B & ~crowd_B,
        "marked `ignore`": ignored_B & ~empty_B & ~flat_B & ~crowd_B & (purpose == "train on"),
    }
    _check_use(useless, int((~crowd_B).sum()), shown, purpose, findings)


def _check_use(
    masks: dict[str, np.ndarray], candidates: int, shown: Callable[[int], str], purpose: str, findings: Findings
) -> None:
    """Refuse a split of which nothing, or less than half, can be used; `masks` tell the useless ones, by reason."""
    useless_B = np.any(list(masks.values()), axis=0)
    useless = int(useless_B.sum())
    if not candidates:
        findings.refuse(f"all of its boxes are marked as crowd: there is nothing to {purpose}")
    elif useless > USELESS_SHARE * candidates:
        reasons = ", ".join(f"{mask_B.sum():,} {why}" for why, mask_B in masks.items() if mask_B.any())
        findings.refuse(
            f"{useless:,} of {count(candidates, 'box|boxes')} cannot be used: {reasons}, for example "
            f"{shown(int(np.argmax(useless_B)))}: there is "
            f"{'nothing' if useless == candidates else 'too little'} to {purpose}"
        )


def _check_files(
    content: Unlabelled,
    folder: Path,
    contents: dict[str, Content],
    check_images: str,
    max_bad_images: int,
    findings: Findings,
) -> list[str]:
    """Find the images that are missing, look damaged, or, of those that are decoded, cannot be."""
    missing = list(dict.fromkeys(image.file_name for image in content.images if image.file_name not in contents))
    faults: dict[str, str] = {}
    decoded: dict[str, str] = {}
    if len(missing) <= max_bad_images and not findings.errors():
        faults = {name: entry.fault for name, entry in contents.items() if entry.fault is not None}
        if len(missing) + len(faults) <= max_bad_images:
            decoded = _decode(content, folder, {*missing, *faults}, check_images, findings)
    unreadable = faults | decoded
    bad = [*missing, *unreadable]

    def shown(name: str) -> str:
        return f"{name} ({unreadable[name]})" if name in unreadable else name

    if len(bad) <= max_bad_images and len(bad) < len(content.images):
        findings.add("images_left_out", bad, shown)
        return [*missing, *faults]
    findings.add("images_missing", missing)
    findings.add("images_unreadable", list(unreadable), shown)
    findings.refuse(
        f"data.max_bad_images is {max_bad_images}: mend or add them, or raise it to leave them out"
        if len(bad) < len(content.images)
        else "no image is left"
    )
    return bad


def _decode(
    content: Unlabelled, folder: Path, known: set[str], check_images: str, findings: Findings
) -> dict[str, str]:
    """Decode all images but the known bad ones, or some, evenly spaced. Return name -> what is wrong."""
    if check_images == "none":
        return {}
    entries = [image for image in content.images if image.file_name not in known]
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
        sizes = tqdm(
            pool.map(size, entries),
            total=len(entries),
            desc="decoding images",
            unit="image",
            mininterval=2,
            leave=False,
        )
        measured = list(zip(entries, sizes, strict=True))
    others = [
        f"{image.file_name}, {size} and not {(image.width, image.height)}"
        for image, size in measured
        if not isinstance(size, str) and size != (image.width, image.height)
    ]
    findings.add("images_of_other_size", others)
    return {image.file_name: size for image, size in measured if isinstance(size, str)}
