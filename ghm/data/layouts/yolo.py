"""YOLO labels: a text file for each image, a line `class x y width height` for each box, in shares of the image.

As ultralytics, Darknet, Roboflow, CVAT and Label Studio lay them out. Oriented boxes and polygons become the upright
boxes around them; of a line with keypoints the box is read. An image without a label file has no objects: that is how
the format says so. Source: docs.ultralytics.com, datasets/detect, /obb, /segment and /pose.
"""

from math import isfinite

from ghm.data.annotations import Annotations, Box, Category, Image, Rectangle
from ghm.data.layouts import headers, names
from ghm.data.layouts.tree import Tree, divided
from ghm.errors import InputError

_FAR = 1.5  # a share of the image cannot be more, even with what tools round and reach over its edge


def labels(tree: Tree) -> list[str]:
    """The label files: text files called like an image, where one holds numbers."""
    found = [name for name in tree.ending(".txt") if tree.image(name)]
    return found if any(_is_label(tree, name) for name in found) else []


def read(tree: Tree, files: list[str]) -> dict[str, Annotations]:
    """Split -> its images and boxes, with the classes' numbers as ids; all in `train` where nothing tells splits.

    Raises:
        InputError: the names of the classes are missing, or a line is wrong.
    """
    known = names.read(tree)
    if not known.classes:
        raise InputError(
            f"{tree.root} has YOLO labels and no names of classes: add data.yaml with `names`, or classes.txt with a "
            "name on each line"
        )
    of_image = tree.by_image(files)
    found = headers.read(tree.root, tree.images)
    images, boxes, around = [], [], []
    for number, image in enumerate(tree.images, start=1):
        width, height = headers.upright(found.get(image, (1, 1, 1)))  # unreadable ones are told by `validation`
        images.append(Image(number, image, width, height))
        if image in of_image:
            for index, (x, y, w, h), is_upright in _boxes(tree, of_image[image], known):
                pixels = (x - w / 2) * width, (y - h / 2) * height, w * width, h * height
                bbox = round(pixels[0], 3), round(pixels[1], 3), round(pixels[2], 3), round(pixels[3], 3)
                boxes.append(Box(number, index, bbox))
                around += [] if is_upright else [of_image[image]]
    tree.note("line", "with an oriented box or a polygon, read as the upright box around it", around)
    rest = [image for image in tree.images if image not in of_image]
    tree.note("image", "without a label file, which is YOLO's way to say that nothing is on it", rest)
    lost = [name for name in tree.ending(".txt") if not tree.image(name) and _is_label(tree, name)]
    tree.note("label file", "without an image, passed over", lost)
    content = Annotations(images, [Category(number, label) for number, label in known.classes.items()], boxes)
    return divided(content, tree.splits(tree.images, known.splits))


def _is_label(tree: Tree, name: str) -> bool:
    words = (tree.root / name).read_bytes()[:1000].split(maxsplit=5)
    try:
        return len(words) > 4 and all(isfinite(float(word.replace(b",", b"."))) for word in words[:5])
    except ValueError:
        return False


def _boxes(tree: Tree, name: str, known: names.Names) -> list[tuple[int, Rectangle, bool]]:
    """For each line of a label file its class, centre and sides, and whether it is a plain box."""
    found = []
    for number, line in enumerate(tree.text(name).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        try:
            values = [float(word) for word in words]
        except ValueError:
            point = ": write numbers with a point" if "," in line else ""
            raise _wrong(tree, name, number, f"`class x y width height` is expected, got {line!r}{point}") from None
        if values[0] not in known.classes:
            allowed = f"0 to {max(known.classes)}"
            raise _wrong(tree, name, number, f"class {words[0]} is none of {allowed}, which {known.source} names")
        sides = values[1:5] if known.has_keypoints else values[1:]
        if not all(-_FAR < value < _FAR for value in sides):
            raise _wrong(tree, name, number, f"numbers are expected in shares of the image, 0 to 1, got {line!r}")
        if len(sides) == 4:
            x, y, w, h = sides
        elif len(sides) >= 6 and len(sides) % 2 == 0:
            left, top, right, bottom = min(sides[::2]), min(sides[1::2]), max(sides[::2]), max(sides[1::2])
            x, y, w, h = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
        else:
            expected = "5 numbers are expected, or a class and the corners of a polygon"
            score = ": a score after the box is not for training" if len(sides) == 5 else ""
            raise _wrong(tree, name, number, f"{expected}, got {len(words)}{score}")
        found.append((int(values[0]), (x, y, w, h), len(sides) == 4))
    return found


def _wrong(tree: Tree, name: str, line: int, reason: str) -> InputError:
    return InputError(f"{tree.root / name}, line {line}: {reason}")
