"""`params.yaml` as frozen dataclasses, checked at the door.

Every class is a section of `params.yaml`. A wrong file stops with an `InputError` that names all that is wrong: the
keys, their values and what is allowed. The arguments of losses are checked by `ghm.check`: this module imports neither
torch nor mmdet.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StrictBool

from ghm import sections
from ghm.errors import InputError
from ghm.sections import Count, CountOrZero, NotNegative, Positive, Section, Seed, Share


def _inside(value: str) -> str:
    if PurePath(value).is_absolute() or ".." in PurePath(value).parts:
        raise ValueError("a relative path without ..")
    return value


Inside = Annotated[str, AfterValidator(_inside)]
Role = Literal["cls", "box"]


@dataclass(frozen=True)
class Loss(Section):
    """A loss section: a registered loss, and its arguments, which are the loss's own matter."""

    type: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Variant(Section):
    """The loss sections that a variant trains with, and the arguments that it gives them instead of theirs."""

    cls: str
    box: str
    # section -> arguments
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Data(Section):
    name: Literal["digits", "bccd", "voc", "coco", "custom"]
    root: str | None
    source: str | None
    label_noise: Share
    box_noise: Share
    max_bad_images: CountOrZero

    def broken(self) -> Iterator[str]:
        for key, share in (("label_noise", self.label_noise), ("box_noise", self.box_noise)):
            if share > 0 and self.name not in ("digits", "custom"):
                yield f"data.{key} must be 0 with data.name: {self.name}, got {share}"
            if share > 0 and self.name == "digits" and self.root:
                yield f"data.{key} must be 0 with digits that lie in data.root ({self.root}), got {share}"
        if self.root and self.source:
            yield f"data.root and data.source cannot both be set, got {self.root!r} and {self.source!r}"


@dataclass(frozen=True)
class CustomSplit(Section):
    """A COCO-format file and the folder of its images, relative to the root of the data set."""

    annotations: Inside
    images: Inside


Part = Annotated[float, Field(strict=True, gt=0, lt=1)]


@dataclass(frozen=True)
class Custom(Section):
    """The user's own data set: a folder whose layout is recognised, or pairs of COCO files and image folders."""

    train: CustomSplit | None
    val: CustomSplit | None
    test: CustomSplit | None
    layout: Literal["coco", "voc", "yolo"] | None
    val_share: Part
    test_share: Part
    split_seed: Seed

    def broken(self) -> Iterator[str]:
        if self.val_share + self.test_share >= 1:
            shares = f"{self.val_share} + {self.test_share}"
            yield f"custom.val_share and custom.test_share must leave images to train on, got {shares}"
        if bool(self.train) != bool(self.val) or (self.test and not self.train):
            yield "custom.train and custom.val must both be set, custom.test with them, or all three be null"
        if self.train and self.layout:
            yield f"custom.layout must be null where custom.train names COCO files, got {self.layout!r}"


@dataclass(frozen=True)
class Digits(Section):
    seed: Seed
    image_size: Annotated[int, Field(strict=True, ge=64, le=160)]
    train_images: Count
    val_images: Count
    test_images: Count


@dataclass(frozen=True)
class Anchors(Section):
    base_scale: Positive
    scales_per_octave: Count
    ratios: tuple[Positive, ...]


GROUPS = 16  # of group normalisation in the head


@dataclass(frozen=True)
class Model(Section):
    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnext101_32x4d", "resnext101_64x4d"]
    base_channels: Count
    pretrained: str | None
    pretrained_sha256: Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")] | None
    load_from: str | None
    frozen_stages: Annotated[int, Field(strict=True, ge=-1, le=4)]
    norm_eval: StrictBool
    levels: Annotated[int, Field(strict=True, ge=3, le=7)]
    fpn_channels: Count
    head_channels: Count
    stacked_convs: CountOrZero
    head_norm: Literal["GN", "BN"] | None
    anchors: Anchors

    def broken(self) -> Iterator[str]:
        if self.head_norm == "GN" and (channels := self.head_channels) % GROUPS:
            yield f"model.head_channels must be a multiple of {GROUPS} with model.head_norm: GN, got {channels}"
        if self.base_channels != 64 and self.backbone.startswith("resnext"):
            yield f"model.base_channels must be 64 with model.backbone: {self.backbone}, got {self.base_channels}"
        if self.pretrained_sha256 and self.pretrained in (None, "digits"):
            yield f"model.pretrained_sha256 must be null without a file to check, got {self.pretrained_sha256!r}"
        if self.pretrained is None and self.load_from is None and self.frozen_stages >= 0:
            yield f"model.frozen_stages must be -1 when model.pretrained is null, got {self.frozen_stages}"


@dataclass(frozen=True)
class Backbone(Section):
    crops: Count
    crop_size: Annotated[int, Field(strict=True, ge=32, le=128)]
    epochs: Count
    batch_size: Count
    lr: Positive


