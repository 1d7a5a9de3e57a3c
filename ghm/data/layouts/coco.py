"""COCO files as COCO, Roboflow, CVAT and Label Studio lay them out; what exports get wrong is put right or named.

Ids that are text become numbers, a box without `bbox` gets that of its polygons, boxes in shares of the image become
pixels, and the parent class that Roboflow adds is left out where it has no box.
"""

import mmap
from collections import Counter
from pathlib import Path, PurePosixPath

import msgspec
import numpy as np

from ghm.data import annotations
from ghm.data.annotations import Annotations, Box, Category, Exported, Id, Image, Rectangle
from ghm.data.layouts import headers
from ghm.data.layouts.tree import SPLITS, Tree, split_of
from ghm.errors import InputError
from ghm.words import count

_KEYS = ("images", "annotations", "categories")
_ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
_OUTSIDE = 0.2  # share of the boxes that leave their image; with more, they are looked at as corners


def labels(tree: Tree) -> list[str]:
    """The COCO files: JSON with the three keys."""
    return [name for name in tree.ending(".json") if _is_coco(tree.root / name)]


def _is_coco(path: Path) -> bool:
    if not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return all(any(text.find(f'"{key}"'.encode(each)) >= 0 for each in _ENCODINGS) for key in _KEYS)


def read(tree: Tree, files: list[str]) -> dict[str, Annotations]:
    """Split -> content of its COCO file; all is `train` where there is one file and it tells no split.

    Raises:
        InputError: it cannot be told which file is of which split, or one cannot be put right.
    """
    chosen = _by_split(tree, files)
    contents = {
        split: annotations.read(tree.root / name, Exported, any_encoding=True) for split, name in chosen.items()
    }
    used = {box.category_id for content in contents.values() for box in content.annotations}
    for split, content in contents.items():
        parents = {entry.supercategory for entry in content.categories if entry.supercategory != entry.name}
        empty = [entry for entry in content.categories if entry.id not in used and entry.name in parents]
        content.categories = [entry for entry in content.categories if entry not in empty]
        if empty and split == "train":
            tree.notes.append(f"class {empty[0].name!r}, the parent of others, has no box and is left out")
    plain = {split: _plain(tree, chosen[split], split, content) for split, content in contents.items()}
    listed = (image.file_name for content in plain.values() for image in content.images)
    tree.note("image", "in no COCO file, left out", {*tree.images}.difference(listed))
    return plain


def _by_split(tree: Tree, files: list[str]) -> dict[str, str]:
    """Split -> its file, by the file's name (`instances_val2017.json`) or its folder's (`valid/_annotations...`)."""
    found: dict[str, list[str]] = {}
    for name in files:
        path = PurePosixPath(name)
        words = [path.stem, *reversed(path.stem.split("_")), *reversed(path.parts[:-1])]
        split = next(filter(None, map(split_of, words)), "train" if len(files) == 1 else "")
        found.setdefault(split, []).append(name)
    found.setdefault("train", found.pop("trainval", []))
    passed = found.pop("", [])
    chosen = {split: [name for name in names if "instances" in name] or names for split, names in found.items()}
    if unclear := next((names for names in [*chosen.values(), passed] if len(names) > 1), None):
        raise InputError(
            f"{' and '.join(unclear[:2])} in {tree.root}: it cannot be told which one to take, or for which split; "
            "keep one for each of train, val and test, or name the files in custom.train and custom.val"
        )
    tree.note("COCO file", "whose name tells no split, passed over", passed)
    return {split: chosen[split][0] for split in SPLITS if chosen.get(split)}


