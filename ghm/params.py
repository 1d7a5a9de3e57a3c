"""`params.yaml` as frozen dataclasses, checked at the door.

Every public name here is a section of `params.yaml`. A wrong file stops with an `InputError` that names
the key, the value and what is allowed. This module imports neither torch nor mmdet.
"""

import dataclasses
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ghm.errors import InputError


@dataclass(frozen=True)
class Allowed:
    """A condition on a value, with the words that an error message uses for it."""

    words: str
    test: Callable[[Any], bool]


Positive = Annotated[float, Allowed("greater than 0", lambda v: v > 0)]
NotNegative = Annotated[float, Allowed("0 or greater", lambda v: v >= 0)]
Share = Annotated[float, Allowed("in [0, 1]", lambda v: 0 <= v <= 1)]
Momentum = Annotated[float, Allowed("in [0, 1)", lambda v: 0 <= v < 1)]
Count = Annotated[int, Allowed("1 or greater", lambda v: v >= 1)]
CountOrZero = Annotated[int, Allowed("0 or greater", lambda v: v >= 0)]
Seed = Annotated[int, Allowed("in [0, 2**31)", lambda v: 0 <= v < 2**31)]


@dataclass(frozen=True)
class Variant:
    """Which loss sections a variant trains with."""

    cls: str
    box: str


@dataclass(frozen=True)
class Focal:
    gamma: NotNegative
    alpha: Share
    loss_weight: NotNegative


@dataclass(frozen=True)
class SmoothL1:
    beta: Positive
    loss_weight: NotNegative


@dataclass(frozen=True)
class Harmonised:
    """What GHM-C and GHM-R have in common."""

    bins: Count
    momentum: Momentum
    loss_weight: NotNegative
    statistics: Literal["level", "batch"]
    sync: bool
    bias_correction: bool
    normalizer: Literal["valid_bins", "bins"]
    smoothing: NotNegative
    check: bool


@dataclass(frozen=True)
class Ghmc(Harmonised):
    pass


@dataclass(frozen=True)
class Ghmr(Harmonised):
    mu: Positive


@dataclass(frozen=True)
class OtherLoss:
    """A loss that mmdet registers: its `type` and its arguments, which mmdet checks."""

    type: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Data:
    name: Literal["digits", "coco"]
    root: str | None
    label_noise: Share

    def __post_init__(self) -> None:
        if self.name == "coco" and self.label_noise > 0:
            raise InputError(f"data.label_noise must be 0 with data.name: coco, got {self.label_noise}")


@dataclass(frozen=True)
class Digits:
    seed: Seed
    image_size: Annotated[int, Allowed("in [64, 160]", lambda v: 64 <= v <= 160)]
    train_images: Count
    val_images: Count
    test_images: Count


@dataclass(frozen=True)
class Anchors:
    base_scale: Positive
    scales_per_octave: Count
    ratios: tuple[Positive, ...]


GROUPS = 16  # of group normalisation in the head


@dataclass(frozen=True)
class Model:
    depth: Literal[18, 34, 50, 101]
    base_channels: Count
    pretrained: str | None
    frozen_stages: Annotated[int, Allowed("in [-1, 4]", lambda v: -1 <= v <= 4)]
    norm_eval: bool
    levels: Annotated[int, Allowed("in [3, 7]", lambda v: 3 <= v <= 7)]
    fpn_channels: Count
    head_channels: Count
    stacked_convs: CountOrZero
    head_norm: Literal["GN", "BN"] | None
    anchors: Anchors

    def __post_init__(self) -> None:
        if self.head_norm == "GN" and self.head_channels % GROUPS:
            raise InputError(
                f"model.head_channels must be a multiple of {GROUPS} with model.head_norm: GN, got {self.head_channels}"
            )
        if self.pretrained is None and self.frozen_stages >= 0:
            raise InputError(
                f"model.frozen_stages must be -1 when model.pretrained is null, got {self.frozen_stages}: "
                "random weights would stay random"
            )


@dataclass(frozen=True)
class Backbone:
    crops: Count
    crop_size: Annotated[int, Allowed("in [32, 128]", lambda v: 32 <= v <= 128)]
    epochs: Count
    batch_size: Count
    lr: Positive


@dataclass(frozen=True)
class Train:
    epochs: Count
    batch_size: Count
    optimizer: Literal["adamw", "sgd"]
    lr: Positive
    weight_decay: NotNegative
    schedule: Literal["cosine", "step"]
    lr_steps: tuple[Count, ...]
    warmup_iters: CountOrZero
    warmup_ratio: Annotated[float, Allowed("in (0, 1]", lambda v: 0 < v <= 1)]
    grad_clip: Positive | None
    image_scale: tuple[Count, ...]
    flip: Share
    filter_empty: bool
    workers: CountOrZero
    resume_from: str | None

    def __post_init__(self) -> None:
        if len(self.image_scale) != 2 or self.image_scale[0] < self.image_scale[1]:
            raise InputError(f"train.image_scale must be [long, short] in pixels, got {list(self.image_scale)}")
        if (self.schedule == "step") != bool(self.lr_steps):
            raise InputError(
                f"train.lr_steps must name epochs with train.schedule: step and be [] otherwise, "
                f"got {list(self.lr_steps)} with {self.schedule}"
            )


