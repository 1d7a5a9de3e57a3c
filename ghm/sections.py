"""Sections of a YAML file as frozen dataclasses: pydantic checks them, and every mistake is named in our sentences."""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError
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

# Type of pydantic's error -> what must be, of the values in its context.
ALLOWED = {
    "bool_type": "true or false",
    "custom": "{words}",
    "dataclass_type": "a section with {keys}",
    "dict_type": "a section",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "greater than {gt:.12g}",
    "greater_than_equal": "{ge:.12g} or greater",
    "int_type": "a whole number",
    "less_than": "less than {lt:.12g}",
    "less_than_equal": "{le:.12g} or less",
    "literal_error": "one of {expected}",
    "string_type": "a text",
    "tuple_type": "a list",
    "too_short": "a list or section with at least {min_length} entry",
}
Built = TypeVar("Built")
Key = tuple[str | int, ...]


class Section:
    """A dataclass that pydantic checks: it takes no other keys, no infinity and no NaN."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    def broken(self) -> Iterator[str]:
        """The rules between values that these break, a sentence each."""
        yield from ()

    def __post_init__(self) -> None:
        if sentences := [*self.broken()]:
            raise InputError("\n".join(sentences))


def allowed(words: str, test: Callable[[Any], bool]) -> AfterValidator:
    """A condition on a value, for `Annotated`, with the words that an error message uses for it."""

    def check(value: Any) -> Any:
        if not test(value):
            raise PydanticCustomError("custom", "{words}", {"words": words})
        return value

    return AfterValidator(check)


def read(path: Path) -> dict[str, Any]:
    """The content of a YAML file with sections, unchecked.

    Raises:
        InputError: the file is missing or is no YAML mapping.
    """
    try:
        content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run from the repository's root, or restore it with git") from None
    except (YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise InputError(f"{path} is not valid YAML{line}: {problem}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold sections like `train:`, got {type(content).__name__}")
    return content


def build(
    cls: type[Built],
    content: object,
    name: Callable[[Key], Key] = lambda key: key,
    moved: Mapping[str, str] | None = None,
) -> Built:
    """Make a dataclass from a section.

    Args:
        name: the key in the file, from that in `content`.
        moved: keys of earlier versions -> where they went.

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
        key = dotted(name(path))
        if kind == "value_error":  # of `Section.broken`, whose sentences are whole
            sentences.append(str(context["error"]))
        elif kind == "missing":
            sentences.append(f"{key} is missing")
        elif moved and key in moved:
            sentences.append(f"{key} is not a known key, got {value!r}: {key} is now {moved[key]}")
        elif kind in ("unexpected_keyword_argument", "invalid_key"):
            sentences.append(unknown(key, value, _keys(cls, path[:-1])))
        else:
            expected = str(context.get("expected", "")).replace("'", "").replace(" or ", ", ")
            keys = ", ".join(_keys(cls, path)) if kind == "dataclass_type" else ""
            words = ALLOWED.get(kind, "of another kind").format(**{**context, "expected": expected, "keys": keys})
            sentences.append(f"{key} must be {words}, got {value!r}")
    raise InputError("\n".join(sentences))


@cache
def _adapter(cls: type[Built]) -> TypeAdapter[Built]:
    return TypeAdapter(cls)


def unknown(key: str, value: object, known: Iterable[str]) -> str:
    """The sentence about a key that does not exist."""
    near = difflib.get_close_matches(key.rpartition(".")[2], [*known], 1)
    meant = f"; did you mean {near[0]}?" if near else ";"
    return f"{key} is not a known key, got {value!r}{meant} allowed: {', '.join(known)}"


def dotted(key: Key) -> str:
    """A key as people type it: `train.image_scale[0]`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in key]
    return "".join(parts).removeprefix(".").removesuffix(".[key]")


def _keys(cls: Any, path: Key) -> list[str]:
    """The keys of the section that `path` leads to, or the words for what a field of it gathers."""
    for part in path:
        if dataclasses.is_dataclass(cls):
            cls = get_type_hints(cls)[str(part)]
            cls = get_args(cls)[0] if type(None) in get_args(cls) else cls
        else:  # dict[str, X] or tuple[X, ...]
            cls = next(filter(dataclasses.is_dataclass, get_args(cls)))
    return [field.metadata.get("words", field.name) for field in dataclasses.fields(cls)]
