"""The weights that training starts from: of a backbone, trained here on digit crops or fetched, or of a whole detector.

Whatever their source, they are checked key by key and end as `weights/<backbone>-<first 8 hex digits of its
SHA-256>.pth`, a plain state dict with torchvision's names, or as `weights/detector-<8 digits>.pth`; the record
`weights/<backbone>.json` says where they are from.
"""

import json
import logging
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mmdet.models
import torch
import torchvision
from mmdet.registry import MODELS
from torch import Tensor, nn
from tqdm import tqdm

from ghm import checkpoints, config, data, devices, files, fingerprint, runs
from ghm.data import digits, download
from ghm.data.download import Remote
from ghm.errors import InputError
from ghm.params import Backbone, Params

FOLDER = Path("weights")
HELD_OUT = 0.1  # share of the crops that measures the pretraining
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
# Files of the package `ghm` that weights which are trained here depend on.
SOURCES_HERE = ("backbones.py", "config.py", "data/digits.py", "data/digits_render.py")
_CHECKSUM = re.compile(r"-([0-9a-f]{8,64})\.pth$")
_log = logging.getLogger(__name__)


def prepare(params: Params) -> None:
    """Put the weights that `params.model.load_from` or else `params.model.pretrained` names into `weights/`.

    Raises:
        InputError: they cannot be fetched, are not those of the checksum, are no state dict, or lack a tensor that
            the backbone needs. What the detector needs is checked when its training starts.
    """
    model = params.model
    record: dict[str, Any] = {"pretrained": None if model.load_from else model.pretrained, "file": None}
    with files.room_for(FOLDER), files.whole_folder(FOLDER) as folder:
        if model.load_from:
            path, source = _obtained(model.load_from, "model.load_from", None)
            record["detector"] = {**source, **_written(checkpoints.read_state(path), folder, "detector")}
            _log.info("model.load_from: training starts from a whole detector, model.pretrained is not used")
        elif model.pretrained is None:
            _log.warning("model.pretrained is null: training starts from random weights, which GHM-C suffers from")
        else:
            state, source = _pretrained(params)
            state, keys = _fitting(params, state)
            record |= {**source, "keys": keys, **_written(state, folder, model.backbone)}
        files.write_json(folder / f"{model.backbone}.json", record)


def read_record(params: Params) -> dict[str, Any]:
    """The record that `prepare` wrote."""
    return json.loads((FOLDER / f"{params.model.backbone}.json").read_text(encoding="utf-8"))


def weights_path(params: Params) -> Path | None:
    """The file with the pretrained weights, None for a start from random weights or from a whole detector."""
    file = read_record(params)["file"]
    return FOLDER / file if file else None


def detector_path(params: Params) -> Path | None:
    """The file with the weights of a whole detector to start from, None where there is none."""
    detector = read_record(params).get("detector")
    return FOLDER / detector["file"] if detector else None


def _written(state: dict[str, Tensor], folder: Path, name: str) -> dict[str, str]:
    """Write a state dict as `<name>-<sha8>.pth`; return its name and checksum."""
    path = folder / f"{name}.pth"
    checkpoints.write(state, path)
    checksum = files.digest(path)
    path.rename(folder / f"{name}-{checksum[:8]}.pth")
    return {"file": f"{name}-{checksum[:8]}.pth", "sha256": checksum}


def _pretrained(params: Params) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors that `model.pretrained` names, and what is worth knowing of their source."""
    model = params.model
    assert model.pretrained is not None
    if model.pretrained == "digits":
        return _pretrained_here(params)
    value = model.pretrained
    if value in SOURCES:
        value = _published(value, model.backbone)
        if model.base_channels != 64:
            raise InputError(
                f"model.base_channels must be 64 with model.pretrained: {model.pretrained}, got {model.base_channels}"
            )
    path, source = _obtained(value, "model.pretrained", model.pretrained_sha256)
    return checkpoints.read_state(path), source


def _published(source: str, backbone: str) -> str:
    """The address of the weights of `backbone` from a source of `SOURCES`."""
    if backbone not in SOURCES[source]:
        others = "".join(f"; {name} has them" for name, known in SOURCES.items() if backbone in known)
        raise InputError(
            f"model.pretrained: {source} has weights for {', '.join(SOURCES[source])}, not for {backbone}{others}"
        )
    return SOURCES[source][backbone]


def _obtained(value: str, key: str, checksum: str | None) -> tuple[Path, dict[str, str]]:
    """Find or fetch a checkpoint.

    Args:
        value: a URL or a file.
        key: the parameter that names it.
        checksum: the first digits of its SHA-256, None to take those in its name.

    Returns:
        Where it lies, and for the record where it is from and its checksum.

    Raises:
        InputError: it is not there, cannot be fetched, or is not that of the checksum; or nothing says what the
            checksum of a file to fetch must be.
    """
    is_url = bool(re.match(r"https?://.", value))
    name = re.split("[?#]", value)[0].rpartition("/")[2] if is_url else Path(value).name
    in_name = _CHECKSUM.search(name)
    expected = checksum or (in_name[1] if in_name else None)
    if is_url:
        if expected is None:
            known = f"set {key}_sha256" if key == "model.pretrained" else f"fetch it and set {key} to the file"
            raise InputError(f"{key}: {value} has no checksum in its name (-<8 or more hex digits>.pth): {known}")
        # Other files may have the same name, and a name may be none for a file.
        kept = name if in_name and re.fullmatch(r"[\w.-]+", name) else f"weights-{expected}.pth"
        remote = Remote(kept, (value,), f"sha256:{expected}")
        remedy = f"fetch it elsewhere and set {key} to the file"
        path = download.fetch(remote, data.store() / "weights", remedy=remedy)
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


def _fitting(params: Params, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of the backbone among those of a file, all that it needs, and a report for the record."""
    model = params.model
    with torch.device("meta"):
        wanted = MODELS.build(config.backbone(model)).state_dict()
    state, report = checkpoints.select(state, wanted)
    report.require(
        f"model.pretrained: {model.pretrained} does not fit model.backbone: {model.backbone} with "
        f"model.base_channels: {model.base_channels}"
    )
    _log.info("%s: %s", model.backbone, report)
    return state, asdict(report)


