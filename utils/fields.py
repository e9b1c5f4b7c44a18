"""Type checks for the fields of a dataclass, whose values may come from a file."""

import math
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from utils.errors import UserError
from utils.printable import one_line

NAMES = {int: "an integer below 2^63", float: "a finite number", bool: "true or false", str: "text", NoneType: "None",
         list: "a list", dict: "an object"}


def check_types(settings: Any) -> None:
    """Raise UserError unless every field of a dataclass instance has its declared type."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if not has_type(value, field.type):
            raise UserError(f"{field.name} cannot be {one_line(str(value), limit=80)}: give {describe(field.type)}")


def has_type(value: object, kind: Any) -> bool:
    """Return whether `value` has the type `kind`: a class, list[a class], a union of these, or a Literal of strings.

    Numbers must be finite, and integers below 2^63. An int is a valid float; a bool is not a valid number.
    """
    if len(parts_of(kind)) > 1:
        return any(has_type(value, part) for part in parts_of(kind))
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(has_type(item, get_args(kind)[0]) for item in value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if kind is float:
        return isinstance(value, float) and math.isfinite(value) or has_type(value, int)
    return isinstance(value, kind)


def parts_of(kind: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the only type."""
    return get_args(kind) if get_origin(kind) in (UnionType, Union) else (kind,)


def describe(kind: Any) -> str:
    """Return a description of the values that `kind` accepts.

    >>> describe(int | None)
    'an integer below 2^63 or None'
    """
    if len(parts_of(kind)) > 1:
        return " or ".join(describe(part) for part in parts_of(kind))
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    if get_origin(kind) is list or Ellipsis in get_args(kind):
        return f"a list: [{describe(get_args(kind)[0])}, ...]"
    if get_origin(kind) is tuple:
        return f"a list: [{', '.join(describe(part) for part in get_args(kind))}]"
    return NAMES[kind]
