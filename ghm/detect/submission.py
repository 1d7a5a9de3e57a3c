"""The detections of a split in the form that COCO's evaluation server takes."""

import json
import logging
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from ghm import data
from ghm.errors import InputError
from ghm.evaluation.run import detect
from ghm.params import Params
from ghm.words import count

SERVER_NAMES = {"test-dev": "test-dev2017"}  # a split -> the server's word for it
PIXEL_DIGITS = 2  # the server asks for tenths of a pixel at most, to keep the file small
SCORE_DIGITS = 6
_log = logging.getLogger(__name__)


def write(params: Params, variant: str, seed: int, model: Path, split: str, out: Path) -> Path:
    """Detect on a split of the present data set and write `out/detections_<split>_<variant>_results.json` and `.zip`.

    Args:
        model: a model of `variant` that fits the present parameters.

    Returns:
        The archive, to be uploaded as it is.

    Raises:
        InputError: the data set has no such split or is not there, the model does not fit, or images cannot be read.
    """
    params.variant(variant)
    _require_split(params, split)
    out.mkdir(parents=True, exist_ok=True)
    name = f"detections_{SERVER_NAMES.get(split, split)}_{variant}_results"
    with tempfile.TemporaryDirectory(dir=out, prefix=".detect-") as folder:
        path = Path(folder) / "found" / "detections.json"
        path.parent.mkdir()
        left_out = _detect(params, variant, seed, model, path, split)
        found = [_plain(each) for each in json.loads(path.read_text(encoding="utf-8"))]
        result, archive = Path(folder) / f"{name}.json", Path(folder) / f"{name}.zip"
        result.write_text(json.dumps(found, separators=(",", ":"), allow_nan=False), encoding="utf-8")
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            file.write(result, result.name)
        for whole in (result, archive):
            whole.replace(out / whole.name)
    _log.info("%s on %s in %s", count(len(found), "detection"), split, out / archive.name)
    if left_out:
        _log.warning("%s no detections, for want of a file that can be read", count(left_out, "image has|images have"))
    return out / archive.name


def _require_split(params: Params, split: str) -> None:
    if not data.manifest_path(params).is_file():
        raise InputError(f"{data.manifest_path(params)} is missing: run `dvc repro data`")
    data.ensure(params)
    known = data.read_manifest(params)["splits"]
    if split not in known:
        can_have = split == "test-dev" and params.data.name == "coco"
        remedy = ": set data.test2017 to true and run `dvc repro data`" * can_have
        raise InputError(f"--split must be one of {', '.join(known)} of {params.data.name}, got {split!r}{remedy}")


def _detect(params: Params, variant: str, seed: int, model: Path, path: Path, split: str) -> int:
    try:
        return len(detect(params, variant, seed, model, path, split))
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        raise InputError(f"{model} does not fit params.yaml: run `dvc repro train@{variant}`") from error


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "image_id": found["image_id"],
        "category_id": found["category_id"],
        "bbox": [round(float(side), PIXEL_DIGITS) for side in found["bbox"]],
        "score": round(float(found["score"]), SCORE_DIGITS),
    }
