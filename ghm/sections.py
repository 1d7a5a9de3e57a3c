"""Sections of a YAML file as frozen dataclasses: pydantic checks them, and every mistake is named in our sentences."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ghm.errors import InputError

# A number is no text and no `true`.
Positive = Annotated[float, Field(strict=True, gt=0)]
NotNegative = Annotated[float, Field(strict=True, ge=0)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Count = Annotated[int, Field(strict=True, ge=1)]
CountOrZero = Annotated[int, Field(strict=True, ge=0)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**31)]

# Type of pydantic's error -> what is allowed, where pydantic names types of Python.
ALLOWED = {
    "bool_type": "true or false",
    "dataclass_type": "a section",
    "dict_type": "a section",
    "string_pattern_mismatch": "a text like {pattern}",
    "string_type": "a text",
    "too_short": "a list or section with at least {min_length} entry",
    "tuple_type": "a list",
}
Built = TypeVar("Built")
_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


class Section:
    """A dataclass that pydantic checks: it takes no other keys, no infinity and no NaN."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    def broken(self) -> Iterator[str]:
        """The rules between values that these break, a sentence each."""
        yield from ()

    def __post_init__(self) -> None:
        if sentences := [*self.broken()]:
            raise InputError("\n".join(sentences))


def read(path: Path) -> dict[str, Any]:
    """The content of a YAML file with sections, unchecked. Raises InputError where it is missing or no such file."""
    try:
        content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run from the repository's root, or restore it with git") from None
    except (YAMLError, UnicodeDecodeError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", error)
        line = f" (line {mark.line + 1})" if mark else ""
        raise InputError(f"{path} is not valid YAML{line}: {problem}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold sections like `train:`, got {type(content).__name__}")
    return content


def build(cls: type[Built], content: object, hidden: Container[str] = ()) -> Built:
    """Make a dataclass from a section.

    Args:
        hidden: names of fields that gather what the file has one level higher.

    Raises:
        InputError: all that is wrong, a line each: key, what is allowed, value.
    """
    try:
        return _adapter(cls).validate_python(content)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    sentences = []
    for problem in problems:
        kind, path, value, context = problem["type"], problem["loc"], problem["input"], problem.get("ctx", {})
        key = _dotted([part for part in path if part not in hidden])
        if kind == "missing":
            sentences.append(f"{key} is missing")
        elif kind in ("unexpected_keyword_argument", "invalid_key"):
            sentences.append(unknown(key, value, _keys(cls, path[:-1])))
        elif isinstance(context.get("error"), InputError):  # of `Section.broken`, whose sentences are whole
            sentences.append(str(context["error"]))
        else:
            words = ALLOWED.get(kind, "").format(**context)
            words = words or re.sub("^(Input should be|Value error,) ", "", problem["msg"])
            sentences.append(f"{key} must be {words}, got {value!r}")
    raise InputError("\n".join(sentences))


def unknown(key: str, value: object, known: Iterable[str]) -> str:
    """The sentence about a key that does not exist."""
    near = difflib.get_close_matches(key.rpartition(".")[2], [*known], 1)
    meant = f"; did you mean {near[0]}?" if near else ";"
    return f"{key} is not a known key, got {value!r}{meant} allowed: {', '.join(known)}"


def _dotted(key: Sequence[str | int]) -> str:
    """A key as people type it: `train.image_scale[0]`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in key]
    return "".join(parts).removeprefix(".").removesuffix(".[key]")


def _keys(cls: Any, path: Sequence[str | int]) -> list[str]:
    """The keys of the section that `path` leads to."""
    for part in path:
        if dataclasses.is_dataclass(cls):
            cls = get_type_hints(cls)[str(part)]
            cls = get_args(cls)[0] if type(None) in get_args(cls) else cls
        else:  # dict[str, X] or tuple[X, ...]
            cls = next(filter(dataclasses.is_dataclass, get_args(cls)))
    return [field.name for field in dataclasses.fields(cls)]
