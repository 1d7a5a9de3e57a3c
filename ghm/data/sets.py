"""Where each data set lies: made, found or fetched, and which files are its splits."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ghm import files
from ghm.data import custom, sources, voc
from ghm.data.annotations import Annotations
from ghm.data.custom import Recognised
from ghm.data.layouts.tree import SPLITS, Tree
from ghm.data.manifest import Split
from ghm.data.noise import Noise
from ghm.errors import InputError
from ghm.params import Params

IMAGES = "images"  # the link to the user's folder in a custom data set of ours
_KNOWN = "recognised.json"
_RECOGNISING = ["custom", "annotations", "noise", "splits", "voc"]  # and the layouts: the code that shapes what is made
_RECOGNISING += [f"layouts/{path.stem}" for path in sorted((Path(__file__).parent / "layouts").glob("*.py"))]
COCO_SPLITS = {name: Split(f"annotations/instances_{name}2017.json", f"{name}2017") for name in ("train", "val")}


@dataclass(frozen=True)
class Located:
    """A data set on this machine."""

    root: Path  # `data/<name>` will be a link to it
    splits: dict[str, Split]  # train first
    links: dict[str, Path] = field(default_factory=dict)  # further links in `data/`
    said: list[str] = field(default_factory=list)  # what is worth saying about it
    made: dict[str, Any] | None = None  # how splits were made, and of which images


def store() -> Path:
    """The folder of all data sets and downloads: $GHM_DATA_ROOT, or the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("GHM_DATA_ROOT") or cache / "ghm").expanduser().absolute()


def memory() -> Path:
    """The folder of what is remembered of the content of files."""
    return store() / "index"


def locate(parameters: Params, before: dict[str, Any] | None = None) -> Located:
    """Find the data set `data.name`, or make or fetch it.

    Args:
        parameters: `data` and `custom` are read.
        before: `Located.made` of an earlier call, so that images stay in their splits.

    Raises:
        InputError: it is not there and cannot be had.
    """
    if parameters.data.name == "custom" and parameters.custom.train is None:
        return _recognised(parameters, before)
    kinds = {"digits": _digits, "custom": _custom, "coco": _coco, "voc": _voc, "bccd": _voc}
    return kinds[parameters.data.name](parameters)


def _digits(parameters: Params) -> Located:
    """The embedded data set, made when it is missing; its folder is keyed by all that shapes it."""
    from ghm.data import digits  # not before: the other data sets do not wait for scikit-learn

    splits = {name: Split(f"annotations/instances_{name}.json", name) for name in digits.SPLITS}
    if parameters.data.source:
        raise InputError(f"data.source must be null with data.name: digits, got {parameters.data.source!r}")
    if parameters.data.root:
        return Located(_folder_with(parameters.data.root, splits), splits)
    noise = _noise(parameters, parameters.digits.seed)

    def fill(folder: Path) -> None:
        digits.write(parameters.digits, noise, folder)

    shape = [asdict(parameters.digits), asdict(noise)]
    return Located(_made("digits", ["digits", "digits_render", "noise"], shape, fill), splits)


def _coco(parameters: Params) -> Located:
    return Located(_published(parameters, "coco", sources.ARCHIVES["coco"]), COCO_SPLITS)


def _voc(parameters: Params) -> Located:
    """VOC's own files stay as they are: the COCO files made from them lie in a folder of ours, beside a link."""
    name = parameters.data.name
    home = {"voc": "VOCdevkit", "bccd": "bccd"}[name]
    images = _published(parameters, home, sources.ARCHIVES[name])
    format_ = voc.SETS[name]
    folders = {images / folder for parts in format_.splits.values() for folder, _ in parts}
    listing = _listing([folder / below for folder in folders for below in ("Annotations", "ImageSets")], stats=True)

    def fill(folder: Path) -> None:
        voc.convert(format_, images, folder / "annotations")
        (folder / home).symlink_to(images)

    root = _made(name, ["voc"], [str(images), listing], fill)
    splits = {split: Split(f"annotations/instances_{split}.json", home) for split in format_.splits}
    return Located(root, splits, {home: images} if name == "voc" else {})


def _custom(parameters: Params) -> Located:
    """The user's files stay as they are: plain COCO files made from them lie in a folder of ours, beside a link."""
    sections = {name: getattr(parameters.custom, name) for name in ("train", "val", "test")}
    theirs = {name: Split(section.annotations, section.images) for name, section in sections.items() if section}
    home = _custom_root(parameters, theirs)
    texts = [files.digest(home / split.annotations) for split in theirs.values()]
    listing = _listing([home / split.folder for split in theirs.values()])  # names as the disk spells them
    noise = _noise(parameters)

    def fill(folder: Path) -> None:
        custom.convert(theirs, home, folder, noise)
        (folder / IMAGES).symlink_to(home)

    shape = [str(home), texts, listing, asdict(parameters.custom), asdict(noise)]
    root = _made("custom", ["custom", "annotations", "noise"], shape, fill)
    ours = {
        name: Split(f"annotations/instances_{name}.json", f"{IMAGES}/{split.folder}", source=home / split.annotations)
        for name, split in theirs.items()
    }
    return Located(root, ours)


