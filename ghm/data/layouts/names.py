"""The names of the classes and the splits, where a YOLO data set says them: `data.yaml`, or a text file of names."""

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ghm.data.layouts.tree import Tree
from ghm.errors import InputError

_TEXTS = ("classes.txt", "labels.txt", "names.txt", "predefined_classes.txt", ".names", ".labels")


@dataclass(frozen=True)
class Names:
    """What is known of the classes."""

    classes: dict[int, str]  # empty where no file names them
    source: str = ""  # that file
    splits: dict[str, set[str]] = field(default_factory=dict)  # split -> its images, as far as it says
    has_keypoints: bool = False  # of a line of a label file, more follows after the box


def read(tree: Tree) -> Names:
    """Read `data.yaml`, or where there is none a file such as `classes.txt`.

    Raises:
        InputError: a file cannot be read, or two name other classes.
    """
    settings = {name: content for name in tree.ending(".yaml", ".yml") if (content := _yaml(tree, name))}
    found = {name: _listed(tree, name, content) for name, content in settings.items()}
    for name in () if found else tree.ending(*_TEXTS):
        lines = [line.strip() for line in tree.text(name).splitlines()]
        while lines and not lines[-1]:
            lines.pop()
        if "" in lines:
            raise InputError(
                f"{tree.root / name}, line {lines.index('') + 1}: it is empty, the name of a class is expected"
            )
        found[name] = dict(enumerate(lines))
    if not found:
        return Names({})
    first, *others = found
    for other in others:
        if found[other] != found[first]:
            raise InputError(f"{first} and {other} in {tree.root} name other classes: keep one of them")
    content = settings.get(first, {})
    return Names(found[first], first, _splits(tree, content), "kpt_shape" in content)


def _yaml(tree: Tree, name: str) -> dict[str, Any]:
    """The content of a YAML file with `names`, empty where it is another one."""
    try:
        content = YAML(typ="safe").load(tree.text(name))
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{tree.root / name}{line}: it is not valid YAML") from None
    return content if isinstance(content, dict) and "names" in content else {}


def _listed(tree: Tree, name: str, content: dict[str, Any]) -> dict[int, str]:
    """Number -> name of the classes, which the file has as a list or by their numbers."""
    names, number = content["names"], content.get("nc")
    pairs = names.items() if isinstance(names, dict) else enumerate(names) if isinstance(names, list) else ()
    classes = {int(key): str(label) for key, label in pairs if str(key).isdecimal()}
    if not classes or len(classes) != len(names):
        raise InputError(
            f"{tree.root / name}: `names` must be a list of names, or a name for each number, got {names!r}"
        )
    if number is not None and number != len(classes):
        raise InputError(f"{tree.root / name}: `nc` is {number!r}, and `names` has {len(classes)}: mend it")
    return dict(sorted(classes.items()))


def _splits(tree: Tree, content: dict[str, Any]) -> dict[str, set[str]]:
    """Split -> the images in its folders or lists; the same images once more are no other split."""
    found = {}
    for split, key in (("train", "train"), ("val", "val"), ("val", "valid"), ("test", "test")):
        entry = content.get(key) or []
        places = map(str, entry if isinstance(entry, list) else [entry])
        images = set[str]().union(*(_below(tree, str(content.get("path", "")), place) for place in places))
        if images and images not in found.values():
            found[split] = images
    return found if "train" in found else {}


def _below(tree: Tree, home: str, place: str) -> set[str]:
    """The images of a list or folder, as far as it is there, whose path may be one of another machine."""
    before, own = (
        [part for part in PurePosixPath(path.replace("\\", "/")).parts if part not in ("/", ".", "..")]
        for path in (home, place)
    )
    known = 2 if place.startswith("/") or ":" in place else len(own)  # last parts that have to be the same
    for start in range(len(before + own) - min(known, len(own)) + 1):
        tail = "/".join((before + own)[start:])
        if listed := [name for name in tree.files if f"/{name}".endswith(f"/{tail}")] if tail else []:
            return tree.listed(listed[0])
        if images := {image for image in tree.images if not tail or f"/{tail}/" in f"/{image}"}:
            return images
    return set()