@dataclass(frozen=True)
class Evaluate:
    split: Literal["val", "test"]
    score_threshold: Share
    nms_iou: Share
    max_per_image: Count


Loss = Focal | SmoothL1 | Ghmc | Ghmr | OtherLoss


@dataclass(frozen=True)
class Params:
    """All of `params.yaml`. `losses` holds every loss section, the built-in ones and those with a `type`."""

    variants: dict[str, Variant]
    seeds: tuple[Seed, ...]
    data: Data
    digits: Digits
    model: Model
    backbone: Backbone
    train: Train
    evaluate: Evaluate
    losses: dict[str, Loss]

    def __post_init__(self) -> None:
        for key, values in (("variants", self.variants), ("seeds", self.seeds)):
            if not values:
                raise InputError(f"{key} must hold at least one entry, got none")
        if len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"seeds must differ from each other, got {list(self.seeds)}")
        for name, variant in self.variants.items():
            for role in ("cls", "box"):
                section = getattr(variant, role)
                if section not in self.losses:
                    raise InputError(
                        f"variants.{name}.{role} must be a loss section ({', '.join(self.losses)}), got {section!r}"
                    )
        if self.data.name == "coco" and self.evaluate.split == "test":
            raise InputError("evaluate.split must be val with data.name: coco, got 'test': its labels are not public")

    def variant(self, name: str) -> Variant:
        """Return the variant `name`.

        Raises:
            InputError: there is no such variant.
        """
        if name not in self.variants:
            raise InputError(f"the variant must be one of {', '.join(self.variants)}, got {name!r}")
        return self.variants[name]


LOSS_SECTIONS: dict[str, type] = {"focal": Focal, "smooth_l1": SmoothL1, "ghmc": Ghmc, "ghmr": Ghmr}


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and check a parameter file.

    Raises:
        InputError: the file is missing, is no YAML mapping, or a key or value in it is wrong.
    """
    try:
        raw = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run from the repository's root, or restore it with git") from None
    except (YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 1})" if where else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise InputError(f"{path} is not valid YAML{line}: {problem}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path} must hold sections like `train:`, got {type(raw).__name__}")
    return parse(raw)


def parse(raw: Mapping[str, Any]) -> Params:
    """Check the content of a parameter file and turn it into `Params`.

    Raises:
        InputError: an unknown or missing key, a wrong type, or a value out of range.
    """
    fixed = {field.name for field in dataclasses.fields(Params)} - {"losses"}
    losses: dict[str, Loss] = {}
    sections = {}
    for key, value in raw.items():
        if key in fixed:
            sections[key] = value
        elif key in LOSS_SECTIONS:
            losses[key] = _build(LOSS_SECTIONS[key], value, key)
        elif isinstance(value, Mapping) and isinstance(value.get("type"), str):
            arguments = {name: argument for name, argument in value.items() if name != "type"}
            losses[key] = OtherLoss(value["type"], arguments)
        else:
            known = ", ".join(sorted(fixed | LOSS_SECTIONS.keys()))
            raise InputError(f"{key} is not a known section ({known}) nor a loss section with a `type`, got {value!r}")
    hints = get_type_hints(Params, include_extras=True)
    for key in sorted(fixed - sections.keys()):
        raise InputError(f"{key} is missing from the parameters")
    return Params(losses=losses, **{key: _convert(hints[key], value, key) for key, value in sections.items()})


def _build(cls: type, value: object, key: str) -> Any:
    """Make the dataclass `cls` from a mapping; `key` is its place in the file."""
    hints = get_type_hints(cls, include_extras=True)
    if not isinstance(value, Mapping):
        raise InputError(f"{key} must be a section with {', '.join(hints)}, got {value!r}")
    for name in value:
        if name not in hints:
            raise InputError(f"{key}.{name} is not a known key, got {value[name]!r}; allowed: {', '.join(hints)}")
    for name in hints:
        if name not in value:
            raise InputError(f"{key}.{name} is missing; {key} needs {', '.join(hints)}")
    return cls(**{name: _convert(hints[name], item, f"{key}.{name}") for name, item in value.items()})


def _convert(hint: Any, value: object, key: str) -> Any:
    """Check `value` against a type hint and return it, with lists as tuples and whole numbers as floats."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        converted = _convert(arguments[0], value, key)
        for allowed in hint.__metadata__:
            if not allowed.test(converted):
                raise InputError(f"{key} must be {allowed.words}, got {value!r}")
        return converted
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        rest = [argument for argument in arguments if argument is not type(None)]
        return _convert(rest[0], value, key)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise InputError(f"{key} must be one of {', '.join(map(str, arguments))}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise InputError(f"{key} must be a list, got {value!r}")
        return tuple(_convert(arguments[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"{key} must be a section, got {value!r}")
        return {str(name): _convert(arguments[1], item, f"{key}.{name}") for name, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, key)  # type: ignore[arg-type]
    return _scalar(hint, value, key)


def _scalar(hint: type, value: object, key: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        words = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}[hint]
        raise InputError(f"{key} must be {words}, got {value!r}")
    if isinstance(value, float) and value - value != 0:
        raise InputError(f"{key} must be a finite number, got {value!r}")
    return value
