"""Dataclasses from the content of a YAML file, checked by their type hints."""

import dataclasses
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ghm.errors import InputError


@dataclass(frozen=True)
class Allowed:
    """A condition on a value, with the words that an error message uses for it."""

    words: str
    test: Callable[[Any], bool]


def build(cls: type, value: object, key: str) -> Any:
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
    return cls(**{name: convert(hints[name], item, f"{key}.{name}") for name, item in value.items()})


def convert(hint: Any, value: object, key: str) -> Any:
    """Check `value` against a type hint and return it, with lists as tuples and whole numbers as floats."""
    if hint is object:
        return value
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        converted = convert(arguments[0], value, key)
        for allowed in hint.__metadata__:
            if not allowed.test(converted):
                raise InputError(f"{key} must be {allowed.words}, got {value!r}")
        return converted
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        rest = [argument for argument in arguments if argument is not type(None)]
        return convert(rest[0], value, key)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise InputError(f"{key} must be one of {', '.join(map(str, arguments))}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise InputError(f"{key} must be a list, got {value!r}")
        return tuple(convert(arguments[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"{key} must be a section, got {value!r}")
        return {str(name): convert(arguments[1], item, f"{key}.{name}") for name, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return build(hint, value, key)  # type: ignore[arg-type]
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
