"""Pascal VOC: an XML file for each image, and lists of the images of a split in `ImageSets/Main`, if any.

A label belongs to the image of the same name, whatever its `<filename>` says. Corners are counted from 1, and lie
between pixels: x = xmin - 1, width = xmax - xmin. So do Darknet's voc_label.py, ultralytics, mmdet's XMLDataset and
supervision read VOC, and what they wrote as YOLO gives the same boxes. Only the contest's own sets, `data.voc`, have
the last pixel inside the box. An image without an XML file was not labelled, and is left out.
"""

from ghm.data import voc
from ghm.data.annotations import Annotations, Box, Category, Image
from ghm.data.layouts import headers, names
from ghm.data.layouts.tree import Tree, divided

_LOOKED_AT = 20  # XML files, to see whether they are VOC's


def labels(tree: Tree) -> list[str]:
    """The XML files, where one of the first is VOC's."""
    found = tree.ending(".xml")
    heads = ((tree.root / name).read_bytes()[:500] for name in found[:_LOOKED_AT])
    return found if any(b"<annotation>" in head or b"<annotation " in head for head in heads) else []


def read(tree: Tree, files: list[str]) -> dict[str, Annotations]:
    """Split -> its images and boxes; classes as a file names them in order, or else by the alphabet.

    Raises:
        InputError: a file cannot be read.
    """
    of_image = tree.by_image(files)
    lost = [name for name in files if not tree.image(name)]
    tree.note("label file", "without an image, passed over", lost)
    rest = [image for image in tree.images if image not in of_image]
    tree.note("image", "without a label file, left out", rest)
    found = headers.read(tree.root, [*of_image])
    contents = {image: voc.read(tree.root / name, needs_image=False) for image, name in sorted(of_image.items())}
    used = {label for content in contents.values() for label, _, _ in content.objects}
    listed = names.read(tree).classes
    classes = listed if used <= {*listed.values()} else dict(enumerate(sorted(used)))
    index = {label: number for number, label in classes.items()}
    images, boxes = [], []
    for number, (image, content) in enumerate(contents.items(), start=1):
        width, height = headers.upright(found.get(image, (1, 1, 1)))
        images.append(Image(number, image, content.width or width, content.height or height))
        for label, (left, top, right, bottom), is_difficult in content.objects:
            bbox = left - 1, top - 1, right - left, bottom - top
            boxes.append(Box(number, index[label], bbox, iscrowd=int(is_difficult)))
    plain = Annotations(images, [Category(number, label) for number, label in classes.items()], boxes)
    tree.notes += headers.fit(plain, found)
    return divided(plain, tree.splits(of_image))
