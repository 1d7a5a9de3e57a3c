"""Laws of pretrained weights: every tensor that the model needs, under its checksum, the source recorded."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from mmdet.registry import MODELS
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from ghm import backbones, config, files, params
from ghm.errors import InputError
from tests.data.conftest import serving


@pytest.fixture
def parameters(workspace: Path) -> params.Params:
    """The tiny parameters, in a folder of their own."""
    return params.load()


def changed(parameters: params.Params, **values: Any) -> params.Params:
    return replace(parameters, model=replace(parameters.model, **values))


def narrow(parameters: params.Params) -> dict[str, Tensor]:
    """A state dict that fits the tiny parameters, and the rest of a classifier."""
    return {**MODELS.build(config.backbone(parameters.model)).state_dict(), "fc.bias": torch.zeros(10)}


def from_file(parameters: params.Params, content: Any, name: str = "own.pth") -> params.Params:
    torch.save(content, name)
    return changed(parameters, pretrained=name)


def refused(parameters: params.Params, words: str) -> None:
    before = sorted(path.name for path in Path("weights").iterdir())
    with pytest.raises(InputError, match=words) as caught:
        backbones.prepare(parameters)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in Path("weights").iterdir()) == before


def randomised(name: str) -> Any:
    """A network of torchvision in evaluation mode; its batch norms have random statistics, or they would do nothing."""
    torch.manual_seed(0)
    network: Any = getattr(torchvision.models, name)(weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return network.eval()


@torch.no_grad()
def stages(network: Any, image: Tensor) -> list[Tensor]:
    value = network.maxpool(network.relu(network.bn1(network.conv1(image))))
    found = []
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        value = layer(value)
        found.append(value)
    return found


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvisions_weights_load_whole_and_give_torchvisions_features(parameters: params.Params, name: str):
    network = randomised(name)
    torch.save(network.state_dict(), "saved.pth")
    checksum = files.digest(Path("saved.pth"))
    source = Path("saved.pth").rename(f"{name}-{checksum[:8]}.pth")
    parameters = changed(parameters, backbone=name, base_channels=64, pretrained=str(source))
    backbones.prepare(parameters)
    record, path = backbones.read_record(parameters), backbones.weights_path(parameters)
    assert path is not None and path.name == f"{name}-{files.digest(path)[:8]}.pth"
    assert record["keys"]["unexpected"] == ["fc.bias", "fc.weight"]
    assert (record["source"], record["source_sha256"]) == (str(source), checksum)
    backbone = MODELS.build(config.backbone(parameters.model))
    loaded = backbone.load_state_dict(torch.load(path, weights_only=True))
    assert loaded.missing_keys == loaded.unexpected_keys == []
    image = torch.randn(2, 3, 65, 96)
    backbone.eval()
    with torch.no_grad():
        features = backbone(image)
    for own, theirs in zip(features, stages(network, image), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", config.BACKBONES)
def test_every_backbone_has_torchvisions_names_and_shapes_and_feeds_the_neck(name: str):
    loaded = changed(params.load(Path(__file__).parents[1] / "params.yaml"), backbone=name, base_channels=64)
    with torch.device("meta"):
        backbone = MODELS.build(config.backbone(loaded.model))
        own = backbone.state_dict()
        channels = [feature.shape[1] for feature in backbone(torch.zeros(1, 3, 64, 64))]
        if name == "resnext101_32x4d":
            theirs = ResNet(Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=4).state_dict()
        else:
            theirs = getattr(torchvision.models, name)(weights=None).state_dict()
    shapes = {name: tuple(value.shape) for name, value in theirs.items() if not name.startswith("fc.")}
    assert {name: tuple(value.shape) for name, value in own.items()} == shapes
    assert config._detector(loaded, "fl_sl1", 10, None)["neck"]["in_channels"] == channels


def test_no_pretraining_is_recorded_as_such(parameters: params.Params):
    parameters = changed(parameters, pretrained=None)
    backbones.prepare(parameters)
    assert backbones.weights_path(parameters) is backbones.detector_path(parameters) is None
    assert [path.name for path in Path("weights").iterdir()] == ["resnet18.json"]


def test_the_same_source_gives_the_same_bytes_whatever_surrounds_its_tensors(parameters: params.Params):
    state = narrow(parameters)
    files_made = []
    for content in (state, {"state_dict": {f"module.backbone.{name}": value for name, value in state.items()}}):
        backbones.prepare(from_file(parameters, content))
        files_made.append(backbones.read_record(parameters)["file"])
    assert files_made[0] == files_made[1]


def test_a_file_that_does_not_fit_is_refused_and_the_weights_stay(parameters: params.Params):
    state = narrow(parameters)
    state["conv1.weight"] = state["conv1.weight"][:1]
    del state["layer2.0.conv1.weight"]
    refused(from_file(parameters, state), "1 tensor missing, 1 of another shape, for example layer2.0.conv1.weight")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"pretrained": "none.pth"}, r"digits, torchvision, openmmlab, null, a URL or an existing file, got 'none"),
        ({"load_from": "none.pth"}, r"model\.load_from must be null, a URL or an existing file, got 'none\.pth'"),
        ({"pretrained": "ftp://host/own-01234567.pth"}, "a URL or an existing file, got 'ftp:"),
        (
            {"pretrained": "https://host/own.pth?x=-01234567.pth"},
            "no checksum in its name .*: set model.pretrained_sha",
        ),
        ({"load_from": "https://host/own.pth"}, "no checksum in its name .*: fetch it and set model.load_from"),
        ({"pretrained": "openmmlab"}, "openmmlab has weights for resnext101_32x4d, resnext101_64x4d, not for resnet18"),
        ({"pretrained": "torchvision"}, "model.base_channels must be 64 with .*torchvision, got 16"),
    ],
)
def test_a_source_that_is_none_is_refused(parameters: params.Params, values: dict[str, Any], words: str):
    refused(changed(parameters, **values), words)


def test_another_checksum_than_said_is_refused_with_both(parameters: params.Params):
    parameters = from_file(parameters, narrow(parameters), "own-01234567.pth")
    actual = files.digest(Path("own-01234567.pth"))
    for checksum, words in ((None, "its name says 0"), ("89abcdef", "model.pretrained_sha256 says 8")):
        refused(changed(parameters, pretrained_sha256=checksum), f"has the SHA-256 {actual}, and {words}")
    backbones.prepare(changed(parameters, pretrained_sha256=actual[:9]))
    assert backbones.read_record(parameters)["source_sha256"] == actual


def test_published_files_have_their_checksum_in_their_address():
    host = {"torchvision": "https://download.pytorch.org/models/", "openmmlab": "https://download.openmmlab.com/"}
    for source, known in backbones.SOURCES.items():
        for name, address in known.items():
            assert address.startswith(host[source])
            assert re.search(rf"/{name}-[0-9a-f]{{8}}\.pth$", address)


@pytest.mark.parametrize("name", ["own.pth", "own-{}.pth"])
def test_a_fetched_file_stays_in_the_store_for_the_next_run(
    parameters: params.Params, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("GHM_DATA_ROOT", str(tmp_path / "store"))
    torch.save(narrow(parameters), "saved.pth")
    checksum = files.digest(Path("saved.pth"))
    known = None if "{}" in name else checksum[:8]
    with serving(Path("saved.pth").read_bytes()) as server:
        address = server.url(f"/{name.format(checksum[:8])}")
        parameters = changed(parameters, pretrained=address, pretrained_sha256=known)
        backbones.prepare(parameters)
    backbones.prepare(parameters)  # without a server
    record = backbones.read_record(parameters)
    assert (record["source"], record["source_sha256"]) == (address, checksum)
    kept = [path for path in (tmp_path / "store" / "weights").iterdir() if not path.name.startswith(".")]
    assert [files.digest(path) for path in kept] == [checksum]
