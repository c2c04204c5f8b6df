"""Converts settings to plain mappings (for YAML, JSON and MLflow) and back."""

import dataclasses
import datetime
import re
import types
import typing
from typing import Any, Literal, TypeVar

from pnfrec_dist.errors import InputError, nearest

T = TypeVar("T")


def to_mapping(settings: Any) -> dict[str, Any]:
    """Nested plain values for YAML or JSON (tuples become lists)."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return list(value) if isinstance(value, tuple) else value

    return plain(settings)


def flatten(mapping: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> {"section.field": value}."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def override(settings: T, mapping: object, where: str, prefix: str = "") -> T:
    """`settings` with the values of a nested mapping.

    Raises InputError that names `where`, the dotted key, and the nearest known key or the expected type.
    """
    if mapping is None:  # an empty section in YAML
        return settings
    if not isinstance(mapping, dict):
        raise InputError(f"{where}: {prefix.rstrip('.') or 'the file'} must be a mapping, not {mapping!r}")
    hints = typing.get_type_hints(type(settings))
    changes: dict[str, Any] = {}
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        if key not in hints:
            raise InputError(f"{where}: unknown setting {name!r}; {nearest(str(key), hints)}")
        if dataclasses.is_dataclass(hints[key]):
            changes[key] = override(getattr(settings, key), value, where, name + ".")
        else:
            changes[key] = _typed(value, hints[key], f"{where}: {name}")
    try:
        return dataclasses.replace(settings, **changes)  # type: ignore[type-var]
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _typed(value: Any, hint: Any, name: str) -> Any:
    """Value converted to the annotated type, or InputError."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    for option in options:
        if typing.get_origin(option) is Literal:
            if value in typing.get_args(option):
                return value
        elif typing.get_origin(option) is tuple:
            element = typing.get_args(option)[0]
            if isinstance(value, list | tuple):
                return tuple(_typed(v, element, name) for v in value)
        elif option is types.NoneType:
            if value is None:
                return None
        elif option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        elif option is float and isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]+e[-+]?\d+", value, re.IGNORECASE):
            return float(value)  # YAML reads 1e-3 as text, because it has no point
        elif option in (int, str, bool) and type(value) is option:
            return value
        elif option is str and isinstance(value, datetime.date):
            return value.isoformat()  # YAML reads 2020-01-01 as a date
    wanted = " or ".join(_describe(option) for option in options)
    if str in options and isinstance(value, bool | int | float):
        wanted += f" in quotes: {str(value).lower()!r}"
    raise InputError(f"{name} is {value!r}; it must be {wanted}")


def _describe(option: Any) -> str:
    if typing.get_origin(option) is Literal:
        return "one of " + ", ".join(repr(a) for a in typing.get_args(option))
    if typing.get_origin(option) is tuple:
        return f"a list of {_describe(typing.get_args(option)[0])}"
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(option, "null")
