"""The shape of the JSON records in output directories, checked when they are read.

A shape is a type (`int` of 64 bits; `float` also takes these, and only finite numbers), a `Number` with bounds, a
`FileName`, a set of allowed strings, a tuple of alternatives (None for null), `[shape]` for a list, `Pair` for a list
of two, `{"name": shape}` for an object with at least these fields (`"name?"` for an optional one), or `Each` for an
object whose values all have one shape.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from lorchestra.errors import CheckpointError
from lorchestra.store.safe_paths import name_fault, read_plain

Shape: TypeAlias = "type | Number | FileName | Each | Pair | set[str] | frozenset[str] | tuple[Shape | None, ...] | list[Shape] | Mapping[str, Shape]"  # noqa: E501

# Python's integers have no bound, but floats, files and torch do.
_MAX_INT = 2**63
_WORDS = {str: "text", int: "an integer", float: "a number", bool: "true or false", dict: "an object", list: "a list"}


@dataclass(frozen=True)
class Number:
    """A finite number from `least` to `most`; `whole` takes integers alone."""

    least: float = -1e60
    most: float = 1e60
    whole: bool = False

    def __str__(self) -> str:
        """In words."""
        return f"{'an integer' if self.whole else 'a number'} from {self.least:g} to {self.most:g}"


@dataclass(frozen=True)
class FileName:
    """Text that can be part of a file name (see `safe_paths.name_fault`)."""


@dataclass(frozen=True)
class Each:
    """An object whose values all have `shape`; with `names`, its keys become parts of file names."""

    shape: Shape
    names: bool = False


@dataclass(frozen=True)
class Pair:
    """A list of two values of `shape`."""

    shape: Shape


Json: TypeAlias = dict[str, Any]
"""A JSON object whose shape is checked where it is read."""

COUNT = Number(0, 2**53, whole=True)
NUMBER_OR_NULL: tuple[Shape | None, ...] = (Number(), None)
FILE_NAME = FileName()


def read_json(path: Path, shape: Shape = dict) -> Json:
    """Read a JSON object of the given shape.

    Raises:
        CheckpointError: the file is missing or truncated, or holds something else.
    """
    try:
        value = json.loads(read_plain(path).decode("utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); the file is missing, truncated or damaged") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, not a JSON object; the file is damaged")
    check_shape(value, shape, path)
    return value


def _refuse_constant(text: str) -> None:
    """Refuse NaN and infinity, which Python's JSON reader takes for numbers."""
    raise ValueError(f"{text} is not a number")


def check_shape(value: object, shape: Shape, where: Path, field: str = "") -> None:
    """Refuse a record that does not have the shape in which it was written.

    Raises:
        CheckpointError: names the file, the field and the value.
    """
    fault = _fault(value, shape, field)
    if fault is not None:
        raise CheckpointError(f"{where}: {fault}; the file was changed or damaged")


def _fault(value: object, shape: Shape | None, field: str) -> str | None:
    """The fault as a clause; None if the value fits."""
    if isinstance(shape, tuple):
        return _fault_of_alternatives(value, shape, field)
    if isinstance(shape, Mapping) and isinstance(value, dict):
        return _fault_of_object(value, shape, field)
    if isinstance(shape, list) and isinstance(value, list):
        return _first(_fault(entry, shape[0], f"{field}[{index}]") for index, entry in enumerate(value))
    if isinstance(shape, Pair) and isinstance(value, list) and len(value) == 2:
        return _first(_fault(entry, shape.shape, f"{field}[{index}]") for index, entry in enumerate(value))
    if isinstance(shape, Each) and isinstance(value, dict):
        return _first(_fault_of_entry(name, entry, shape, field) for name, entry in value.items())
    if isinstance(shape, FileName) and isinstance(value, str):
        return _name_fault(f"{field} is", value)
    if _fits(value, shape):
        return None
    return f"{field or 'the record'} is {reprlib.repr(value)}, not {_words(shape)}"


def _first(faults: Iterable[str | None]) -> str | None:
    return next((fault for fault in faults if fault is not None), None)


def _name_fault(subject: str, name: str) -> str | None:
    fault = name_fault(name)
    return None if fault is None else f"{subject} {reprlib.repr(name)}, which {fault} and cannot be part of a file name"


def _fault_of_object(value: dict[str, object], shape: Mapping[str, Shape], field: str) -> str | None:
    for key, inner in shape.items():
        name = key.removesuffix("?")
        full = f"{field}.{name}" if field else name
        if name not in value:
            if name == key:
                return f"{full} is missing"
        elif (fault := _fault(value[name], inner, full)) is not None:
            return fault
    return None


def _fault_of_entry(name: str, entry: object, shape: Each, field: str) -> str | None:
    fault = _name_fault(f"{field or 'the record'} names", name) if shape.names else None
    return fault or _fault(entry, shape.shape, f"{field}.{reprlib.repr(name)[1:-1]}" if field else name[:60])


def _fault_of_alternatives(value: object, shape: tuple[Shape | None, ...], field: str) -> str | None:
    if value is None and None in shape:
        return None
    others = [alternative for alternative in shape if alternative is not None]
    if len(others) == 1:
        return _fault(value, others[0], field)
    faults = [_fault(value, alternative, field) for alternative in others]
    if None in faults:
        return None
    # the fault against the alternative of the same kind is the most useful one
    for alternative, fault in zip(others, faults, strict=True):
        if isinstance(value, list) and isinstance(alternative, list | Pair):
            return fault
        if isinstance(value, dict) and isinstance(alternative, Mapping | Each):
            return fault
    return f"{field or 'the record'} is {reprlib.repr(value)}, not {' or '.join(map(_words, others))}"


def _fits(value: object, shape: Shape | None) -> bool:
    if isinstance(shape, set | frozenset):
        return isinstance(value, str) and value in shape
    if isinstance(shape, Number):
        number_type = int if shape.whole else float
        return isinstance(value, int | float) and _fits(value, number_type) and shape.least <= value <= shape.most
    if not isinstance(shape, type):
        return False
    if isinstance(value, int) and not isinstance(value, bool):
        return shape in (int, float) and abs(value) < _MAX_INT
    if isinstance(value, float):
        return shape is float and math.isfinite(value)
    return isinstance(value, shape) and shape is not int


def _words(shape: Shape | None) -> str:
    if isinstance(shape, tuple):
        return " or ".join(_words(alternative) for alternative in shape if alternative is not None)
    if isinstance(shape, set | frozenset):
        return f"one of {', '.join(sorted(shape))}"
    if isinstance(shape, Number):
        return str(shape)
    if isinstance(shape, Pair):
        return "a list of two"
    if isinstance(shape, FileName):
        return "text"
    if isinstance(shape, Each | Mapping):
        return "an object"
    return _WORDS[shape if isinstance(shape, type) else type(shape)]
