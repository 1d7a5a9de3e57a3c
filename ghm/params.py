"""`params.yaml` as frozen dataclasses, checked at the door.

Every public name here is a section of `params.yaml`. A wrong file stops with an `InputError` that names
the key, the value and what is allowed. This module imports neither torch nor mmdet.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, get_type_hints

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ghm.errors import InputError
from ghm.typed import Allowed, build, convert

Positive = Annotated[float, Allowed("greater than 0", lambda v: v > 0)]
NotNegative = Annotated[float, Allowed("0 or greater", lambda v: v >= 0)]
Share = Annotated[float, Allowed("in [0, 1]", lambda v: 0 <= v <= 1)]
Momentum = Annotated[float, Allowed("in [0, 1)", lambda v: 0 <= v < 1)]
Count = Annotated[int, Allowed("1 or greater", lambda v: v >= 1)]
CountOrZero = Annotated[int, Allowed("0 or greater", lambda v: v >= 0)]
Inside = Annotated[
    str,
    Allowed("a relative path without ..", lambda v: not PurePath(v).is_absolute() and ".." not in PurePath(v).parts),
]
Checksum = Annotated[str, Allowed("8 to 64 hex digits", lambda v: bool(re.fullmatch(r"[0-9a-f]{8,64}", v)))]
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
    name: Literal["digits", "bccd", "voc", "coco", "custom"]
    root: str | None
    source: str | None
    test2017: bool
    label_noise: Share
    max_bad_images: CountOrZero

    def __post_init__(self) -> None:
        if self.name != "digits" and self.label_noise > 0:
            raise InputError(f"data.label_noise must be 0 with data.name: {self.name}, got {self.label_noise}")
        if self.root and self.source:
            raise InputError(f"data.root and data.source cannot both be set, got {self.root!r} and {self.source!r}")
        if self.test2017 and self.name != "coco":
            raise InputError(f"data.test2017 must be false with data.name: {self.name}, got true")


@dataclass(frozen=True)
class CustomSplit:
    """A COCO-format file and the folder of its images, relative to the root of the data set."""

    annotations: Inside
    images: Inside


@dataclass(frozen=True)
class Custom:
    """The user's own data set."""

    train: CustomSplit
    val: CustomSplit
    test: CustomSplit | None


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
    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnext101_32x4d", "resnext101_64x4d"]
    base_channels: Count
    pretrained: str | None
    pretrained_sha256: Checksum | None
    load_from: str | None
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
        if self.base_channels != 64 and self.backbone.startswith("resnext"):
            raise InputError(
                f"model.base_channels must be 64 with model.backbone: {self.backbone}, got {self.base_channels}"
            )
        if self.pretrained_sha256 and self.pretrained in (None, "digits"):
            raise InputError(
                f"model.pretrained_sha256 must be null with model.pretrained: {self.pretrained or 'null'}, "
                f"got {self.pretrained_sha256!r}"
            )
        if self.pretrained is None and self.load_from is None and self.frozen_stages >= 0:
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
    epochs: CountOrZero
    batch_size: Count
    optimizer: Literal["adamw", "sgd"]
    lr: Positive
    base_batch_size: Count | None
    weight_decay: NotNegative
    schedule: Literal["cosine", "step"]
    lr_steps: tuple[Count, ...]
    warmup_iters: CountOrZero
    warmup_ratio: Annotated[float, Allowed("in (0, 1]", lambda v: 0 < v <= 1)]
    grad_clip: Positive | None
    image_scale: tuple[Count, ...]
    flip: Share
    filter_empty: bool
    val_images: CountOrZero
    resume_from: str | None
    precision: Literal["fp32", "bf16", "fp16"]
    channels_last: bool
    compile: bool
    tf32: bool
    ema_momentum: Annotated[float, Allowed("in (0, 1)", lambda v: 0 < v < 1)] | None

    @property
    def learning_rate(self) -> float:
        """`lr`, in proportion to the images a step where `base_batch_size` says for how many it is meant.

        Source: the linear scaling rule of Goyal et al., arXiv 1706.02677.
        """
        return self.lr * self.batch_size / self.base_batch_size if self.base_batch_size else self.lr

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


