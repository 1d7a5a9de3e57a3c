"""Data sets: made, found or fetched, checked, described by a manifest, linked into `data/`."""

import json
from pathlib import Path
from typing import Any

from ghm import files
from ghm.data import manifest
from ghm.data.links import check_place, link
from ghm.data.sets import Located, locate, store
from ghm.errors import InputError
from ghm.params import Params

__all__ = ["ensure", "manifest_path", "prepare", "read_manifest", "store"]

FOLDER = Path("data")


def manifest_path(params: Params) -> Path:
    """Where the manifest of the data set lies, relative to the repository's root."""
    return FOLDER / f"{params.data.name}.json"


def prepare(params: Params) -> None:
    """Get the data set, link it to `data/<name>`, check it, write its manifest `data/<name>.json`.

    Raises:
        InputError: the data set cannot be had, is malformed, or has errors.
    """
    if params.data.root is None and params.data.source is None:  # say so before 20 GB are fetched
        place = FOLDER / params.data.name
        if not (place.is_symlink() and store() in place.readlink().parents):
            check_place(place, store(), wanted=f"a link into {store()}")
    located = locate(params)
    _link(params, located)
    content = manifest.describe(
        params.data.name, located.root, located.splits, params.data.check_images, params.data.max_bad_images
    )
    files.write_json(manifest_path(params), content)


def ensure(params: Params) -> Path:
    """Return the root of the data set `data/<name>`, linked anew where the link is missing.

    A stage calls this before it reads images: DVC tracks the manifest, not the images.

    Raises:
        InputError: what lies there is not what the manifest describes.
    """
    _link(params, locate(params))
    root = FOLDER / params.data.name
    for split in read_manifest(params)["splits"].values():
        annotations = root / split["annotations"]
        if not annotations.exists() or annotations.stat().st_size != split["annotations_bytes"]:
            raise InputError(f"{annotations} is not what {manifest_path(params)} describes: run `dvc repro -f data`")
    return root


def read_manifest(params: Params) -> dict[str, Any]:
    """The manifest that `prepare` wrote."""
    return json.loads(manifest_path(params).read_text(encoding="utf-8"))


def _link(params: Params, located: Located) -> None:
    for name, target in {params.data.name: located.root, **located.links}.items():
        link(target, FOLDER / name, replaceable=store())
