"""Load third-party checkpoints safely and map their tensors onto our model.

A checkpoint is a pickle, and a pickle is a program. PyTorch's restricted reader (`weights_only=True`) runs only what it
knows to be harmless; every other name in the file is given to it as a class that does nothing. So a file of mmdet's
model zoo, which holds logs and settings beside its tensors, is read without any of their code.
"""

import io
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
    return {name: value.detach().clone() for name, value in content.items()}


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
