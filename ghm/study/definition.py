"""`studies/<name>.yaml`: what is varied, what is compared, and what has been published about it."""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ghm import params, typed
from ghm.errors import InputError
from ghm.params import Seed
from ghm.typed import Allowed

FOLDER = Path("studies")
PARAMS = Path("params.yaml")
Changes = dict[str, Any]  # "section.key" of params.yaml -> value


@dataclass(frozen=True)
class Curve:
    """A variant, with some parameters changed."""

    variant: str  # of params.yaml, or one that `changes` adds as `variants.<name>`
    changes: dict[str, object]
    swept: bool  # false: the study's parameter does not concern it


@dataclass(frozen=True)
class Published:
    """What others reported, on a data set of their own."""

    dataset: str  # heads the column of the table
    source: str  # model, and where it was published
    # curve -> AP in percent, or value -> AP in percent where the curve is swept; a text, as "NaN", is shown as it is
    ap: dict[str, object]

    def of(self, curve: str, value: object) -> float | str | None:
        """The AP of a curve at a value; None where there is none."""
        ap: Any = self.ap.get(curve)
        return {label(key): number for key, number in ap.items()}.get(label(value)) if isinstance(ap, Mapping) else ap


@dataclass(frozen=True)
class Study:
    """The content of a file in `studies/`.

    Each of `curves` is trained at each of `values` of `parameter`, under each of `conditions`, once per seed.
    """

    question: str
    parameter: str | None  # section.key; null: only the curves are compared
    values: tuple[object, ...]
    curves: Annotated[dict[str, Curve], Allowed("at least two curves", lambda curves: len(curves) > 1)]
    conditions: Annotated[dict[str, dict[str, object]], Allowed("at least one condition", bool)]  # -> changes
    seeds: Annotated[tuple[Seed, ...], Allowed("at least one seed", bool)]
    published: tuple[Published, ...]

    def __post_init__(self) -> None:
        labels = [label(value) for value in self.values]
        swept = [name for name, curve in self.curves.items() if curve.swept]
        if (self.parameter is None) == bool(self.values):
            raise InputError(f"values must be [] without a parameter and hold some with one, got {list(self.values)}")
        if None in self.values or len(set(labels)) < len(labels):
            raise InputError(f"values must differ from each other and not be null, got {list(self.values)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"seeds must differ from each other, got {list(self.seeds)}")
        if (self.parameter is None) == bool(swept):
            raise InputError(
                f"curves.<name>.swept must be true of some curve with a parameter and of none without one, got {swept}"
            )
        for number, published in enumerate(self.published):
            for curve, ap in published.ap.items():
                self._check_published(f"published[{number}].ap.{curve}", curve, ap)

    def _check_published(self, key: str, curve: str, ap: object) -> None:
        if curve not in self.curves:
            raise InputError(f"{key} must be of one of the curves: {', '.join(self.curves)}")
        if self.curves[curve].swept != isinstance(ap, Mapping):
            raise InputError(f"{key} must hold the AP of each value if its curve is swept, else one AP, got {ap!r}")
        for value, number in ap.items() if isinstance(ap, Mapping) else [(None, ap)]:
            if value is not None and label(value) not in map(label, self.values):
                raise InputError(f"{key}.{value} must be of one of the values: {', '.join(map(label, self.values))}")
            if not isinstance(number, str) and not (isinstance(number, int | float) and math.isfinite(number)):
                raise InputError(f'{key} must hold percents, or texts such as "NaN", got {number!r}')

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
    """Training runs that differ in nothing but the seed."""

    condition: str
    curve: str
    value: object  # of the parameter; None where it does not concern the curve
    variant: str
    changes: Changes


def load(name: str) -> Study:
    """Read `studies/<name>.yaml` and check it, all that it would train included.

    Raises:
        InputError: there is no such study, or a key or value in it is wrong.
    """
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(study.stem for study in FOLDER.glob("*.yaml") if study.stem != "dvc"))
        raise InputError(f"the study must be one of {known}, got {name!r}")
    content = params.read(path)
    params.load(PARAMS)
    try:
        study = typed.build(Study, content, "study")
        splits(study)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return study


def splits(study: Study) -> tuple[str, ...]:
    """The splits that a study can be judged on: it chooses on the first and reports on the last.

    Raises:
        InputError: a training run of the study would be one that `params.yaml` does not allow.
    """
    content = params.read(PARAMS)
    found = set()
    for cell in cells(study):
        parameters = params.parse(applied(content, cell.changes))
        if cell.variant not in parameters.variants:
            known = ", ".join(parameters.variants)
            raise InputError(f"curves.{cell.curve}.variant must be one of {known}, got {cell.variant!r}")
        found.add(parameters.splits())
    if len(found) > 1:
        raise InputError(f"data.name must be of data sets with the same splits, got {sorted(found)}")
    return found.pop()


def cells(study: Study) -> Iterator[Cell]:
    """Everything that is trained, condition by condition, curve by curve, in the order of the values."""
    for condition, conditional in study.conditions.items():
        for name, curve in study.curves.items():
            for value in study.values if curve.swept else (None,):
                swept = {} if value is None else {str(study.parameter): value}
                yield Cell(condition, name, value, curve.variant, {**conditional, **curve.changes, **swept})


def applied(content: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """A copy of the content of `params.yaml` with the changes made.

    Raises:
        InputError: `params.yaml` has no such section, or no such key in it.
    """
    changed = copy.deepcopy(dict(content))
    for key, value in changes.items():
        section, _, name = key.partition(".")
        if not isinstance(changed.get(section), Mapping):
            sections = ", ".join(other for other in changed if isinstance(changed[other], Mapping))
            raise InputError(f"{key} must be section.key of params.yaml, whose sections are {sections}")
        if name not in changed[section] and section != "variants":
            raise InputError(f"{key} is no parameter of params.yaml; {section} has {', '.join(changed[section])}")
        changed[section][name] = value
    return changed


def label(value: object) -> str:
    """A value as people write it: 100 for 100.0."""
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else ""
    return f"{value:g}" if isinstance(value, int | float) else str(value)