class _Classifier(nn.Module):
    """The backbone with a linear layer on its pooled last stage; the layer is called `fc` as in torchvision."""

    mean: Tensor  # [3, 1, 1]
    std: Tensor  # [3, 1, 1]

    def __init__(self, params: Params, classes: int) -> None:
        super().__init__()
        self.backbone = MODELS.build({**config.backbone(params.model), "frozen_stages": -1, "norm_eval": False})
        for module in self.backbone.modules():
            if isinstance(module, nn.Conv2d):  # as mmdet does, without its page of log
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.fc = nn.Linear(self.backbone.feat_dim, classes)
        normal = config.preprocessor()
        self.register_buffer("mean", torch.tensor(normal["mean"]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(normal["std"]).view(3, 1, 1))

    def forward(self, image_B3HW: Tensor) -> Tensor:
        features = self.backbone((image_B3HW.float() - self.mean) / self.std)
        return self.fc(features[-1].mean(dim=(2, 3)))


def _pretrained_here(params: Params) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights trained on digit crops, kept in `.state` under all that shapes them."""
    model, digit = params.model, params.digits
    parts = {
        "backbone": asdict(params.backbone),
        "model": [model.backbone, model.base_channels],
        "digits": [digit.seed, digit.image_size],
        "code": fingerprint.checksums(SOURCES_HERE),
        "libraries": fingerprint.libraries(),
    }
    folder = runs.state_folder() / f"backbone-{fingerprint.key(parts)}"
    if not folder.exists():
        with files.whole_folder(folder) as new:
            state, accuracy = _pretrain(params)
            checkpoints.write(state, new / "weights.pth")
            record = {"crops": params.backbone.crops, "held_out_accuracy": round(accuracy, 4)}
            files.write_json(new / "record.json", record)
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    return checkpoints.read_state(folder / "weights.pth"), record


def _pretrain(params: Params) -> tuple[dict[str, Tensor], float]:
    """Classify digit crops; return the weights with torchvision's names, and the accuracy on crops held out."""
    settings = params.backbone
    images, labels = digits.crops(params.digits, settings.crops, settings.crop_size)
    device = devices.choose()
    image_N3HW = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    label_N = torch.from_numpy(labels)
    held_out = max(1, int(HELD_OUT * len(labels)))
    with torch.random.fork_rng():
        torch.manual_seed(params.digits.seed)
        model: Any = _Classifier(params, int(label_N.max()) + 1)
        model.to(device, memory_format=torch.channels_last)
        _fit(model, image_N3HW[held_out:], label_N[held_out:], settings, device)
        with torch.no_grad():
            predictions = [model.eval()(part.to(device)).argmax(1).cpu() for part in image_N3HW[:held_out].split(512)]
    accuracy = float((torch.cat(predictions) == label_N[:held_out]).double().mean())
    _log.info("pretrained backbone: accuracy %.3f on %d held-out crops", accuracy, held_out)
    state = {name.removeprefix("backbone."): value.cpu() for name, value in model.state_dict().items()}
    return {name: value for name, value in state.items() if name not in ("mean", "std")}, accuracy


def _fit(model: _Classifier, image_N3HW: Tensor, label_N: Tensor, settings: Backbone, device: torch.device) -> None:
    steps = settings.epochs * (len(label_N) // settings.batch_size)
    if steps < 1:
        raise InputError(f"backbone.crops must hold at least one backbone.batch_size, got {settings.crops} crops")
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=settings.lr, total_steps=steps)
    model.train()
    with tqdm(total=steps, desc="pretraining the backbone", unit="step", mininterval=2) as progress:
        for _ in range(settings.epochs):
            order = torch.randperm(len(label_N))
            for chosen in order.split(settings.batch_size):
                if len(chosen) < settings.batch_size:
                    continue
                logits = model(image_N3HW[chosen].to(device))
                loss = nn.functional.cross_entropy(logits, label_N[chosen].to(device), label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.update()


# mmdet registers its models when they are imported.
assert mmdet.models.ResNet
