"""Load third-party checkpoints safely and map their tensors onto our model.

A checkpoint is a pickle, and a pickle is a program. PyTorch's restricted reader (`weights_only=True`) runs only what it
knows to be harmless; every other name in the file is given to it as a class that does nothing. So a file of mmdet's
model zoo, which holds logs and settings beside its tensors, is read without any of their code. A `.safetensors` file
holds no program: it is numbers after a table of what they are.
"""

import io
import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ghm.errors import InputError
from ghm.words import count

CONTAINERS = ("state_dict", "model")  # keys under which a checkpoint holds its tensors
SHOWN = 80  # characters of a name from a file in a message
# What exporters write: end of the name -> how such a file begins, and what it is.
EXPORTED = {
    ".onnx": (rb"\x08[\x01-\x1f][\x12:]", "an ONNX file"),
    ".h5": (rb"\x89HDF", "an HDF5 file of Keras"),
    ".tflite": (rb"(?s)....TFL3", "a file of TensorFlow Lite"),
}
DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
}
# Hugging Face's names of the parts of a ResNet, and torchvision's, which are also timm's and mmdet's.
RESNET: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"embedder\.embedder\.convolution\.", "conv1."),
    (r"embedder\.embedder\.normalization\.", "bn1."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.", lambda found: f"layer{int(found[1]) + 1}.{found[2]}."),
    (r"(?<=\d\.)layer\.(\d+)\.convolution\.", lambda found: f"conv{int(found[1]) + 1}."),
    (r"(?<=\d\.)layer\.(\d+)\.normalization\.", lambda found: f"bn{int(found[1]) + 1}."),
    (r"(?<=\d\.)shortcut\.convolution\.", "downsample.0."),
    (r"(?<=\d\.)shortcut\.normalization\.", "downsample.1."),
)


@dataclass(frozen=True)
class Report:
    """What came of the names that a model wants, in the model's words but for `unexpected`."""

    prefix: str  # in front of the model's names in the file
    loaded: int
    missing: list[str]
    unexpected: list[str]  # the file's names of what the model has no place for
    other_shape: list[str]

    def __str__(self) -> str:
        """One line for the log."""
        return (
            f"{count(self.loaded, 'tensor')} loaded, {len(self.missing)} missing, {len(self.other_shape)} of another "
            f"shape, {len(self.unexpected)} unexpected ({', '.join(self.unexpected[:2]) or 'none'})"
        )

    def require(self, words: str, spare: Callable[[str], bool] = lambda _name: False) -> None:
        """Refuse to go on without a tensor that the model needs.

        Args:
            words: what does not fit what, for the message.
            spare: whether the model can do without a tensor of this name. Counters of batches are always spare.

        Raises:
            InputError: a tensor is missing or of another shape.
        """
        missing = [name for name in self.missing if not (name.endswith("num_batches_tracked") or spare(name))]
        other_shape = [name for name in self.other_shape if not spare(name)]
        if missing or other_shape:
            raise InputError(
                f"{words}: {count(len(missing), 'tensor')} missing, {len(other_shape)} of another shape, "
                f"for example {(missing + other_shape)[0]}"
            )


def load(path: Path) -> Any:
    """Everything in a checkpoint, on the CPU, with an empty object for each that PyTorch does not know to be harmless.

    Nothing of the file is executed.

    Raises:
        InputError: the file is no checkpoint.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    for ending, (beginning, what) in EXPORTED.items():
        if path.suffix.lower() == ending or re.match(beginning, head):
            raise _exported(path, what)
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return _read_safetensors(path)
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # the older format, which PyTorch cannot list; or no checkpoint, and `torch.load` says why
        unknown = []
    # Not one class for all: a message names what is in the way.
    inert: list[Any] = [(type(name, (_Inert,), {}), name) for name in unknown]
    with warnings.catch_warnings(), torch.serialization.safe_globals(inert):
        warnings.simplefilter("ignore")  # of old formats; what cannot be read is an error
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a file may hold, it is not what was asked for
            if "TorchScript" in str(error):
                raise _exported(path, "a TorchScript program") from None
            raise InputError(f"{path} is no checkpoint that can be read safely: {reason(error)}") from None


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a checkpoint, plain or below a key `state_dict` or `model`, onto the CPU.

    Returns:
        Name -> tensor, dense copies that share no memory. Whatever else is in the file is left there.

    Raises:
        InputError: the file is no checkpoint, or what it holds is no dict of tensors. Nothing of it is executed.
    """
    content = load(path)
    for key in (*CONTAINERS, *CONTAINERS):  # one may be in the other
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        what = "nothing" if content == {} else f"an object of type {type(content).__name__[:SHOWN]}"
        raise InputError(f"{path} must hold a dict of tensors, got {what}")
    for name, value in content.items():
        if not isinstance(name, str) or not _is_dense(value):
            what = f"{type(value).__name__[:SHOWN]} under {str(name)[:SHOWN]!r}"
            raise InputError(f"{path} must hold a dict of tensors, got {what}")
    return {_renamed(name): value.detach().clone() for name, value in content.items()}


