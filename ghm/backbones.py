"""The pretrained backbone: trained here on digit crops, or torchvision's, or a file; always checked key by key.

Whatever its source, it ends as `weights/resnet<depth>-<first 8 hex digits of its SHA-256>.pth`, a plain state dict with
torchvision's names, and a record `weights/resnet<depth>.json`.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import mmdet.models
import torch
import torchvision
from mmdet.registry import MODELS
from torch import Tensor, nn
from tqdm import tqdm

from ghm import config, files
from ghm.data import digits
from ghm.errors import InputError
from ghm.params import Backbone, Params

FOLDER = Path("weights")
HELD_OUT = 0.1  # share of the crops that measures the pretraining
_log = logging.getLogger(__name__)


def prepare(params: Params) -> None:
    """Put the backbone that `params.model.pretrained` names into `weights/`.

    Raises:
        InputError: it is not there, is no state dict, or lacks a tensor that the model needs.
    """
    name = f"resnet{params.model.depth}"
    with files.whole_folder(FOLDER) as folder:
        path = folder / f"{name}.pth"
        record = {"pretrained": params.model.pretrained, "file": None, **_fetch(params, path)}
        if path.exists():
            record["keys"] = _check(params, path)
            record["sha256"] = files.digest(path)
            record["file"] = f"{name}-{record['sha256'][:8]}.pth"
            path.rename(folder / record["file"])
        files.write_json(folder / f"{name}.json", record)


def read_record(params: Params) -> dict[str, Any]:
    """The record that `prepare` wrote."""
    return json.loads((FOLDER / f"resnet{params.model.depth}.json").read_text(encoding="utf-8"))


def weights_path(params: Params) -> Path | None:
    """The file with the pretrained weights, None for a start from random weights."""
    file = read_record(params)["file"]
    return FOLDER / file if file else None


def _fetch(params: Params, path: Path) -> dict[str, Any]:
    """Write the weights to `path` and return what is worth knowing of their source."""
    source, model = params.model.pretrained, params.model
    if source is None:
        _log.warning("model.pretrained is null: training starts from random weights, which GHM-C suffers from")
        return {}
    if source == "digits":
        state, accuracy = _pretrain(params)
        torch.save(state, path)
        return {"crops": params.backbone.crops, "held_out_accuracy": round(accuracy, 4)}
    if source == "torchvision":
        if model.base_channels != 64:
            raise InputError(f"model.base_channels must be 64 with torchvision's weights, got {model.base_channels}")
        url = torchvision.models.get_model_weights(f"resnet{model.depth}")["IMAGENET1K_V1"].url
        hash_prefix = url.rsplit("-", 1)[1].removesuffix(".pth")
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=hash_prefix)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"{url} could not be fetched ({error}): fetch it elsewhere and set model.pretrained to the file"
            ) from None
        return {"url": url}
    local = Path(source).expanduser()
    if not local.is_file():
        raise InputError(f"model.pretrained must be digits, torchvision, null or an existing file, got {source!r}")
    shutil.copyfile(local, path)
    return {}


def _check(params: Params, path: Path) -> dict[str, Any]:
    """Compare the tensors in `path` with those of the backbone: all that it needs must be there."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"model.pretrained: {params.model.pretrained} is no plain state dict: {reason}") from None
    state = state.get("state_dict", state)
    wanted = MODELS.build(config.backbone(params.model)).state_dict()
    missing = sorted(wanted.keys() - state.keys() - {key for key in wanted if key.endswith("num_batches_tracked")})
    shapes = [key for key in wanted.keys() & state.keys() if wanted[key].shape != state[key].shape]
    if missing or shapes:
        raise InputError(
            f"model.pretrained: {params.model.pretrained} does not fit a ResNet-{params.model.depth} with "
            f"model.base_channels {params.model.base_channels}: {len(missing)} tensors missing, {len(shapes)} of "
            f"another shape, for example {(missing + sorted(shapes))[0]}"
        )
    return {"loaded": len(wanted) - len(missing), "unused": sorted(state.keys() - wanted.keys())}


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


def _pretrain(params: Params) -> tuple[dict[str, Tensor], float]:
    """Classify digit crops; return the weights with torchvision's names, and the accuracy on crops held out."""
    settings = params.backbone
    images, labels = digits.crops(params.digits, settings.crops, settings.crop_size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
