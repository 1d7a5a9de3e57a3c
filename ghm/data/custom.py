"""The user's own data set as COCO files, rewritten once so that mmdet, pycocotools and we read the same in them.

In the copies the text is ASCII; boxes are numbered from 1, since exports use ids twice or not at all; `iscrowd` and
`area` are there; file names are those on the disk, in its form of Unicode; and the classes of all splits stand in the
order of the training split and have its ids. Ids of images and classes stay, since results refer to them.
"""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from unicodedata import normalize

import msgspec

from ghm import files
from ghm.data import annotations, layouts, splits
from ghm.data.annotations import Annotations
from ghm.data.layouts.tree import SPLITS, Tree, divided
from ghm.data.manifest import Split
from ghm.data.noise import Noise
from ghm.data.validation import leaves_folder
from ghm.params import Custom
from ghm.words import count

_log = logging.getLogger(__name__)


def convert(theirs: dict[str, Split], root: Path, out: Path, noise: Noise) -> None:
    """Write `out/annotations/instances_<split>.json` for the annotation files of splits, train first, below `root`.

    Raises:
        InputError: a file is missing or malformed, or cannot have this noise.
    """
    contents = {
        name: annotations.read(root / split.annotations, Annotations, any_encoding=True)
        for name, split in theirs.items()
    }
    for name, content in contents.items():
        _spell(content, root / theirs[name].folder)
    write(contents, out, noise)


def write(contents: dict[str, Annotations], out: Path, noise: Noise) -> None:
    """Write `out/annotations/instances_<split>.json` for the content of splits, train first, which is changed.

    Raises:
        InputError: `train` cannot have this noise.
    """
    for name, content in contents.items():
        if name != "train":
            _align(name, content, contents["train"])
        for number, box in enumerate(content.annotations, start=1):
            box.id, box.iscrowd, box.ignore = number, int(box.iscrowd or 0), int(box.ignore or 0)
            box.area = box.bbox[2] * box.bbox[3] if box.area is None else box.area
        plain = msgspec.to_builtins(content)
        if name == "train":
            noise.apply(plain)
        text = json.dumps(plain, separators=(",", ":"))  # what is not finite is found later
        files.write_text(out / "annotations" / f"instances_{name}.json", text)


@dataclass(frozen=True)
class Recognised:
    """What was made of a folder whose layout was recognised."""

    said: list[str]  # what was found
    splits: dict[str, list[str]]  # split -> its images, where splits were made
    is_first: bool  # no image had a split before

    def agrees(self, earlier: dict[str, str]) -> bool:
        """Whether the splits are those that images, name -> split, had before."""
        if not earlier:
            return self.is_first or not self.splits
        return all(earlier.get(name, split) == split for split, names in self.splits.items() for name in names)


def recognise(tree: Tree, custom: Custom, earlier: dict[str, str]) -> tuple[Recognised, dict[str, Annotations]]:
    """Find out what a folder holds, and make the splits of train, val and test that it lacks out of train.

    Args:
        tree: the files of the folder.
        custom: the parameters.
        earlier: image -> split of images that were dealt out before, and stay where they are.

    Returns:
        What was found, and the content of each split.

    Raises:
        InputError: the layout is not known, a file is malformed, or a split cannot be made.
    """
    what, contents = layouts.read(tree, custom.layout)
    shares = {name: getattr(custom, f"{name}_share") for name in SPLITS[1:] if not contents.get(name)}
    made: dict[str, list[str]] = {}
    if shares:
        split_of = splits.make(tree, contents["train"], shares, custom.split_seed, earlier)
        for image in sorted(split_of):
            made.setdefault(split_of[image], []).append(image)
        contents |= divided(contents["train"], {name: {*images} for name, images in made.items()})
    contents = {name: contents[name] for name in SPLITS}
    parts = ", ".join(
        f"{name} {len(content.images):,}{' (made)' if name in shares else ''}" for name, content in contents.items()
    )
    images = count(sum(len(content.images) for content in contents.values()), "image")
    classes = count(len(contents["train"].categories), "class|classes")
    said = [f"{tree.root}: {what}, {images}, {classes}; {parts}", *tree.notes]
    return Recognised(said, made, not earlier), contents


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
