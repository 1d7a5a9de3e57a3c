"""The detections of a split in the form that COCO's evaluation server takes."""

import json
import logging
import zipfile
from pathlib import Path

from ghm import data
from ghm.errors import InputError
from ghm.evaluation.run import detect
from ghm.params import Params
from ghm.words import count

SERVER_NAMES = {"test-dev": "test-dev2017"}  # a split -> the server's word for it
PIXEL_DIGITS = 2  # the server asks for tenths of a pixel at most, to keep the file small
SCORE_DIGITS = 6
_log = logging.getLogger(__name__)


def write(params: Params, variant: str, seed: int, checkpoint: Path, split: str, out: Path) -> None:
    """Detect on a split of the present data set and write `out/detections_<split>_<variant>_results.json` and `.zip`.

    Args:
        checkpoint: of `variant`, which fits the present parameters.

    Raises:
        InputError: the data set has no such split or is not there, the model does not fit, or images cannot be read.
    """
    params.variant(variant)
    known = data.read_manifest(params)["splits"]
    if split not in known:
        can_have = split == "test-dev" and params.data.name == "coco"
        remedy = ": set data.test2017 to true and run `dvc repro data`" * can_have
        raise InputError(f"--split must be one of {', '.join(known)} of {params.data.name}, got {split!r}{remedy}")
    data.ensure(params)
    detections, left_out = detect(params, variant, seed, checkpoint, split)
    for row in detections:
        row["bbox"] = [round(side, PIXEL_DIGITS) for side in row["bbox"]]
        row["score"] = round(row["score"], SCORE_DIGITS)
    text = json.dumps(detections, separators=(",", ":"), allow_nan=False)
    result = out / f"detections_{SERVER_NAMES.get(split, split)}_{variant}_results.json"
    out.mkdir(parents=True, exist_ok=True)
    result.write_text(text, encoding="utf-8")
    with zipfile.ZipFile(result.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(result.name, text)
    _log.info("%s on %s in %s", count(len(detections), "detection"), split, result.with_suffix(".zip"))
    if left_out:
        _log.warning("%s no detections, for no file could be read", count(len(left_out), "image has|images have"))