def _plain(tree: Tree, name: str, split: str, content: Exported) -> Annotations:
    """The content in plain COCO, images by their names below the tree."""
    path = PurePosixPath(name)
    near = "/".join([*path.parts[:-1], *path.stem.split("_"), split])  # folders that its images may be in
    places = [tree.image(f"{near}/{image.file_name}") for image in content.images]
    lost = [image.file_name for image, there in zip(content.images, places, strict=True) if there is None]
    number = _numbers(tree.root / name, "image", [image.id for image in content.images], lost)
    label = _numbers(tree.root / name, "category", [entry.id for entry in content.categories], [])
    found = headers.read(tree.root, [there for there in places if there])
    images = []
    for image, there in zip(content.images, places, strict=True):
        width, height = headers.upright(found.get(there or "", (1, 1, 1)))  # `validation` tells what is not there
        place = there or image.file_name
        images.append(Image(number[image.id], place, int(image.width or width), int(image.height or height)))
    boxes = []
    for index, box in enumerate(content.annotations):
        where = f"{tree.root / name}: annotations[{index}]"
        if box.image_id not in number or box.category_id not in label:
            key = "category_id" if box.image_id in number else "image_id"
            raise InputError(f"{where} has the {key} {getattr(box, key)!r}, which the file does not define: mend it")
        bbox = _bbox(box.bbox, box.segmentation, where)
        boxes.append(Box(number[box.image_id], label[box.category_id], bbox, 0, box.area, box.iscrowd, box.ignore))
    plain = Annotations(images, [Category(label[entry.id], entry.name) for entry in content.categories], boxes)
    if boxes:
        _check_form(tree, name, plain)
    tree.notes += headers.fit(plain, found)
    return plain


def _numbers(path: Path, kind: str, ids: list[Id | str], lost: list[str]) -> dict[Id | str, int]:
    """Each id as a number: itself, or its place where an id is text.

    Raises:
        InputError: two have the same, so that their boxes cannot be told apart; `lost` images are told with it.
    """
    times = Counter(ids)
    if doubled := [each for each in times if times[each] > 1]:
        most = max(doubled, key=times.__getitem__)
        missing = f"; {len(lost):,} of {len(ids):,} images are not on disk, for example {lost[0]!r}" if lost else ""
        raise InputError(
            f"{path}: {count(len(doubled), f'{kind} id stands|{kind} ids stand')} in it more than once, {most!r} "
            f"{times[most]} times, so that it is unknown whose the boxes are{missing}: export it again, with an id of "
            f"its own for each {kind}"
        )
    are_text = any(isinstance(each, str) for each in ids)
    return {each: place if are_text else int(each) for place, each in enumerate(ids, start=1)}


def _bbox(bbox: list[float] | None, segmentation: msgspec.Raw, where: str) -> Rectangle:
    """A box, or that around the polygons of an annotation."""
    if bbox and len(bbox) == 4:
        return bbox[0], bbox[1], bbox[2], bbox[3]
    try:
        polygons = msgspec.json.decode(segmentation, type=list[list[float]])
        x, y = ([number for points in polygons for number in points[axis::2]] for axis in (0, 1))
        return min(x), min(y), max(x) - min(x), max(y) - min(y)
    except ValueError:  # msgspec's, of a mask, or of `min` where there is no point
        raise InputError(f"{where} has no `bbox` of four numbers and no polygon: export it with boxes") from None


def _check_form(tree: Tree, name: str, content: Annotations) -> None:
    """Boxes in shares of the image become pixels. Raise InputError where they are corners. Shapes: B boxes."""
    sides = {image.id: (image.width, image.height) for image in content.images}
    box_B4 = np.array([box.bbox for box in content.annotations])
    side_B2 = np.array([sides[box.image_id] for box in content.annotations])
    if (box_B4 >= 0).all() and box_B4.max() <= 1:
        tree.notes.append(f"the boxes of {name} are shares of the image, {box_B4.max():.3g} at most, and become pixels")
        for box, (width, height) in zip(content.annotations, side_B2.tolist(), strict=True):
            x, y, w, h = box.bbox
            box.bbox, box.area = (x * width, y * height, w * width, h * height), None
        return
    start_B2, last_B2 = box_B4[:, :2], box_B4[:, 2:]
    outside_B = np.any(start_B2 + last_B2 > side_B2 + 1, axis=1)
    are_corners = np.all(last_B2 > start_B2) and np.all(last_B2 <= side_B2 + 1)
    if outside_B.mean() > _OUTSIDE and are_corners:
        first = content.annotations[int(outside_B.argmax())]
        raise InputError(
            f"{tree.root / name}: its boxes seem to be corners [x1, y1, x2, y2]; as [x, y, width, height], which COCO "
            f"means, {outside_B.sum():,} of {len(box_B4):,} leave their image, for example {list(first.bbox)} of "
            f"image {first.image_id}: export them as [x, y, width, height]"
        )
