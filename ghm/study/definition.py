"""`studies/<name>.yaml`: what is varied, what is compared, and what has been published about it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ruamel.yaml import YAML

from ghm import typed
from ghm.errors import InputError
from ghm.params import Seed, Variant
from ghm.typed import Allowed

FOLDER = Path("studies")
Changes = dict[str, Any]  # "section.key" of params.yaml -> value


@dataclass(frozen=True)
class Curve:
    """A variant of `params.yaml` or of the study, with some parameters otherwise."""

    variant: str
    changes: dict[str, object]
    swept: bool  # false: the study's parameter does not concern it


@dataclass(frozen=True)
class Published:
    """What others found: AP in percent of some curves at some values."""

    source: str  # data set, model, where it stands
    ap: dict[str, dict[str, float]]  # curve -> value, or "" without a parameter -> AP


@dataclass(frozen=True)
class Study:
    """The content of a file in `studies/`.

    Each of `curves` is trained at each of `values` of `parameter`, under each of `conditions`, once a seed.
    """

    question: str
    parameter: str | None  # section.key; null: the curves alone are compared
    values: tuple[object, ...]
    variants: dict[str, Variant]  # those that params.yaml lacks
    curves: dict[str, Curve]  # the first one is what the others are compared with
    conditions: dict[str, dict[str, object]]  # name -> changes of parameters
    seeds: Annotated[tuple[Seed, ...], Allowed("at least one seed", bool)]
    published: Published | None

    def __post_init__(self) -> None:
        if (self.parameter is None) == bool(self.values):
            raise InputError(f"values must be [] without a parameter and hold some with one, got {list(self.values)}")


@dataclass(frozen=True)
class Cell:
    """Trainings that differ in nothing but the seed."""

    condition: str
    curve: str
    value: object  # of the parameter; None where it does not concern the curve
    variant: str
    changes: Changes


def load(name: str) -> Study:
    """Read and check `studies/<name>.yaml`.

    Raises:
        InputError: there is no such study, or a key or value in it is wrong.
    """
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(study.stem for study in FOLDER.glob("*.yaml")))
        raise InputError(f"the study must be one of {known}, got {name!r}")
    try:
        return typed.build(Study, YAML(typ="safe").load(path.read_text(encoding="utf-8")), "study")
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def cells(study: Study) -> Iterator[Cell]:
    """Everything that is trained, condition by condition, curve by curve, in the order of the values."""
    extra = {f"variants.{name}": {"cls": variant.cls, "box": variant.box} for name, variant in study.variants.items()}
    for condition, changes in study.conditions.items():
        for name, curve in study.curves.items():
            own = {key: value for key, value in extra.items() if key == f"variants.{curve.variant}"}
            for value in study.values if curve.swept else (None,):
                swept = {} if value is None else {str(study.parameter): value}
                yield Cell(condition, name, value, curve.variant, {**own, **changes, **curve.changes, **swept})


def changed(content: Mapping[str, Any], changes: Changes) -> Changes:
    """The changes that change something: equal trainings of different studies are one.

    Raises:
        InputError: `params.yaml` has no such section, or no such key in it.
    """
    found = {}
    for key, value in changes.items():
        section, _, name = key.partition(".")
        if section not in content or (name not in content[section] and section != "variants"):
            raise InputError(f"{key} is no parameter of params.yaml, got {value!r}")
        if content[section].get(name, ...) != value:
            found[key] = value
    return found
