"""`python -m ghm.check`: check `params.yaml`, its losses, transforms and optimiser; `--schema` writes its JSON schema.

The losses of this package need torch alone; others, and transforms, are built by mmdet.
"""

import argparse
import inspect
import json
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import TypeAdapter
from torch import nn, optim

from ghm import augment, files, params, sections
from ghm import losses as package
from ghm.cli import run
from ghm.errors import InputError
from ghm.params import Loss, Params, Role, Train

SCHEMA = Path("params.schema.json")


def whole(parameters: Params) -> None:
    """Check what `params` leaves to others: the losses of all variants, transforms, and options of the optimiser.

    Raises:
        InputError: names all that is wrong, a line each.
    """
    sentences: dict[str, None] = {}  # each once, though variants share losses
    for check in (
        *(partial(build, parameters, *each) for each in product(parameters.variants, get_args(Role))),
        partial(optimizer, parameters.train),
        partial(augment.configs, parameters.train),
    ):
        try:
            check()
        except InputError as error:
            sentences |= dict.fromkeys(str(error).splitlines())
    if sentences:
        raise InputError("\n".join(sentences))


def build(parameters: Params, variant: str, role: Role) -> nn.Module:
    """Build the loss of a variant.

    Raises:
        InputError: there is no such loss, its arguments are wrong, or it is for the other role.
    """
    loss, section = parameters.loss(variant, role), getattr(parameters.variants[variant], role)
    if loss.type.startswith("ghm."):
        module = _ours(loss, partial(parameters.loss_key, variant, role))
    else:
        module = _registered(loss, section)
    # Every loss on logits says whether it takes one logit per class; no loss on boxes does.
    if hasattr(module, "use_sigmoid") != (role == "cls"):
        other = "box" if role == "cls" else "cls"
        raise InputError(f"variants.{variant}.{role} must be a loss for {role}, got {section!r}, which is for {other}")
    return module


# Arguments of an optimiser that we set. SGD's dampening spares the first step, for which PyTorch must know that it is.
_SET = ("params", "lr", "weight_decay", "fused", "foreach", "capturable", "differentiable", "dampening")


def optimizer(train: Train) -> dict[str, Any]:
    """The class of the optimiser and its arguments but for learning rate and weight decay.

    Raises:
        InputError: `train.optimizer_options` has an argument that PyTorch's optimiser does not take.
    """
    cls: Any
    cls, usual = (optim.AdamW, {}) if train.optimizer == "adamw" else (optim.SGD, {"momentum": 0.9})
    arguments = usual | train.optimizer_options | {"fused": True}  # one that the device can tell to leave out a step
    known = [name for name in inspect.signature(cls).parameters if name not in _SET]
    unknown = [name for name in train.optimizer_options if name not in known]
    if unknown:
        key = "train.optimizer_options"
        raise InputError(
            "\n".join(sections.unknown(f"{key}.{name}", train.optimizer_options[name], known) for name in unknown)
        )
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    try:
        cls([weight], lr=1e-3, **arguments).step()
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"train.optimizer_options must suit {cls.__name__}, got {arguments}: {reason}") from None
    return {"type": cls.__name__, **arguments}


def _ours(loss: Loss, key: Callable[[str], str]) -> nn.Module:
    """Build a loss of this package. `key`: where `params.yaml` has an argument."""
    name = loss.type.removeprefix("ghm.")
    if name not in package.__all__:
        known = ", ".join(f"ghm.{name}" for name in package.__all__)
        raise InputError(f"{key('type')} must be one of {known}, or of mmdet's losses, got {loss.type!r}")
    cls = getattr(package, name)
    known = inspect.signature(cls).parameters
    unknown = [name for name in loss.arguments if name not in known]
    if unknown:
        raise InputError("\n".join(sections.unknown(key(name), loss.arguments[name], known) for name in unknown))
    try:
        return cls(**loss.arguments)
    except ValueError as error:  # its message begins with the argument
        argument, _, rest = str(error).partition(" ")
        raise InputError(f"{key(argument)} {rest}") from None


def _registered(loss: Loss, section: str) -> nn.Module:
    import mmdet.models  # noqa: F401  (registers its losses)

    from ghm.registry import MODELS

    try:
        return MODELS.build({**loss.arguments, "type": loss.type, "_scope_": "mmdet"})
    except (KeyError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{section} is no loss that mmdet can build from type {loss.type!r}: {reason}") from None


def schema() -> dict[str, Any]:
    """The JSON schema of `params.yaml`, by which editors complete and check it."""
    content = TypeAdapter(Params).json_schema()
    loss, variant = content["$defs"]["Loss"], content["$defs"]["Variant"]
    # In the file, loss sections, their arguments and overrides lie beside what has a name.
    for section, name in ((content, "losses"), (loss, "arguments"), (variant, "overrides")):
        del section["properties"][name]
    content["additionalProperties"] = {"$ref": "#/$defs/Loss"}
    loss["additionalProperties"] = True
    variant["additionalProperties"] = {"type": "object"}
    return content


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ghm.check", description=__doc__)
    parser.add_argument("--schema", action="store_true", help=f"write {SCHEMA}")
    if parser.parse_args().schema:
        files.write_text(SCHEMA, json.dumps(schema(), indent=1) + "\n")
    else:
        whole(params.load())


if __name__ == "__main__":
    run(main)
