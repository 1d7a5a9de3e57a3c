"""The files of a folder that somebody labelled: which are images, which image a name means, which split it is of."""

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from ghm.data.annotations import Annotations
from ghm.errors import InputError
from ghm.words import count

SPLITS = ("train", "val", "test")
IMAGE = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".avif")
_KNOWN = (*IMAGE, ".txt", ".xml")
_OF_SPLIT = re.compile(
    r"(?:obj_)?(?:(?P<trainval>trainval)|(?P<train>train(?:ing)?)|(?P<val>val(?:id(?:ation)?)?|dev)|(?P<test>test(?:ing)?))"
    r"(?:[-_ ]?(?:\d+|set|data|images?|imgs|list|yolo))*"
)
_LINES = 50  # of a text file, one of which names an image where it is a list of images


def split_of(name: str) -> str | None:
    """train | val | test | trainval, where the name of a folder or list says so: `train2017`, `Test_images`."""
    match = _OF_SPLIT.fullmatch(name.lower())
    return match.lastgroup if match else None


class Tree:
    """The files below `root`, by names relative to it; `notes` are what a reader found worth saying."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: list[str] = []
        self.notes: list[str] = []
        seen = set()
        for parent, folders, names in os.walk(root, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
            if (real := os.path.realpath(parent)) in seen:  # links that go round in a circle
                folders.clear()
                continue
            seen.add(real)
            below = os.path.relpath(parent, root).replace(os.sep, "/")
            self.files += [f"{below}/{name}"[2 * (below == ".") :] for name in names if not name.startswith(".")]
        self.files.sort()

    def stats(self) -> list[str]:
        """What changes when somebody changes a file: names, sizes and times."""
        statuses = ((name, path.stat()) for name in self.files if (path := self.root / name).exists())
        return [f"{name} {status.st_size} {status.st_mtime_ns}" for name, status in statuses]

    def ending(self, *suffixes: str) -> list[str]:
        """The files whose names end so, in any case."""
        return [name for name in self.files if name.lower().endswith(suffixes)]

    @cached_property
    def images(self) -> list[str]:
        """The images, sorted by name."""
        return self.ending(*IMAGE)

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for name in self.images:
            found[_stem(name)].append(name)
        return found

    def image(self, name: str) -> str | None:
        """The image that a label file, a line of a list or an entry means, with or without folders and extension.

        It has the same stem. Of several it is the one whose last folders are the same, then the one with most folders
        of the same name, then the one with the same extension.

        Raises:
            InputError: two are equally near.
        """
        name = name.replace("\\", "/")
        found = self._by_stem.get(_stem(name), [])
        if len(found) < 2:
            return found[0] if found else None
        path = PurePosixPath(name)
        wanted, kind = [part for part in path.parts[:-1] if part not in (".", "..")], path.suffix.lower()

        def nearness(candidate: str) -> tuple[int, int, bool]:
            folders = candidate.split("/")[:-1]
            pairs = zip(reversed(folders), reversed(wanted), strict=False)
            same = next((n for n, (one, other) in enumerate(pairs) if one != other), min(len(folders), len(wanted)))
            return same, len({*folders} & {*wanted}), candidate.lower().endswith(kind) and bool(kind)

        first, second = sorted(found, key=nearness, reverse=True)[:2]
        if nearness(first) == nearness(second):
            raise InputError(
                f"{name} in {self.root} may mean {first} or {second}: give them names of their own, or keep copies of "
                "images elsewhere"
            )
        return first

    def text(self, name: str) -> str:
        """The text of a file. Raises InputError where it is not UTF-8."""
        try:
            return (self.root / name).read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError:
            raise InputError(f"{self.root / name} is not UTF-8, perhaps Latin-1 or UTF-16: save it as UTF-8") from None

    def by_image(self, labels: Iterable[str]) -> dict[str, str]:
        """Image -> its label file, for label files that have an image. Raises InputError where two have the same."""
        found: dict[str, str] = {}
        for name in labels:
            if (image := self.image(name)) in found:
                raise InputError(f"{found[image]} and {name} in {self.root} both label {image}: keep one of them")
            if image:
                found[image] = name
        return found

    def note(self, noun: str, rest: str, cases: Collection[str]) -> None:
        """Keep a remark about `cases`, if any, such as `2 images in no split, left out, for example a.jpg`."""
        if cases:
            self.notes.append(f"{count(len(cases), noun)} {rest}, for example {min(cases)}")

    def lists(self) -> dict[str, set[str]]:
        """Split -> its images, where text files such as `ImageSets/Main/val.txt` or `train_yolo.txt` list them.

        The folder whose lists name most images counts; those of another folder, too, if they name other images.

        Raises:
            InputError: a line names no image.
        """
        folders: dict[str, dict[str, set[str]]] = {}
        for name in self.ending(".txt"):
            split = split_of(PurePosixPath(name).stem)
            if split and not self.image(name) and (images := self.listed(name)):  # no label of the image train.jpg
                folders.setdefault(name.rpartition("/")[0], {}).setdefault(split, set()).update(images)
        found: dict[str, set[str]] = defaultdict(set)
        passed = []
        for folder, lists in sorted(folders.items(), key=lambda item: -len(set().union(*item[1].values()))):
            if set().union(*lists.values()) & set().union(*found.values()):
                passed.append(str(self.root / folder))
                continue
            if "train" in lists and "val" in lists:
                lists.pop("trainval", None)
            for split, images in lists.items():
                found[split] |= images
        self.note("folder", "with other lists of the same images, passed over", passed)
        return found

    def listed(self, name: str) -> set[str]:
        """The images that the text file `name` lists, none where it is no list. Raises InputError as `lists`."""
        lines = [line.strip() for line in self.text(name).splitlines()]
        if not any(line and self.image(line) for line in lines[:_LINES]):
            return set()
        images = {number: self.image(line) for number, line in enumerate(lines, start=1) if line}
        if lost := [number for number, image in images.items() if image is None]:
            raise InputError(
                f"{self.root / name}: {count(len(lost), 'line names|lines name')} no image below {self.root}, for "
                f"example line {lost[0]}: {lines[lost[0] - 1]!r}; add the images or take the lines out"
            )
        return {image for image in images.values() if image}

    def splits(self, images: Iterable[str], told: dict[str, set[str]] | None = None) -> dict[str, set[str]]:
        """Split -> which of `images`: as `told`, by lists, or by the names of folders; else all are `train`."""
        images = set(images)
        found = told or self.lists()
        for image in () if found else images:
            if named := next(filter(None, map(split_of, reversed(image.split("/")[:-1]))), None):
                found[named].add(image)
        train = found.pop("train", set()) | (found.pop("trainval", set()) - found.get("val", set()))
        rest = images.difference(train, *found.values())
        self.note("image", "in no split, left out", rest if train else ())
        found["train"] = train or rest
        return {split: both for split, names in found.items() if (both := names & images)}


def _stem(name: str) -> str:
    """The name without folders and without an extension that we know, in one form of Unicode."""
    last = name.rpartition("/")[2]
    stem, _, suffix = last.rpartition(".")
    return normalize("NFC", stem if stem and f".{suffix.lower()}" in _KNOWN else last)


def divided(content: Annotations, splits: dict[str, set[str]]) -> dict[str, Annotations]:
    """Split -> those images of `content` with their boxes."""
    parts = {}
    for split, names in splits.items():
        images = [image for image in content.images if image.file_name in names]
        ids = {image.id for image in images}
        boxes = [box for box in content.annotations if box.image_id in ids]
        parts[split] = Annotations(images, content.categories, boxes)
    return parts
