"""Data sets: made, found or fetched, checked, described by a manifest, linked into `data/`."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ghm import files
from ghm.data import content, manifest
from ghm.data.links import check_place, link
from ghm.data.sets import Located, locate, memory, store
from ghm.errors import InputError
from ghm.params import Params
from ghm.words import count

__all__ = ["ensure", "manifest_path", "prepare", "read_manifest", "store"]

FOLDER = Path("data")
_log = logging.getLogger(__name__)


def manifest_path(params: Params) -> Path:
    """Where the manifest of the data set lies, relative to the repository's root."""
    return FOLDER / f"{params.data.name}.json"


def prepare(params: Params) -> None:
    """Get the data set, link it to `data/<name>`, check it, write its manifest `data/<name>.json`.

    A manifest that was written for these very data is left as it is: then only sizes and times are looked at.

    Raises:
        InputError: the data set cannot be had, is malformed, or has errors.
    """
    if params.data.root is None and params.data.source is None:  # say so before 20 GB are fetched
        place = FOLDER / params.data.name
        if not (place.is_symlink() and store() in place.readlink().parents):
            check_place(place, store(), wanted=f"a link into {store()}")
    located = locate(params)
    _link(params, located)
    path, known, checks = manifest_path(params), memory(), _checks(params, located)
    if path.is_file() and known.is_known(checks, files.digest(path)) and _difference(params, located) is None:
        images = sum(split["images"] for split in read_manifest(params)["splits"].values())
        _log.info("%s: nothing has changed, %s", FOLDER / params.data.name, count(images, "image"))
        return
    described = manifest.describe(
        params.data.name,
        located.root,
        located.splits,
        known,
        check_images=params.machine.check_images,
        max_bad_images=params.data.max_bad_images,
    )
    files.write_json(path, described)
    known.remember(checks, files.digest(path))


def ensure(params: Params) -> None:
    """Require that the data are those that the manifest describes, by content, and link them.

    A stage calls this before it reads images, and a training once more at its end.

    Raises:
        InputError: annotations or images have changed.
    """
    located = locate(params)
    _link(params, located)
    changed = _difference(params, located)
    if changed:
        raise InputError(
            f"the data are not those that {manifest_path(params)} describes: {changed}. Run `dvc repro`, which checks "
            "them and runs what depends on them, or restore the files"
        )


def read_manifest(params: Params) -> dict[str, Any]:
    """The manifest that `prepare` wrote.

    Raises:
        InputError: it is not there.
    """
    path = manifest_path(params)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"{path} is missing: run `dvc repro data`") from None


def _difference(params: Params, located: Located) -> str | None:
    """What is otherwise than the manifest says, in words; None where nothing is."""
    known = memory()
    for name, described in read_manifest(params)["splits"].items():
        split = located.splits.get(name)
        found = content.difference(known, located.root, described, split.source if split else None)
        if found:
            return found
    return None


def _checks(params: Params, located: Located) -> str:
    """All that a manifest follows from, but for the data themselves."""
    code = {path.name: files.digest(path) for path in sorted(Path(__file__).parent.glob("*.py"))}
    splits = {name: asdict(split) for name, split in located.splits.items()}
    checks = [params.data.name, splits, params.machine.check_images, params.data.max_bad_images, code]
    return json.dumps(checks, sort_keys=True, default=str)


def _link(params: Params, located: Located) -> None:
    for name, target in {params.data.name: located.root, **located.links}.items():
        link(target, FOLDER / name, replaceable=store())
