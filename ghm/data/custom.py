"""The user's own COCO files, rewritten once so that mmdet, pycocotools and we read the same in them.

The user's files stay as they are. In the copies

- the text is ASCII, whatever Unicode encoding it was in;
- boxes are numbered from 1: their ids mean nothing, pycocotools takes the id 0 for "nothing found", exports use one
  twice, and some are too large for a float;
- `iscrowd` is there, and `area`, where it was missing, is that of the box; masks and keypoints are left out;
- file names are those on the disk: with slashes, and in the Unicode form that the disk has;
- classes of all splits stand in the order of the training split and have its ids.

Ids of images and of the training split's classes stay, since results refer to them.
"""

import json
import logging
from functools import cache
from pathlib import Path
from unicodedata import normalize

import msgspec

from ghm import files
from ghm.data import annotations
from ghm.data.annotations import Annotations, Box, LooseAnnotations, LooseBox
from ghm.data.manifest import Split
from ghm.data.validation import leaves_folder

_log = logging.getLogger(__name__)


def convert(splits: dict[str, Split], root: Path, out: Path) -> None:
    """Write `out/annotations/instances_<split>.json` for the annotation files of `splits`, train first, below `root`.

    Raises:
        InputError: a file is missing or malformed.
    """
    contents = {name: annotations.read(root / split.annotations, LooseAnnotations) for name, split in splits.items()}
    for name, content in contents.items():
        disk = _Disk(root / splits[name].folder)
        for image in content.images:
            image.file_name = image.file_name.replace("\\", "/")
            if not leaves_folder(image.file_name):
                image.file_name = disk.spelling(image.file_name) or image.file_name
        if name != "train":
            _align(name, content, contents["train"])
        boxes = [_plain(number, box) for number, box in enumerate(content.annotations, start=1)]
        plain = Annotations(content.images, content.categories, boxes)
        text = json.dumps(msgspec.to_builtins(plain), separators=(",", ":"))  # what is not finite is found later
        files.write_text(out / "annotations" / f"instances_{name}.json", text)


class _Disk:
    """The names below a folder, each folder listed once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listed = cache(self._list)

    def spelling(self, name: str) -> str | None:
        """How the disk spells a name: one character for an accented letter, or two. None where it has no such file."""
        spelled: list[str] = []
        for part in name.split("/"):
            if part in ("", "."):
                continue
            names, by_form = self._listed("/".join(spelled))
            there = part if part in names else by_form.get(normalize("NFC", part))
            if there is None:
                return None
            spelled.append(there)
        return "/".join(spelled)

    def _list(self, folder: str) -> tuple[set[str], dict[str, str]]:
        path = self._folder / folder
        names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
        return names, {normalize("NFC", name): name for name in sorted(names)}


def _align(name: str, content: LooseAnnotations, train: LooseAnnotations) -> None:
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


def _plain(number: int, box: LooseBox) -> Box:
    area = box.bbox[2] * box.bbox[3] if box.area is None else box.area
    return Box(number, box.image_id, box.category_id, box.bbox, area, int(box.iscrowd or 0), int(box.ignore or 0))
