"""The user's own COCO files, rewritten once so that mmdet, pycocotools and we read the same in them.

In the copies the text is ASCII; boxes are numbered from 1, since exports use ids twice or not at all; `iscrowd` and
`area` are there; file names are those on the disk, in its form of Unicode; and the classes of all splits stand in the
order of the training split and have its ids. Ids of images and classes stay, since results refer to them.
"""

import json
import logging
import os
from pathlib import Path, PurePosixPath
from unicodedata import normalize

import msgspec

from ghm import files
from ghm.data import annotations
from ghm.data.annotations import Annotations
from ghm.data.manifest import Split
from ghm.data.validation import leaves_folder

_log = logging.getLogger(__name__)


def convert(splits: dict[str, Split], root: Path, out: Path) -> None:
    """Write `out/annotations/instances_<split>.json` for the annotation files of `splits`, train first, below `root`.

    Raises:
        InputError: a file is missing or malformed.
    """
    contents = {
        name: annotations.read(root / split.annotations, Annotations, any_encoding=True)
        for name, split in splits.items()
    }
    for name, content in contents.items():
        _spell(content, root / splits[name].folder)
        if name != "train":
            _align(name, content, contents["train"])
        for number, box in enumerate(content.annotations, start=1):
            box.id, box.iscrowd, box.ignore = number, int(box.iscrowd or 0), int(box.ignore or 0)
            box.area = box.bbox[2] * box.bbox[3] if box.area is None else box.area
        text = json.dumps(msgspec.to_builtins(content), separators=(",", ":"))  # what is not finite is found later
        files.write_text(out / "annotations" / f"instances_{name}.json", text)


def _spell(content: Annotations, folder: Path) -> None:
    """Give images the names of their files: with one character for an accented letter, or two, as the disk has it."""
    names = {
        Path(parent, name).relative_to(folder).as_posix()
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
    }
    by_form = {normalize("NFC", name): name for name in sorted(names)}
    for image in content.images:
        image.file_name = image.file_name.replace("\\", "/")
        name = PurePosixPath(image.file_name).as_posix()
        if name not in names:
            name = by_form.get(normalize("NFC", name))
        if name is not None and not leaves_folder(image.file_name):
            image.file_name = name


def _align(name: str, content: Annotations, train: Annotations) -> None:
    """Put the classes of a split in the order of the training split, and under its ids, where they are the same.

    mmdet numbers classes in the order of each file. What differs is left as it is, to be refused with everything else.
    """
    ours = {entry.name: entry.id for entry in train.categories}
    theirs = {entry.id: entry.name for entry in content.categories}
    is_clear = len(ours) == len(train.categories) and len(theirs) == len(content.categories)
    if not is_clear or sorted(theirs.values()) != sorted(ours):
        return
    if any(box.category_id not in theirs for box in content.annotations):
        return
    if any(ours[label] != number for number, label in theirs.items()):
        _log.warning("%s numbers its classes in another way than train: they get the ids that train gives them", name)
        for box in content.annotations:
            box.category_id = ours[theirs[box.category_id]]
    content.categories = train.categories