@dataclass(frozen=True)
class Machine:
    """How the work is done here. No stage depends on it."""

    workers: CountOrZero
    launcher: Literal["none", "pytorch"]
    checkpoint_minutes: Positive
    check_images: Literal["none", "sample", "all"]
    trackers: tuple[Literal["tensorboard"], ...]


Loss = Focal | SmoothL1 | Ghmc | Ghmr | OtherLoss


@dataclass(frozen=True)
class Params:
    """All of `params.yaml`. `losses` holds every loss section, the built-in ones and those with a `type`."""

    variants: dict[str, Variant]
    seeds: tuple[Seed, ...]
    data: Data
    digits: Digits
    custom: Custom
    model: Model
    backbone: Backbone
    train: Train
    evaluate: Evaluate
    machine: Machine
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
        if self.train.epochs == 0 and self.model.load_from is None:
            raise InputError("train.epochs must be 1 or greater when model.load_from is null, got 0")
        if self.train.resume_from and self.model.load_from:
            raise InputError(
                f"train.resume_from must be null when model.load_from is set, got {self.train.resume_from!r}: "
                "a training starts from one checkpoint"
            )
        splits = self.splits()
        if self.evaluate.split not in splits:
            known = " or ".join(splits)
            raise InputError(
                f"evaluate.split must be {known} with data.name: {self.data.name}, got {self.evaluate.split!r}"
            )

    def splits(self) -> tuple[str, ...]:
        """The splits with public labels that are not trained on."""
        if self.data.name == "custom":
            return ("val",) if self.custom.test is None else ("val", "test")
        return {"coco": ("val",), "voc": ("test",)}.get(self.data.name, ("val", "test"))

    def variant(self, name: str) -> Variant:
        """Return the variant `name`.

        Raises:
            InputError: there is no such variant.
        """
        if name not in self.variants:
            raise InputError(f"the variant must be one of {', '.join(self.variants)}, got {name!r}")
        return self.variants[name]


# Keys of earlier versions -> where they went.
MOVED = {
    "data.check_images": "machine.check_images",
    "train.checkpoint_minutes": "machine.checkpoint_minutes",
    "train.launcher": "machine.launcher",
    "train.trackers": "machine.trackers",
    "train.workers": "machine.workers",
}
LOSS_SECTIONS: dict[str, type] = {"focal": Focal, "smooth_l1": SmoothL1, "ghmc": Ghmc, "ghmr": Ghmr}


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and check a parameter file.

    Raises:
        InputError: the file is missing, is no YAML mapping, or a key or value in it is wrong.
    """
    return parse(read(path))


def read(path: Path) -> dict[str, Any]:
    """The content of a YAML file with sections, unchecked.

    Raises:
        InputError: the file is missing or is no YAML mapping.
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
    return raw


def parse(raw: Mapping[str, Any]) -> Params:
    """Check the content of a parameter file and turn it into `Params`.

    Raises:
        InputError: an unknown or missing key, a wrong type, or a value out of range.
    """
    _refuse_moved(raw)
    fixed = {field.name for field in dataclasses.fields(Params)} - {"losses"}
    losses: dict[str, Loss] = {}
    sections = {}
    for key, value in raw.items():
        if key in fixed:
            sections[key] = value
        elif key in LOSS_SECTIONS:
            losses[key] = build(LOSS_SECTIONS[key], value, key)
        elif isinstance(value, Mapping) and isinstance(value.get("type"), str):
            arguments = {name: argument for name, argument in value.items() if name != "type"}
            losses[key] = OtherLoss(value["type"], arguments)
        else:
            known = ", ".join(sorted(fixed | LOSS_SECTIONS.keys()))
            raise InputError(f"{key} is not a known section ({known}) nor a loss section with a `type`, got {value!r}")
    hints = get_type_hints(Params, include_extras=True)
    for key in sorted(fixed - sections.keys()):
        raise InputError(f"{key} is missing from the parameters")
    return Params(losses=losses, **{key: convert(hints[key], value, key) for key, value in sections.items()})


def _refuse_moved(raw: Mapping[str, Any]) -> None:
    for old, new in MOVED.items():
        section, _, name = old.partition(".")
        content = raw.get(section)
        if isinstance(content, Mapping) and name in content:
            raise InputError(f"{old} is not a known key, got {content[name]!r}: {old} is now {new}")
