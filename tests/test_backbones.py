"""Laws of pretrained backbones: every tensor that the model needs, nothing executed, the source recorded."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from ghm import backbones, params
from ghm.errors import InputError


@pytest.fixture
def given(workspace: Path) -> params.Params:
    """The tiny parameters, in a folder of their own, for torchvision's ResNet-18."""
    loaded = params.load()
    return replace(loaded, model=replace(loaded.model, base_channels=64))


def from_file(given: params.Params, content: Any) -> params.Params:
    torch.save(content, "own.pth")
    return replace(given, model=replace(given.model, pretrained="own.pth"))


def test_torchvisions_weights_load_whole_and_the_classifier_is_left_over(given: params.Params):
    state = torchvision.models.resnet18(weights=None).state_dict()
    given = from_file(given, state)
    backbones.prepare(given)
    record = backbones.read_record(given)
    path = backbones.weights_path(given)
    assert path is not None
    assert path.name == f"resnet18-{record['sha256'][:8]}.pth"
    assert record["keys"] == {"loaded": len(state) - 2, "unused": ["fc.bias", "fc.weight"]}


def test_what_was_pretrained_here_has_the_same_format(workspace: Path):
    record = backbones.read_record(params.load())
    assert record["keys"]["unused"] == ["fc.bias", "fc.weight"]
    assert 0 <= record["held_out_accuracy"] <= 1
    assert [path.name for path in sorted(Path("weights").iterdir())] == sorted([record["file"], "resnet18.json"])


def test_no_pretraining_is_recorded_as_such(given: params.Params):
    given = replace(given, model=replace(given.model, pretrained=None))
    backbones.prepare(given)
    assert backbones.weights_path(given) is None
    assert [path.name for path in Path("weights").iterdir()] == ["resnet18.json"]


def missing(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if name != "layer2.0.conv1.weight"}


def reshaped(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**state, "conv1.weight": state["conv1.weight"][:1]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (missing, "1 tensors missing, 0 of another shape, for example layer2.0.conv1.weight"),
        (reshaped, "0 tensors missing, 1 of another shape, for example conv1.weight"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_the_old_weights_stay(given: params.Params, change: Any, words: str):
    before = sorted(path.name for path in Path("weights").iterdir())
    with pytest.raises(InputError, match=words):
        backbones.prepare(from_file(given, change(torchvision.models.resnet18(weights=None).state_dict())))
    assert sorted(path.name for path in Path("weights").iterdir()) == before


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("executed",))


def test_a_pickle_is_never_executed(given: params.Params):
    with pytest.raises(InputError, match="is no plain state dict"):
        backbones.prepare(from_file(given, {"conv1.weight": Hostile()}))
    assert not Path("executed").exists()


def test_a_source_that_is_not_there_is_named(given: params.Params, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match=r"digits, torchvision, null or an existing file, got 'none\.pth'"):
        backbones.prepare(replace(given, model=replace(given.model, pretrained="none.pth")))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="could not be fetched .*set model.pretrained to the file"):
        backbones.prepare(replace(given, model=replace(given.model, pretrained="torchvision")))
    narrow = replace(given.model, base_channels=16, pretrained="torchvision")
    with pytest.raises(InputError, match="model.base_channels must be 64"):
        backbones.prepare(replace(given, model=narrow))