@dataclass(frozen=True)
class Train(Section):
    epochs: CountOrZero
    batch_size: Count
    accumulate: Count
    optimizer: Literal["adamw", "sgd"]
    optimizer_options: dict[str, Any]
    lr: Positive
    base_batch_size: Count | None
    weight_decay: NotNegative
    schedule: Literal["cosine", "step"]
    lr_steps: tuple[Count, ...]
    warmup_iters: CountOrZero
    warmup_ratio: Annotated[float, Field(strict=True, gt=0, le=1)]
    grad_clip: Positive | None
    image_scale: tuple[Count, ...]
    flip: Share
    filter_empty: StrictBool
    augment: tuple[dict[str, Any], ...]
    val_images: CountOrZero
    resume_from: str | None
    precision: Literal["fp32", "bf16", "fp16"]
    channels_last: StrictBool
    compile: StrictBool
    tf32: StrictBool
    ema_momentum: Annotated[float, Field(strict=True, gt=0, lt=1)] | None

    @property
    def learning_rate(self) -> float:
        """`lr`, in proportion to the images a step where `base_batch_size` says for how many it is meant.

        Source: the linear scaling rule of Goyal et al., arXiv 1706.02677.
        """
        return self.lr * self.batch_size / self.base_batch_size if self.base_batch_size else self.lr

    def broken(self) -> Iterator[str]:
        steps = list(self.lr_steps)
        if len(self.image_scale) != 2 or self.image_scale[0] < self.image_scale[1]:
            yield f"train.image_scale must be [long, short] in pixels, got {list(self.image_scale)}"
        if self.schedule == "step" and not steps:
            yield "train.lr_steps must name epochs with train.schedule: step, got []"
        if self.schedule != "step" and steps:
            yield f"train.lr_steps must be [] with train.schedule: {self.schedule}, got {steps}"
        if self.batch_size % self.accumulate:
            yield f"train.accumulate must divide train.batch_size, {self.batch_size}, got {self.accumulate}"


@dataclass(frozen=True)
class Evaluate(Section):
    split: Literal["val", "test"]
    score_threshold: Share
    nms_iou: Share
    max_per_image: Count
    batch_size: Count
    precision: Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Machine(Section):
    """How the work is done here. No stage depends on it."""

    workers: CountOrZero
    launcher: Literal["none", "pytorch"]
    checkpoint_minutes: Positive
    check_images: Literal["none", "sample", "all"]


@dataclass(frozen=True)
class Params(Section):
    """All of `params.yaml`; its loss sections are `losses`."""

    variants: Annotated[dict[str, Variant], Field(min_length=1)]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    data: Data
    digits: Digits
    custom: Custom
    model: Model
    backbone: Backbone
    train: Train
    evaluate: Evaluate
    machine: Machine
    losses: dict[str, Loss] = field(default_factory=dict)

    def broken(self) -> Iterator[str]:
        for name, variant in self.variants.items():
            used = [variant.cls, variant.box]
            for role, section in zip(("cls", "box"), used, strict=True):
                if section not in self.losses:
                    known = ", ".join(self.losses)
                    yield f"variants.{name}.{role} must be a loss section ({known}), got {section!r}"
            for section, arguments in variant.overrides.items():
                if section not in used:
                    yield sections.unknown(f"variants.{name}.{section}", arguments, ["cls", "box", *used])
                if "type" in arguments:
                    yield f"variants.{name}.{section}.type cannot be overridden: name another loss section instead"
        if len(set(self.seeds)) != len(self.seeds):
            yield f"seeds must differ from each other, got {list(self.seeds)}"
        if self.train.epochs == 0 and self.model.load_from is None:
            yield "train.epochs must be 1 or greater when model.load_from is null, got 0"
        if self.train.resume_from and self.model.load_from:
            yield f"train.resume_from must be null when model.load_from is set, got {self.train.resume_from!r}"
        if self.evaluate.split not in self.splits():
            allowed = f"{' or '.join(self.splits())} with data.name: {self.data.name}"
            yield f"evaluate.split must be {allowed}, got {self.evaluate.split!r}"

    def splits(self) -> tuple[str, ...]:
        """The splits with public labels that are not trained on."""
        if self.data.name == "custom":
            return ("val",) if self.custom.train and not self.custom.test else ("val", "test")
        return {"coco": ("val",), "voc": ("test",)}.get(self.data.name, ("val", "test"))

    def variant(self, name: str) -> Variant:
        """The variant `name`. Raises InputError where there is none."""
        if name not in self.variants:
            raise InputError(f"the variant must be one of {', '.join(self.variants)}, got {name!r}")
        return self.variants[name]

    def loss(self, variant: str, role: Role) -> Loss:
        """The loss that a variant trains with, its overrides merged."""
        section = getattr(self.variant(variant), role)
        loss = self.losses[section]
        return Loss(loss.type, loss.arguments | self.variants[variant].overrides.get(section, {}))

    def loss_key(self, variant: str, role: Role, argument: str) -> str:
        """Where `params.yaml` has, or may have, an argument of a variant's loss: in its section or in the variant."""
        section = getattr(self.variant(variant), role)
        key = f"{section}.{argument}"
        return f"variants.{variant}.{key}" if argument in self.variants[variant].overrides.get(section, {}) else key


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and check a parameter file. Raises InputError where it is missing, no such file, or wrong: see `parse`."""
    return parse(sections.read(path))


def parse(content: Mapping[str, Any]) -> Params:
    """Check the content of a parameter file and turn it into `Params`.

    Raises:
        InputError: unknown or missing keys, wrong types, values out of range: all of them, a line each.
    """
    known = _gathered(content, Params, "losses")
    known["losses"] = {name: _gathered(loss, Loss, "arguments") for name, loss in known["losses"].items()}
    if isinstance(variants := known.get("variants"), Mapping):
        known["variants"] = {name: _gathered(variant, Variant, "overrides") for name, variant in variants.items()}
    return sections.build(Params, known, hidden=("losses", "arguments", "overrides"))


def _gathered(content: Any, cls: type, into: str) -> Any:
    """A section as `cls` has it: keys that are no fields are gathered in the field `into`."""
    if not isinstance(content, Mapping):
        return content
    names = {section.name for section in fields(cls)} - {into}
    named = {name: value for name, value in content.items() if name in names}
    return {**named, into: {name: value for name, value in content.items() if name not in names}}
