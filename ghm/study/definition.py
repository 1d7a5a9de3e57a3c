"""`studies/<name>.yaml`: what is varied, what is compared, and what has been published about it."""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import StrictBool
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ghm import check, params, sections
from ghm.errors import InputError
from ghm.params import Variant
from ghm.sections import Section, Seed, allowed

FOLDER = Path("studies")
PARAMS = "params.yaml"
Changes = dict[str, Any]  # "section.key" of params.yaml -> value


@dataclass(frozen=True)
class Curve(Section):
    """A variant of `params.yaml` or of the study, with some parameters otherwise."""

    variant: str
    changes: dict[str, Any]
    swept: StrictBool  # false: the study's parameter does not concern it


@dataclass(frozen=True)
class Published(Section):
    """What others found, on a data set of their own."""

    dataset: str  # heads the column of the table
    source: str  # model, where it stands
    # curve -> AP in percent, or value -> AP in percent where the curve is swept; a text, as "NaN", is shown as it is
    ap: dict[str, Any]

    def of(self, curve: str, value: object) -> float | str | None:
        """The AP of a curve at a value; None where there is none."""
        found: Any = self.ap.get(curve)
        if isinstance(found, Mapping):
            found = {label(key): ap for key, ap in found.items()}.get(label(value))
        return found


@dataclass(frozen=True)
class Study(Section):
    """The content of a file in `studies/`.

    Each of `curves` is trained at each of `values` of `parameter`, under each of `conditions`, once a seed.
    """

    question: str
    parameter: str | None  # section.key; null: the curves alone are compared
    values: tuple[Any, ...]
    variants: dict[str, Variant]  # those that params.yaml lacks
    curves: Annotated[dict[str, Curve], allowed("at least two curves", lambda curves: len(curves) > 1)]
    conditions: Annotated[dict[str, dict[str, Any]], allowed("at least one condition", bool)]  # -> changes
    seeds: Annotated[tuple[Seed, ...], allowed("at least one seed", bool)]
    published: tuple[Published, ...]

    def __post_init__(self) -> None:
        labels = [label(value) for value in self.values]
        if (self.parameter is None) == bool(self.values):
            raise InputError(f"values must be [] without a parameter and hold some with one, got {list(self.values)}")
        if None in self.values or len(set(labels)) < len(labels):
            raise InputError(f"values must differ from each other and not be null, got {list(self.values)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"seeds must differ from each other, got {list(self.seeds)}")
        for name, curve in self.curves.items():
            if curve.swept and self.parameter is None:
                raise InputError(f"curves.{name}.swept must be false without a parameter, got true")
        if self.parameter and not any(curve.swept for curve in self.curves.values()):
            raise InputError(f"curves.<name>.swept must be true of some curve with parameter: {self.parameter}")
        for number, published in enumerate(self.published):
            for name, found in published.ap.items():
                self._check_published(f"published[{number}].ap.{name}", name, found)

    def _check_published(self, key: str, curve: str, found: object) -> None:
        if curve not in self.curves:
            raise InputError(f"{key} must be of one of the curves: {', '.join(self.curves)}")
        if self.curves[curve].swept != isinstance(found, Mapping):
            words = ("hold the AP of each value", "") if self.curves[curve].swept else ("be one AP", "not ")
            raise InputError(f"{key} must {words[0]}, for its curve is {words[1]}swept, got {found!r}")
        labels = [label(value) for value in self.values]
        for value, ap in found.items() if isinstance(found, Mapping) else [("", found)]:
            if value != "" and label(value) not in labels:
                raise InputError(f"{key}.{value} must be of one of the values: {', '.join(labels)}")
            if not isinstance(ap, str) and not (isinstance(ap, int | float) and math.isfinite(ap)):
                raise InputError(f'{key} must hold percents, or texts such as "NaN", got {ap!r}')

    @property
    def reference(self) -> str:
        """The curve that the others are compared with."""
        return next(iter(self.curves))

    @property
    def chooses(self) -> bool:
        """Whether a value is chosen. A parameter that concerns the reference too is a circumstance, not a choice."""
        return self.parameter is not None and not self.curves[self.reference].swept


@dataclass(frozen=True)
class Cell:
    """Trainings that differ in nothing but the seed."""

    condition: str
    curve: str
    value: object  # of the parameter; None where it does not concern the curve
    variant: str
    changes: Changes


def load(name: str, root: Path = Path()) -> Study:
    """Read `studies/<name>.yaml` and check it, all that it would train included.

    Raises:
        InputError: there is no such study, or a key or value in it is wrong.
    """
    path = FOLDER / f"{name}.yaml"
    if not (root / path).is_file():
        known = ", ".join(sorted(study.stem for study in (root / FOLDER).glob("*.yaml")))
        raise InputError(f"the study must be one of {known}, got {name!r}")
    params.load(root / PARAMS)
    try:
        study = sections.build(
            Study, YAML(typ="safe").load((root / path).read_text(encoding="utf-8")), lambda key: ("study", *key)
        )
        splits(study, root)
    except YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 1})" if where else ""
        raise InputError(f"{path} is not valid YAML{line}: {getattr(error, 'problem', error)}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return study


def splits(study: Study, root: Path = Path()) -> tuple[str, ...]:
    """The splits that a study can be judged on: it chooses on the first and reports on the last.

    Raises:
        InputError: a training of the study would be one that `params.yaml` does not allow.
    """
    content = YAML(typ="safe").load(root / PARAMS)
    places = {f"conditions.{name}": changes for name, changes in study.conditions.items()}
    places |= {f"curves.{name}.changes": curve.changes for name, curve in study.curves.items()}
    if study.parameter:
        places["parameter"] = {study.parameter: study.values[0]}
    for place, changes in places.items():
        try:
            changed(content, changes)
        except InputError as error:
            raise InputError(f"{place}: {error}") from None
    found = set()
    for cell in cells(study):
        given = params.parse(applied(copy.deepcopy(content), cell.changes))
        check.losses(given)
        if cell.variant not in given.variants:
            known = ", ".join(dict.fromkeys([*given.variants, *study.variants]))
            raise InputError(f"curves.{cell.curve}.variant must be one of {known}, got {cell.variant!r}")
        found.add(given.splits())
    if len(found) > 1:
        raise InputError(f"data.name must be of data sets with the same splits, got {sorted(found)}")
    return found.pop()


def cells(study: Study) -> Iterator[Cell]:
    """Everything that is trained, condition by condition, curve by curve, in the order of the values."""
    extra = {
        f"variants.{name}": {"cls": variant.cls, "box": variant.box, **variant.overrides}
        for name, variant in study.variants.items()
    }
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
        if not isinstance(content.get(section), Mapping):
            known = ", ".join(other for other in content if isinstance(content[other], Mapping))
            raise InputError(f"{key} must be section.key of params.yaml, whose sections are {known}")
        if name not in content[section] and section != "variants":
            raise InputError(f"{key} is no parameter of params.yaml; {section} has {', '.join(content[section])}")
        if content[section].get(name, ...) != value:
            found[key] = value
    return found


def applied(content: Any, changes: Changes) -> Any:
    """The content of a parameter file, itself, with the changes made."""
    for key, value in changes.items():
        section, _, name = key.partition(".")
        content[section][name] = value
    return content


def label(value: object) -> str:
    """A value as people write it: 100 for 100.0."""
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else ""
    return f"{value:g}" if isinstance(value, int | float) else str(value)
