"""Where each data set lies: made, found or fetched, and which files are its splits."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from ghm import files
from ghm.data import annotations, custom, digits, sources, voc
from ghm.data.content import Memory
from ghm.data.images import fault
from ghm.data.manifest import Split
from ghm.errors import InputError
from ghm.params import CustomSplit, Params

IMAGES = "images"  # the link to the user's folder in a custom data set of ours
COCO_SPLITS = {name: Split(f"annotations/instances_{name}2017.json", f"{name}2017") for name in ("train", "val")}


@dataclass(frozen=True)
class Located:
    """A data set on this machine."""

    root: Path  # `data/<name>` will be a link to it
    splits: dict[str, Split]  # train first
    links: dict[str, Path] = field(default_factory=dict)  # further links in `data/`


def store() -> Path:
    """The folder of all data sets and downloads: $GHM_DATA_ROOT, or the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("GHM_DATA_ROOT") or cache / "ghm").expanduser().absolute()


def locate(params: Params) -> Located:
    """Find the data set `params.data.name`, or make or fetch it.

    Raises:
        InputError: it is not there and cannot be had.
    """
    name = params.data.name
    if name == "digits":
        return _digits(params)
    if name == "custom":
        return _custom(params)
    if name == "coco":
        return _coco(params)
    return _voc(params)


def _found(params: Params, folder: str, archives: tuple[sources.Archive, ...]) -> Path:
    data = params.data
    if data.root:
        return sources.given(data.name, data.root, archives)
    return sources.find_or_fetch(data.name, store() / folder, archives, data.source)


def _digits(params: Params) -> Located:
    """The embedded data set, made when it is missing; its folder is keyed by all that shapes it."""
    splits = {name: Split(f"annotations/instances_{name}.json", name) for name in digits.SPLITS}
    if params.data.source:
        raise InputError(f"data.source must be null with data.name: digits, got {params.data.source!r}")
    if params.data.root:
        return Located(_folder_with(params.data.root, splits), splits)
    source = b"".join(path.read_bytes() for path in sorted(Path(digits.__file__).parent.glob("digits*.py")))
    shape = json.dumps([asdict(params.digits), params.data.label_noise], sort_keys=True).encode()
    root = store() / f"digits-{_key(source + shape)}"
    if not root.exists():
        digits.write(params.digits, params.data.label_noise, root)
    return Located(root, splits)


def _coco(params: Params) -> Located:
    archives = sources.ARCHIVES["coco"]
    splits = dict(COCO_SPLITS)
    if params.data.test2017:
        archives += sources.ARCHIVES["coco test2017"]
        splits["test-dev"] = Split("annotations/image_info_test-dev2017.json", "test2017", labelled=False)
    return Located(_found(params, "coco", archives), splits)


def _voc(params: Params) -> Located:
    """VOC's own files stay as they are: the COCO files made from them lie in a folder of ours, beside a link."""
    name = params.data.name
    home = {"voc": "VOCdevkit", "bccd": "bccd"}[name]
    images = _found(params, home, sources.ARCHIVES[name])
    format_ = voc.SETS[name]
    key = _key(Path(voc.__file__).read_bytes() + voc.fingerprint(format_, images).encode())
    root = store() / f"{name}-{key}"
    _make(root, images, home, lambda folder: voc.convert(format_, images, folder / "annotations"))
    splits = {split: Split(f"annotations/instances_{split}.json", home) for split in format_.splits}
    return Located(root, splits, {home: images} if name == "voc" else {})


def _custom(params: Params) -> Located:
    """The user's files stay as they are: plain COCO files made from them lie in a folder of ours, beside a link."""
    parts: dict[str, CustomSplit | None] = {name: getattr(params.custom, name) for name in ("train", "val", "test")}
    splits = {name: Split(part.annotations, part.images) for name, part in parts.items() if part}
    given = _custom_root(params, splits)
    texts = [_digest(given / split.annotations) for split in splits.values()]
    code = b"".join(Path(str(module.__file__)).read_bytes() for module in (custom, annotations))
    shape = json.dumps([str(given), texts, asdict(params.custom)], sort_keys=True).encode()
    root = store() / f"custom-{_key(code + shape)}"
    _make(root, given, IMAGES, partial(custom.convert, splits, given), partial(custom.is_outdated, splits, given))
    return Located(
        root,
        {
            name: Split(
                f"annotations/instances_{name}.json", f"{IMAGES}/{split.folder}", source=given / split.annotations
            )
            for name, split in splits.items()
        },
    )


def _custom_root(params: Params, splits: dict[str, Split]) -> Path:
    """The folder with the user's annotation files and images."""
    source = params.data.source
    if source and not Path(source).expanduser().is_dir():
        archive = sources.own_archive(source, tuple(split.annotations for split in splits.values()))
        root = store() / f"custom-{_key(source.encode())}"
        return sources.find_or_fetch("custom", root, (archive,), source.partition("#")[0])
    return _folder_with(params.data.root or source or str(store() / "custom"), splits)


def _make(
    root: Path,
    given: Path,
    link: str,
    fill: Callable[[Path], None],
    is_outdated: Callable[[Path], bool] = lambda _root: False,
) -> None:
    """Let `fill` write the annotations of the data set at `given` into the new folder `root`, beside a link to it."""
    if root.exists() and not is_outdated(root):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with files.alone(root.with_name(f".{root.name}.lock"), f"the annotations of {given}"):
        if not root.exists() or is_outdated(root):  # whoever waited here finds them made
            with files.whole_folder(root) as folder:
                fill(folder)
                (folder / link).symlink_to(given)


def _folder_with(folder: str, splits: dict[str, Split]) -> Path:
    root = Path(folder).expanduser().absolute()
    lacking = [split.annotations for split in splits.values() if not (root / split.annotations).is_file()]
    lacking += [split.folder for split in splits.values() if not (root / split.folder).is_dir()]
    if lacking:
        raise InputError(f"{root} has no {', '.join(lacking)}: set data.root to the folder that has, or mend `custom`")
    return root


def memory() -> Memory:
    """What is remembered of the content of files."""
    return Memory(store() / "index", fault)


def _digest(path: Path) -> str:
    found = memory().contents(path.parent, [path.name], images=False).get(path.name)
    if found is None or found.fault:
        raise InputError(f"the annotation file {path} cannot be read: {found.fault if found else 'it is no file'}")
    return found.sha256


def _key(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
