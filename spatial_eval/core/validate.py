"""Build dataclasses from plain values (YAML, JSON), each checked against its annotation. Pure."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from spatial_eval.core.errors import ConfigError, describe_unknown

T = TypeVar("T")


def format_value(value: Any) -> str:
    """Format a value as a user types it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def describe_invalid(key: str, value: Any, expected: str) -> str:
    """Return one line that rejects the value of a key."""
    return f"{key}={format_value(value)} is not valid; expected {expected}"


def changed_values(value: Any) -> dict[str, Any]:
    """Return a dataclass's fields that are not at their default."""
    given = field_values(value)
    return {f.name: given[f.name] for f in dataclasses.fields(value) if given[f.name] != f.default}


def show_value(value: Any) -> str:
    """Format what a file or a line holds as JSON, for a message: never more than fits on a line."""
    text = "absent" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    text = text.encode("utf-8", "backslashreplace").decode()  # half a character cannot be printed
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"


def build_dataclass(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build `cls(**values)`.

    Raises:
        ConfigError: a key is unknown or missing, or a value is of the wrong type; it is named under `where`.
    """
    hints = field_types(cls)  # type: ignore[arg-type]  # a class is hashable
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(describe_unknown("key", f"{where}.{key}", [f"{where}.{name}" for name in known]))
    for name, f in known.items():
        no_default = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if name not in values and no_default:
            raise ConfigError(f"{where}.{name} must be given: add {where}.{name}=...")
    return cls(**{key: check_type(hints[key], value, f"{where}.{key}") for key, value in values.items()})


def field_values(value: Any) -> dict[str, Any]:
    """Return a dataclass's fields by name, as they are: asdict would turn an arm into a dict."""
    names = _names(type(value))  # type: ignore[arg-type]  # a class is hashable
    return {name: getattr(value, name) for name in names}  # slots: there is no __dict__


@cache
def _names(cls: type) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(cls))


@cache
def field_types(cls: type) -> Mapping[str, Any]:
    """Return the annotation of each field of a class by name."""
    return typing.get_type_hints(cls)  # evaluates text: seconds for 10,000 cells of one method


def check_type(hint: Any, value: Any, where: str) -> Any:
    """Convert `value` to its annotation: a list to a tuple, text to an absolute path. Raises ConfigError."""
    if type(value) is hint:  # of most fields
        return value
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        if value is None and type(None) in typing.get_args(hint):
            return None
        errors = []
        for choice in typing.get_args(hint):
            if choice is not type(None):
                try:
                    return check_type(choice, value, where)
                except ConfigError as error:
                    errors.append(error)
        raise errors[0]
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(check_type(typing.get_args(hint)[0], item, where) for item in value)
    if typing.get_origin(hint) is Mapping and isinstance(value, dict):
        return value
    if hint is Path and isinstance(value, str) and value:
        return Path(value).expanduser().absolute()
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    expected = getattr(hint, "__name__", str(hint)).replace("str", "text")  # hints of plug-ins need not have a name
    raise ConfigError(describe_invalid(where, value, expected))
