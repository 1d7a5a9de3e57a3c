"""The default's pretrained backbone: trained here to classify crops of digits, in seconds and without a network."""

import logging
from typing import Any

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn
from tqdm import tqdm

from ghm import config, devices
from ghm.data import digits
from ghm.errors import InputError
from ghm.params import Backbone, Params

HELD_OUT = 0.1  # share of the crops that measures the pretraining
_log = logging.getLogger(__name__)


def weights(parameters: Params) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights with torchvision's names, and a record of them."""
    state, accuracy = _pretrain(parameters)
    return state, {"crops": parameters.backbone.crops, "held_out_accuracy": round(accuracy, 4)}


class _Classifier(nn.Module):
    """The backbone with a linear layer on its pooled last stage; the layer is called `fc` as in torchvision."""

    mean: Tensor  # [3, 1, 1]
    std: Tensor  # [3, 1, 1]

    def __init__(self, parameters: Params, classes: int) -> None:
        super().__init__()
        self.backbone = MODELS.build({**config.backbone(parameters.model), "frozen_stages": -1, "norm_eval": False})
        for module in self.backbone.modules():
            if isinstance(module, nn.Conv2d):  # as mmdet does, without its page of log
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.fc = nn.Linear(self.backbone.feat_dim, classes)
        normal = config.preprocessor()
        self.register_buffer("mean", torch.tensor(normal["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(normal["std"]).view(3, 1, 1), persistent=False)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        features = self.backbone((image_B3HW.float() - self.mean) / self.std)
        return self.fc(features[-1].mean(dim=(2, 3)))


def _pretrain(parameters: Params) -> tuple[dict[str, Tensor], float]:
    """Classify digit crops; return the weights, and the accuracy on crops held out."""
    settings = parameters.backbone
    images, labels = digits.crops(parameters.digits, settings.crops, settings.crop_size)
    device = devices.choose()
    image_N3HW = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    label_N = torch.from_numpy(labels)
    held_out = max(1, int(HELD_OUT * len(labels)))
    with torch.random.fork_rng():
        torch.manual_seed(parameters.digits.seed)
        model: Any = _Classifier(parameters, int(label_N.max()) + 1)
        model.to(device, memory_format=torch.channels_last)
        _fit(model, image_N3HW[held_out:], label_N[held_out:], settings, device)
        with torch.no_grad():
            predictions = [model.eval()(part.to(device)).argmax(1).cpu() for part in image_N3HW[:held_out].split(512)]
    accuracy = float((torch.cat(predictions) == label_N[:held_out]).double().mean())
    _log.info("pretrained backbone: accuracy %.3f on %d held-out crops", accuracy, held_out)
    return {name.removeprefix("backbone."): value.cpu() for name, value in model.state_dict().items()}, accuracy


def _fit(model: _Classifier, image_N3HW: Tensor, label_N: Tensor, settings: Backbone, device: torch.device) -> None:
    steps = settings.epochs * (len(label_N) // settings.batch_size)
    if steps < 1:
        raise InputError(f"backbone.crops must hold at least one backbone.batch_size, got {settings.crops} crops")
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=settings.lr, total_steps=steps)
    model.train()
    with tqdm(total=steps, desc="pretraining the backbone", unit="step", mininterval=2) as progress:
        for _ in range(settings.epochs):
            for chosen in torch.randperm(len(label_N)).split(settings.batch_size):
                if len(chosen) < settings.batch_size:
                    continue
                logits = model(image_N3HW[chosen].to(device))
                loss = nn.functional.cross_entropy(logits, label_N[chosen].to(device), label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.update()
