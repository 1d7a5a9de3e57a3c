"""Data sets: made or found, described by a manifest, linked into `data/`."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ghm import files
from ghm.data import coco, digits
from ghm.errors import InputError
from ghm.params import Params

__all__ = ["ensure", "manifest_path", "prepare", "read_manifest"]


def manifest_path(params: Params) -> Path:
    """Where the manifest of the data set lies, relative to the repository's root."""
    return Path("data") / f"{params.data.name}.json"


def prepare(params: Params) -> None:
    """Make or find the data set, link it to `data/<name>`, write its manifest `data/<name>.json`.

    Raises:
        InputError: the data set is not there, or is malformed.
    """
    root = _link(params)
    files.write_json(manifest_path(params), coco.manifest(params.data.name, root))


def ensure(params: Params) -> Path:
    """Return the root of the data set `data/<name>`, linked anew where the link is missing.

    A stage calls this before it reads images: DVC tracks the manifest, not the images.

    Raises:
        InputError: what lies there is not what the manifest describes.
    """
    _link(params)
    root = Path("data") / params.data.name
    for split in read_manifest(params)["splits"].values():
        annotations = root / split["annotations"]
        if not annotations.exists() or annotations.stat().st_size != split["annotations_bytes"]:
            raise InputError(f"{annotations} is not what {manifest_path(params)} describes: run `dvc repro -f data`")
    return root


def read_manifest(params: Params) -> dict[str, Any]:
    """The manifest that `prepare` wrote."""
    return json.loads(manifest_path(params).read_text(encoding="utf-8"))


def _store() -> Path:
    """The folder of all data sets: $GHM_DATA_ROOT, or the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("GHM_DATA_ROOT") or cache / "ghm").absolute()


def _link(params: Params) -> Path:
    root = _made_digits(params) if params.data.name == "digits" and params.data.root is None else _found(params)
    coco.link(root, Path("data") / params.data.name, replaceable=_store())
    return root


def _found(params: Params) -> Path:
    name = params.data.name
    root = Path(params.data.root).expanduser().absolute() if params.data.root else _store() / name
    if not root.is_dir():
        needed = ", ".join(
            f"{part}" for split in coco.LAYOUTS[name].values() for part in (split.annotations, f"{split.folder}/")
        )
        raise InputError(f"{root} is missing: set data.root or GHM_DATA_ROOT to a copy of {name} with {needed}")
    return root


def _made_digits(params: Params) -> Path:
    """The embedded data set, made when it is missing; its folder is keyed by all that shapes it."""
    source = b"".join(path.read_bytes() for path in sorted(Path(digits.__file__).parent.glob("digits*.py")))
    shape = json.dumps([asdict(params.digits), params.data.label_noise], sort_keys=True).encode()
    root = _store() / f"digits-{hashlib.sha256(source + shape).hexdigest()[:12]}"
    if not root.exists():
        digits.write(params.digits, params.data.label_noise, root)
    return root