def _recognised(parameters: Params, before: dict[str, Any] | None) -> Located:
    """As `_custom`, with what the folder holds found out, and splits made where it has none.

    What is made in the store depends on files and settings, and on the splits of before: the folder is one that agrees
    with these, so that whoever has the manifest gets the same.
    """
    home = _custom_root(parameters, {})
    tree = Tree(home)
    settings = {name: getattr(parameters.custom, name) for name in ("val_share", "test_share", "split_seed")}
    is_same = before is not None and all(before.get(name) == value for name, value in settings.items())
    earlier = {name: split for split, names in before["images"].items() for name in names} if before and is_same else {}
    noise = _noise(parameters)
    key = _key(_RECOGNISING, [str(home), tree.stats(), settings, parameters.custom.layout, asdict(noise)])
    for root in sorted(store().glob(f"custom-{key}-*")):
        known = Recognised(**json.loads((root / _KNOWN).read_bytes()))
        if known.agrees(earlier):
            break
    else:
        known, contents = custom.recognise(tree, parameters.custom, earlier)
        root = _made(f"custom-{key}", [], known.splits, partial(_write, home, known, contents, noise))
    splits = {name: Split(f"annotations/instances_{name}.json", IMAGES, source=home) for name in SPLITS}
    made = {**settings, "images": known.splits} if known.splits else None
    return Located(root, splits, said=known.said, made=made)


def _write(home: Path, known: Recognised, contents: dict[str, Annotations], noise: Noise, folder: Path) -> None:
    custom.write(contents, folder, noise)
    files.write_json(folder / _KNOWN, asdict(known))
    (folder / IMAGES).symlink_to(home)


def _noise(parameters: Params, seed: int = 0) -> Noise:
    return Noise(parameters.data.label_noise, parameters.data.box_noise, seed)


def _custom_root(parameters: Params, splits: dict[str, Split]) -> Path:
    """The folder with the user's annotation files and images."""
    source = parameters.data.source
    if source and not Path(source).expanduser().is_dir():
        archive = sources.custom_archive(source, tuple(split.annotations for split in splits.values()) or ("",))
        root = store() / f"custom-{hashlib.sha256(source.encode()).hexdigest()[:12]}"
        return sources.find_or_fetch("custom", root, (archive,), source.partition("#")[0])
    return _folder_with(parameters.data.root or source or str(store() / "custom"), splits)


def _published(parameters: Params, folder: str, archives: tuple[sources.Archive, ...]) -> Path:
    data = parameters.data
    if data.root:
        return sources.existing_copy(data.name, Path(data.root).expanduser().absolute(), archives)
    return sources.find_or_fetch(data.name, store() / folder, archives, data.source)


def _made(name: str, modules: list[str], shape: object, fill: Callable[[Path], None]) -> Path:
    """The folder that `fill` writes, whole or not at all, unless it is there; keyed by code and `shape`."""
    root = store() / f"{name}-{_key(modules, shape)}"
    root.parent.mkdir(parents=True, exist_ok=True)
    with files.locked(root.with_name(f".{root.name}.lock"), name):
        if not root.exists():
            with files.whole_folder(root) as folder:
                fill(folder)
    return root


def _key(modules: list[str], shape: object) -> str:
    code = b"".join((Path(__file__).parent / f"{module}.py").read_bytes() for module in modules)
    return hashlib.sha256(code + json.dumps(shape, sort_keys=True).encode()).hexdigest()[:12]


def _listing(folders: list[Path], *, stats: bool = False) -> list[str]:
    """The names below folders, with sizes and times where `stats`: what changes when somebody changes the files."""
    paths = [Path(parent, name) for folder in folders for parent, _, names in os.walk(folder) for name in names]
    if not stats:
        return sorted(map(str, paths))
    return sorted(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in paths)


def _folder_with(folder: str, splits: dict[str, Split]) -> Path:
    root = Path(folder).expanduser().absolute()
    missing = [split.annotations for split in splits.values() if not (root / split.annotations).is_file()]
    missing += [split.folder for split in splits.values() if not (root / split.folder).is_dir()]
    if missing:
        raise InputError(f"{root} has no {', '.join(missing)}: set data.root to the folder that has, or mend `custom`")
    return root