def _exported(path: Path, what: str) -> InputError:
    return InputError(
        f"{path} is {what}, made to run a finished model, with weights that are merged, renamed or bound to its code: "
        "give the checkpoint that it was exported from (.pth, .pt, .bin or .safetensors)"
    )


def _renamed(name: str) -> str:
    """A name of a tensor with torchvision's names for the parts of a ResNet instead of Hugging Face's."""
    for pattern, new in RESNET:
        name = re.sub(pattern, new, name)
    return name


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file: 8 bytes with the length of a table in JSON, the table, and their numbers.

    Source: github.com/huggingface/safetensors, "Format".

    Raises:
        InputError: the table cannot be read, or says of a tensor what its numbers are not.
    """
    content = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(content[:8], "little")
    tensors, ended = {}, 0
    try:
        table = json.loads(content[8:begin] if begin <= len(content) else b"")
        table.pop("__metadata__", None)
        for name, entry in sorted(table.items(), key=lambda item: item[1]["data_offsets"]):
            dtype, shape, (start, end) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
            # Each number belongs to one tensor: a small file cannot become large.
            if not (ended <= start <= end <= len(content) - begin and all(side >= 0 for side in shape)):
                raise ValueError(f"the numbers of {name[:SHOWN]!r} are not where they should be")
            values, ended = content[begin + start : begin + end], end  # a copy, for numbers may begin anywhere
            if len(values) != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{name[:SHOWN]!r} has {len(values)} bytes, which is not its shape {shape}")
            flat = torch.frombuffer(values, dtype=dtype) if values else torch.empty(0, dtype=dtype)
            tensors[name] = flat.view(shape)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        why = f"{error} is missing or not known" if isinstance(error, KeyError) else error
        raise InputError(f"{path} is no whole .safetensors file: {why}") from None
    return tensors


def write(content: Any, path: Path) -> None:
    """Write what `torch.load` reads. Unlike `torch.save`, a full disk is an OSError that says so."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(buffer.getbuffer())


def reason(error: Exception) -> str:
    """Why `torch.load` refused a file, in one line, without its advice to trust the file."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not re.match(r"Weights only load failed|Please file|\(\d\)", line)]
    text = said[0] if said else type(error).__name__
    return text.removeprefix("WeightsUnpickler error: ").partition(" Please use")[0].rstrip(".")


def select(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Report]:
    """Give tensors the names of a model.

    A file may hold the model as a part of another, so its names may begin with `module.`, `backbone.` or anything
    else; the beginning that finds most of the model's names is taken, among equals the one that comes first.

    Args:
        wanted: the state dict of the model; of its tensors only the shapes are used.

    Returns:
        The tensors whose name and shape the model knows, under its names, and what came of the others.
    """
    prefixes: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in wanted:
                prefixes["".join(f"{part}." for part in parts[:start])] += 1
    prefix = prefixes.most_common(1)[0][0] if prefixes else ""
    there = {name: state[prefix + name] for name in wanted if prefix + name in state}
    fitting = {name: value for name, value in there.items() if value.shape == wanted[name].shape}
    return fitting, Report(
        prefix=prefix,
        loaded=len(fitting),
        missing=sorted(wanted.keys() - there.keys()),
        unexpected=sorted(state.keys() - {prefix + name for name in there}),
        other_shape=sorted(there.keys() - fitting.keys()),
    )


class _Inert:
    """Stands for an object of a file: takes whatever arguments and state the file has for it, and keeps nothing."""

    def __new__(cls, *_args: object, **_kwargs: object) -> "_Inert":
        return super().__new__(cls)

    def __setstate__(self, _state: object) -> None:
        pass


def _is_dense(value: object) -> bool:
    """Whether this is a tensor with a number of its own in the file for each of its elements."""
    return (
        type(value) in (Tensor, nn.Parameter)
        and isinstance(value, Tensor)
        and (value.layout, value.device.type) == (torch.strided, "cpu")
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )
