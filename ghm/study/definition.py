"""`studies/<name>.yaml`: what is varied, what is compared, and what has been published about it."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StrictBool

from ghm import check, params, presets, sections
from ghm.errors import InputError
from ghm.sections import Section, Seed
from ghm.words import label

FOLDER = Path("studies")
PARAMS = Path("params.yaml")
PRESET = "preset"
Changes = dict[str, Any]  # "section.key" of params.yaml -> value; PRESET -> a name, which is merged before the others


@dataclass(frozen=True)
class Curve(Section):
    """A variant, with some parameters changed."""

    variant: str  # of params.yaml, or one that `changes` adds as `variants.<name>`
    changes: dict[str, Any]
    swept: StrictBool  # false: the study's parameter does not concern it


@dataclass(frozen=True)
class Cell:
    """Training runs that differ in nothing but the seed."""

    condition: str
    curve: str
    value: object  # of the parameter; None where it does not concern the curve
    variant: str
    changes: Changes

    @property
    def key(self) -> tuple[str, str, str]:
        """Condition, curve, and the value as people write it."""
        return self.condition, self.curve, label(self.value)


@dataclass(frozen=True)
class Study(Section):
    """The content of a file in `studies/`.

    Each of `curves` is trained at each of `values` of `parameter`, under each of `conditions`, once per seed.
    """

    question: str
    parameter: str | None  # section.key; null: only the curves are compared
    values: tuple[Any, ...]
    curves: Annotated[dict[str, Curve], Field(min_length=2)]
    conditions: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]  # -> changes
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    published: str | None  # what others reported, and on what: Markdown for the page

    def broken(self) -> Iterator[str]:
        labels = {label(value) for value in self.values}
        swept = [name for name, curve in self.curves.items() if curve.swept]
        if len({self.parameter is None, not self.values, not swept}) > 1:
            got = f"got {self.parameter}, {list(self.values)} and {swept}"
            yield f"parameter, values and the curves that are swept must be there or be missing together, {got}"
        if None in self.values or len(labels) < len(self.values):
            yield f"values must differ from each other and not be null, got {list(self.values)}"
        if len(set(self.seeds)) < len(self.seeds):
            yield f"seeds must differ from each other, got {list(self.seeds)}"

    def cells(self) -> Iterator[Cell]:
        """Everything that is trained, condition by condition, curve by curve, in the order of the values."""
        for condition, conditional in self.conditions.items():
            for name, curve in self.curves.items():
                for value in self.values if curve.swept else (None,):
                    swept = {} if value is None else {str(self.parameter): value}
                    yield Cell(condition, name, value, curve.variant, {**conditional, **curve.changes, **swept})

    @property
    def reference(self) -> str:
        """The curve that the others are compared with."""
        return next(iter(self.curves))

    @property
    def chooses(self) -> bool:
        """Whether a value is chosen. A parameter that concerns the reference too is a circumstance, not a choice."""
        return self.parameter is not None and not self.curves[self.reference].swept


def load(name: str) -> Study:
    """Read `studies/<name>.yaml` and check it, all that it would train included.

    Raises:
        InputError: there is no such study, or a key or value in it is wrong.
    """
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(study.stem for study in FOLDER.glob("*.yaml") if study.stem != "dvc"))
        raise InputError(f"the study must be one of {known}, got {name!r}")
    content = sections.read(path)
    params.load(PARAMS)
    try:
        study = sections.build(Study, content)
        splits(study)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return study


def splits(study: Study) -> tuple[str, ...]:
    """The splits that a study can be judged on: it chooses on the first and reports on the last.

    Raises:
        InputError: a training run of the study would be one that `params.yaml` does not allow.
    """
    content = sections.read(PARAMS)
    known = set()
    for cell in study.cells():
        parameters = params.parse(applied(content, cell.changes))
        check.whole(parameters)
        if cell.variant not in parameters.variants:
            variants = ", ".join(parameters.variants)
            raise InputError(f"curves.{cell.curve}.variant must be one of {variants}, got {cell.variant!r}")
        known.add(parameters.splits())
    if len(known) > 1:
        raise InputError(f"data.name must be of data sets with the same splits, got {sorted(known)}")
    return known.pop()


def has_data_sets(study: Study, content: Mapping[str, Any]) -> bool:
    """Whether each of several conditions has a data set of its own, and each curve one answer to each."""
    sets = []
    for changes in study.conditions.values():
        data = applied(content, changes)["data"]
        sets.append((data["name"], *((data["root"], data["source"]) if data["name"] == "custom" else ())))
    return len(study.conditions) == len({*sets}) > 1 and (study.chooses or study.parameter is None)


def applied(content: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """A copy of the content of `params.yaml` with the changes made.

    Raises:
        InputError: there is no such preset, or `params.yaml` has no such section.
    """
    changed = copy.deepcopy(dict(content))
    if PRESET in changes:
        presets.update(changed, presets.read(changes[PRESET]))
    for key, value in changes.items():
        if key == PRESET:
            continue
        section, _, name = key.partition(".")
        if not isinstance(changed.get(section), Mapping):
            known = ", ".join(other for other in changed if isinstance(changed[other], Mapping))
            raise InputError(f"{key} must be section.key of params.yaml, whose sections are {known}")
        changed[section][name] = value
    return changed
