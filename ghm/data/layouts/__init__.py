"""The layouts of other people's data sets: recognised by what is there, and read into one form."""

from ghm.data.annotations import Annotations
from ghm.data.layouts import coco, voc, yolo
from ghm.data.layouts.tree import Tree
from ghm.errors import InputError
from ghm.words import count

READERS = {"coco": coco, "voc": voc, "yolo": yolo}
_FILES = {"coco": "COCO file", "voc": "Pascal VOC file", "yolo": "YOLO label file"}


def read(tree: Tree, layout: str | None) -> tuple[str, dict[str, Annotations]]:
    """Read the labels below a folder.

    Args:
        tree: the folder; its notes get what is worth saying.
        layout: coco | voc | yolo; None: the one that is there.

    Returns:
        What was found, in words, and split -> images, with names relative to the folder, boxes and classes. There is a
        `train`.

    Raises:
        InputError: no labels are there, or those of more than one layout, or some that cannot be read.
    """
    found = {name: files for name, reader in READERS.items() if (files := reader.labels(tree))}
    if layout:
        found = {name: files for name, files in found.items() if name == layout}
    if not found or not tree.images:
        what = _FILES[layout] if layout else "COCO file (.json), Pascal VOC file (.xml) or YOLO label (.txt)"
        lack = f"no {what} beside its {count(len(tree.images), 'image')}" if tree.images else "no images"
        raise InputError(f"data.root: {tree.root} has {lack}: set it to the folder that holds images and labels")
    if len(found) > 1:
        seen = ", ".join(f"{count(len(files), _FILES[name])} ({files[0]})" for name, files in found.items())
        raise InputError(
            f"{tree.root} has labels in more than one form, {seen}: set custom.layout to {' or '.join(found)}"
        )
    ((name, files),) = found.items()
    splits = READERS[name].read(tree, files)
    if not splits.get("train"):
        raise InputError(f"{tree.root}: there is no image to train on, only {', '.join(splits) or 'labels of none'}")
    return f"{count(len(files), _FILES[name])}", splits
