"""Laws of other formats of weights, and other names: read as they are, or refused with the reason."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torchvision
from mmdet.registry import MODELS
from torch import Tensor, nn

from ghm import checkpoints, config, params
from tests.conftest import ROOT
from tests.test_checkpoints import STATE, refused, same


def safetensors(tensors: dict[str, Tensor], **changes: Any) -> bytes:
    """A file as Hugging Face's package writes it; `changes` are of the entry of the first tensor."""
    names = {dtype: name for name, dtype in checkpoints.DTYPES.items()}
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    numbers = b""
    for name, value in tensors.items():
        own = value.contiguous().flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b""
        offsets = [len(numbers), len(numbers) + len(own)]
        table[name] = {"dtype": names[value.dtype], "shape": list(value.shape), "data_offsets": offsets}
        numbers += own
    table[next(iter(tensors))] |= changes
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + numbers


@pytest.mark.parametrize("name", ["own.safetensors", "weights-1234.pth"])
def test_safetensors_are_read_by_their_content_whatever_their_name(tmp_path: Path, name: str):
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(-99, 99, (3, 5), generator=generator)
    state = {str(dtype): numbers.to(dtype) for dtype in checkpoints.DTYPES.values()}
    state |= {"scalar": torch.tensor(3), "empty": torch.zeros(0, 4), "odd": torch.ones(3, dtype=torch.uint8)}
    (tmp_path / name).write_bytes(safetensors(state | {"last": torch.rand(2)}))
    read = checkpoints.read_state(tmp_path / name)
    assert same({name: value for name, value in read.items() if name != "last"}, state)
    assert {name: value.dtype for name, value in state.items()} == {each: read[each].dtype for each in state}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_offsets": [0, 10**9]}, "'conv.weight' are not where they should be"),
        ({"data_offsets": [-4, 20]}, "'conv.weight' are not where they should be"),
        ({"data_offsets": [8, 32]}, "are not where they should be"),  # in the numbers of another
        ({"shape": [10**6, 10**6]}, "'conv.weight' has 24 bytes, which is not its shape [1000000, 1000000]"),
        ({"shape": [-2, -3]}, "are not where they should be"),
        ({"dtype": "F8_E4M3"}, "'F8_E4M3' is missing or not known"),
        ({"shape": "large"}, "is no whole .safetensors file"),
        ({"data_offsets": None}, "is no whole .safetensors file"),
    ],
)
def test_a_table_that_is_not_that_of_its_numbers_is_refused(tmp_path: Path, changes: dict[str, Any], words: str):
    (tmp_path / "own.safetensors").write_bytes(safetensors(STATE, **changes))
    assert words in refused(tmp_path / "own.safetensors")


def test_every_beginning_of_a_file_of_safetensors_is_refused(tmp_path: Path):
    whole = safetensors(STATE)
    for size in range(len(whole)):
        (tmp_path / "own.safetensors").write_bytes(whole[:size])
        refused(tmp_path / "own.safetensors")
    (tmp_path / "own.safetensors").write_bytes((2**63).to_bytes(8, "little") + b"[" * 10**5)
    refused(tmp_path / "own.safetensors")


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("beginning", ["resnet.", "", "model."])
def test_the_names_of_hugging_face_are_those_of_torchvision(tmp_path: Path, name: str, beginning: str):
    torch.manual_seed(0)
    theirs: Any = getattr(torchvision.models, name)().eval()
    parts = {"conv1": "embedder.embedder.convolution", "bn1": "embedder.embedder.normalization", "fc": "classifier.1"}
    for stage, layer in itertools.product(range(4), range(6)):
        own, other = f"layer{stage + 1}.{layer}", f"encoder.stages.{stage}.layers.{layer}"
        for part in range(3):
            parts[f"{own}.conv{part + 1}"] = f"{other}.layer.{part}.convolution"
            parts[f"{own}.bn{part + 1}"] = f"{other}.layer.{part}.normalization"
        parts[f"{own}.downsample.0"] = f"{other}.shortcut.convolution"
        parts[f"{own}.downsample.1"] = f"{other}.shortcut.normalization"
    state = theirs.state_dict()
    renamed = {}
    for each, value in state.items():
        part, _, kind = each.rpartition(".")
        renamed[f"{beginning}{parts[part]}.{kind}"] = value
    (tmp_path / "model.safetensors").write_bytes(safetensors(renamed))
    model = replace(params.load(ROOT / "params.yaml").model, backbone=name, base_channels=64)
    ours: Any = MODELS.build(config.backbone(model))
    ours.eval()
    fitting, said = checkpoints.select(checkpoints.read_state(tmp_path / "model.safetensors"), ours.state_dict())
    assert (said.missing, said.other_shape, said.prefix) == ([], [], beginning)
    assert sorted(said.unexpected) == [f"{beginning}classifier.1.bias", f"{beginning}classifier.1.weight"]
    ours.load_state_dict(fitting)
    image = torch.rand(1, 3, 64, 64)
    expected = nn.Sequential(*list(theirs.children())[:-2])(image)  # all but the mean over places and the classes
    torch.testing.assert_close(ours(image)[3], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_what_was_exported_to_run_a_model_is_refused_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    graph = onnx.helper.make_graph([], "empty", [], [])
    onnx.save(onnx.helper.make_model(graph, producer_name="pytorch"), "model.onnx")
    shutil.copy("model.onnx", "onnx.pth")
    torch.jit.script(nn.Linear(2, 2)).save("script.pt")
    Path("keras.pth").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99))
    Path("lite.pth").write_bytes(b"\x1c\0\0\0TFL3" + bytes(99))
    kinds = {"model.onnx": "ONNX", "onnx.pth": "ONNX", "script.pt": "TorchScript"}
    for name, kind in {**kinds, "keras.pth": "HDF5", "lite.pth": "Lite"}.items():
        assert kind in (said := refused(Path(name)))
        assert said.endswith("give the checkpoint that it was exported from (.pth, .pt, .bin or .safetensors)")


# A whole detector to start from.
