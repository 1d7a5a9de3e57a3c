"""Data sets: made, found or fetched, checked, described by a manifest, linked into `data/`."""

import json
import logging
import os
from pathlib import Path
from typing import Any

from ghm import files
from ghm.data import content, manifest
from ghm.data.sets import Located, locate, memory, store
from ghm.errors import InputError
from ghm.params import Params

__all__ = ["annotation_file", "ensure", "folder", "image_folder", "manifest_path", "prepare", "read_manifest", "store"]

FOLDER = Path("data")
MADE = "made_splits"  # key of the manifest: the images of the splits that were made here, and how
_log = logging.getLogger(__name__)


def folder(parameters: Params, root: Path = Path()) -> Path:
    """The link to the data set in the repository `root`: `data/<name>`."""
    return root / FOLDER / parameters.data.name


def manifest_path(parameters: Params, root: Path = Path()) -> Path:
    """Where the manifest of the data set lies in the repository `root`: `data/<name>.json`."""
    return root / FOLDER / f"{parameters.data.name}.json"


def read_manifest(parameters: Params, root: Path = Path()) -> dict[str, Any]:
    """The manifest that `prepare` wrote.

    Raises:
        InputError: it is not there.
    """
    path = manifest_path(parameters, root)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"{path} is missing: run `dvc repro data`") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): restore it with git, or delete it") from None


def annotation_file(parameters: Params, split: str, root: Path = Path()) -> Path:
    """The COCO annotation file of a split."""
    return folder(parameters, root) / read_manifest(parameters, root)["splits"][split]["annotations"]


def image_folder(parameters: Params, split: str, root: Path = Path()) -> Path:
    """The folder that file names in the annotations of a split are relative to."""
    return folder(parameters, root) / read_manifest(parameters, root)["splits"][split]["folder"]


def prepare(parameters: Params) -> None:
    """Get the data set, link it to `data/<name>`, check it, write its manifest `data/<name>.json`.

    Raises:
        InputError: the data set cannot be had, is malformed, or has errors.
    """
    data = parameters.data
    if data.root is None and data.source is None:  # say so before 20 GB are fetched
        _require_replaceable(folder(parameters), f"a link into {store()}")
    before = read_manifest(parameters).get(MADE) if manifest_path(parameters).exists() else None
    located = locate(parameters, before)
    for sentence in located.said:
        _log.info(sentence)
    _link(parameters, located)
    described = manifest.describe(
        data.name,
        located.root,
        located.splits,
        memory(),
        check_images=parameters.machine.check_images,
        max_bad_images=data.max_bad_images,
    )
    if located.made:
        described[MADE] = located.made
    files.write_json(manifest_path(parameters), described)


def ensure(parameters: Params) -> None:
    """Require that the data are those that the manifest describes, by content, and link them.

    A stage calls this before it reads images, and a training run once more at its end.

    Raises:
        InputError: annotations or images have changed.
    """
    known = read_manifest(parameters)
    located = locate(parameters, known.get(MADE))
    _link(parameters, located)
    for name, described in known["splits"].items():
        split = located.splits.get(name)
        if changed := content.difference(memory(), located.root, described, split.source if split else None):
            raise InputError(
                f"the data are not those that {manifest_path(parameters)} describes: {changed}. Run `dvc repro`, which "
                "checks them and runs what depends on them, or restore the files"
            )


def _link(parameters: Params, located: Located) -> None:
    for name, target in {parameters.data.name: located.root, **located.links}.items():
        path = FOLDER / name
        if path.is_symlink() and path.readlink() == target:
            continue
        _require_replaceable(path, f"a link to {target}")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.symlink_to(target)
        temporary.replace(path)


def _require_replaceable(path: Path, wanted: str) -> None:
    """Only a link into the store may be replaced, to what this program made or fetched; all else is somebody's.

    Raises:
        InputError: something else is at `path`, where `wanted` should be.
    """
    if path.is_symlink():
        current = path.readlink()
        if store() not in current.parents:
            remedy = f"remove it or set data.root to {current}" if path.exists() else "it is broken, remove it"
            raise InputError(f"{path} is a link to {current}, not {wanted}: {remedy}")
    elif path.exists():
        raise InputError(f"{path} is in the way of {wanted}: move it and set data.root to where it is")
