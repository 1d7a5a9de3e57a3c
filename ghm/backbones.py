"""The weights that training starts from: of a backbone, pretrained here or fetched, or of a whole detector.

They end as `weights/<backbone>-<first 8 hex digits of its SHA-256>.pth`, a plain state dict with torchvision's names,
or as `weights/detector-<8 digits>.pth`; the record `weights/<backbone>.json` says where they are from.
"""

import json
import logging
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torchvision
from mmdet.registry import MODELS
from torch import Tensor

from ghm import checkpoints, config, data, files
from ghm.data import download
from ghm.data.download import Remote
from ghm.errors import InputError
from ghm.params import Params

FOLDER = Path("weights")
_OPENMMLAB = "https://download.openmmlab.com/pretrain/third_party"
# Published ImageNet weights: source -> backbone -> address. The digits in a file's name begin its SHA-256.
SOURCES: dict[str, dict[str, str]] = {
    "torchvision": {
        name: torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url
        for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnext101_64x4d")
    },
    "openmmlab": {  # what the reference code starts from
        "resnext101_32x4d": f"{_OPENMMLAB}/resnext101_32x4d-a5af3160.pth",
        "resnext101_64x4d": f"{_OPENMMLAB}/resnext101_64x4d-ee2c6f71.pth",
    },
}
_CHECKSUM = re.compile(r"-([0-9a-f]{8,64})\.(?:pth|safetensors)$")
_log = logging.getLogger(__name__)


def prepare(parameters: Params) -> None:
    """Put the weights that `model.load_from` or else `model.pretrained` names into `weights/`.

    Raises:
        InputError: they cannot be fetched, are not those of the checksum, are no state dict, or lack a tensor that
            the backbone needs. What the detector needs is checked when its training starts.
    """
    model = parameters.model
    record: dict[str, Any] = {"pretrained": None if model.load_from else model.pretrained, "file": None}
    with files.room_for(FOLDER), files.whole_folder(FOLDER) as folder:
        if model.load_from:
            path, source = _obtain(model.load_from, "model.load_from", None)
            record["detector"] = {**source, **_write(checkpoints.read_state(path), folder, "detector")}
            _log.info("model.load_from: training starts from a whole detector, model.pretrained is not used")
        elif model.pretrained is None:
            _log.warning("model.pretrained is null: training starts from random weights, which GHM-C suffers from")
        else:
            state, source = _pretrained(parameters)
            with torch.device("meta"):
                wanted = MODELS.build(config.backbone(model)).state_dict()
            state, report = checkpoints.select(state, wanted)
            report.require(
                f"model.pretrained: {model.pretrained} does not fit model.backbone: {model.backbone} with "
                f"model.base_channels: {model.base_channels}"
            )
            _log.info("%s: %s", model.backbone, report)
            record |= {**source, "keys": asdict(report), **_write(state, folder, model.backbone)}
        files.write_json(folder / f"{model.backbone}.json", record)


def read_record(parameters: Params) -> dict[str, Any]:
    """The record that `prepare` wrote."""
    return json.loads((FOLDER / f"{parameters.model.backbone}.json").read_text(encoding="utf-8"))


def weights_path(parameters: Params) -> Path | None:
    """The file with the pretrained weights, None for a start from random weights or from a whole detector."""
    file = read_record(parameters)["file"]
    return FOLDER / file if file else None


def detector_path(parameters: Params) -> Path | None:
    """The file with the weights of a whole detector to start from, None where there is none."""
    detector = read_record(parameters).get("detector")
    return FOLDER / detector["file"] if detector else None


def _write(state: dict[str, Tensor], folder: Path, name: str) -> dict[str, str]:
    """Write a state dict as `<name>-<sha8>.pth`; return its name and checksum."""
    path = folder / f"{name}.pth"
    checkpoints.write(state, path)
    checksum = files.digest(path)
    return {"file": path.rename(folder / f"{name}-{checksum[:8]}.pth").name, "sha256": checksum}


def _pretrained(parameters: Params) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors that `model.pretrained` names, and what is worth knowing of their source."""
    model, source = parameters.model, parameters.model.pretrained
    assert source is not None
    if source == "digits":
        from ghm import pretraining  # not before: published weights do not wait for scikit-learn

        return pretraining.weights(parameters)
    if source in SOURCES:
        known = ", ".join(SOURCES[source])
        if model.backbone not in SOURCES[source]:
            raise InputError(f"model.pretrained: {source} has weights for {known}, not for {model.backbone}")
        if model.base_channels != 64:
            raise InputError(
                f"model.base_channels must be 64 with model.pretrained: {source}, got {model.base_channels}"
            )
        source = SOURCES[source][model.backbone]
    path, record = _obtain(source, "model.pretrained", model.pretrained_sha256)
    return checkpoints.read_state(path), record


def _obtain(value: str, key: str, checksum: str | None) -> tuple[Path, dict[str, str]]:
    """Find or fetch the checkpoint that the parameter `key` names by the URL or file `value`.

    Args:
        checksum: the first digits of its SHA-256, None to take those in its name.

    Returns:
        Where it lies, and for the record where it is from and its checksum.

    Raises:
        InputError: it cannot be had, is not that of the checksum, or nothing says what that of a fetched file must be.
    """
    is_url = bool(re.match(r"https?://.", value))
    name = re.split("[?#]", value)[0].rpartition("/")[2] if is_url else Path(value).name
    in_name = _CHECKSUM.search(name)
    expected = checksum or (in_name[1] if in_name else None)
    if is_url:
        if expected is None:
            remedy = f"set {key}_sha256" if key == "model.pretrained" else f"fetch it and set {key} to the file"
            raise InputError(f"{key}: {value} has no checksum in its name (-<8 or more hex digits>.pth): {remedy}")
        # Other files may have the same name, and a name may be none for a file.
        kept = name if in_name and re.fullmatch(r"[\w.-]+", name) else f"weights-{expected}.pth"
        remote = Remote(kept, (value,), f"sha256:{expected}")
        path = download.fetch(remote, data.store() / "weights", remedy=f"fetch it elsewhere and set {key} to the file")
    else:
        path = Path(value).expanduser()
        if not path.is_file():
            kinds = "digits, torchvision, openmmlab, null, " if key == "model.pretrained" else "null, "
            raise InputError(f"{key} must be {kinds}a URL or an existing file, got {value!r}")
    actual = files.digest(path)
    if expected and not actual.startswith(expected):
        where = f"{key}_sha256" if checksum else "its name"
        raise InputError(f"{key}: {path} has the SHA-256 {actual}, and {where} says {expected}")
    return path, {"source": value, "source_sha256": actual}
