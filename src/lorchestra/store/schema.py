"""The shape of the JSON records in a run directory, checked where they are read.

A shape is a type (`int` of 64 bits; `float` takes these too, and nothing that is not finite), a `Number` with bounds, a
`FileName`, a set of strings to choose from, a tuple of alternatives (None for null), `[shape]` for a list of these,
`Pair` for two of them, `{"name": shape}` for an object that has these fields among others (`"name?"` for one that may
be missing), or `Each` for an object whose values all have one shape.
"""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorchestra.errors import CheckpointError
from lorchestra.store.safe_paths import name_fault

# Python's integers have no bound, but floats, files and torch do.
_MOST = 2**63
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
    """Text that can be a part of a file's name (see `inside.name_fault`)."""


@dataclass(frozen=True)
class Each:
    """An object whose values all have `shape`; with `names`, its keys become parts of file names."""

    shape: Any
    names: bool = False


@dataclass(frozen=True)
class Pair:
    """A list of two values of `shape`."""

    shape: Any


COUNT = Number(0, 2**53, whole=True)
NUMBER_OR_NULL = (Number(), None)
FILE_NAME = FileName()


def check_shape(value: Any, shape: Any, where: Path, field: str = "") -> None:
    """Refuse a record that does not have the shape that the program that wrote it gave it.

    Raises:
        CheckpointError: names the file, the field and the value.
    """
    fault = _fault(value, shape, field)
    if fault is not None:
        raise CheckpointError(f"{where}: {fault}; the file was changed or damaged")


def _fault(value: Any, shape: Any, field: str) -> str | None:
    """What is wrong, as a sentence without its end; None where nothing is."""
    if isinstance(shape, tuple):
        return _fault_of_alternatives(value, shape, field)
    if isinstance(shape, dict) and isinstance(value, dict):
        return _fault_of_object(value, shape, field)
    if isinstance(shape, list) and isinstance(value, list):
        return _first(_fault(entry, shape[0], f"{field}[{index}]") for index, entry in enumerate(value))
    if isinstance(shape, Pair) and isinstance(value, list) and len(value) == 2:
        return _first(_fault(entry, shape.shape, f"{field}[{index}]") for index, entry in enumerate(value))
    if isinstance(shape, Each) and isinstance(value, dict):
        return _fault_of_values(value, shape, field)
    if isinstance(shape, FileName) and isinstance(value, str):
        fault = name_fault(value)
        return (
            None
            if fault is None
            else f"{field} is {reprlib.repr(value)}, which {fault} and cannot be part of a file name"
        )
    if _fits(value, shape):
        return None
    return f"{field or 'the record'} is {reprlib.repr(value)}, not {_words(shape)}"


def _first(faults: Any) -> str | None:
    return next((fault for fault in faults if fault is not None), None)


def _fault_of_object(value: dict[str, Any], shape: dict[str, Any], field: str) -> str | None:
    for key, inner in shape.items():
        name = key.removesuffix("?")
        full = f"{field}.{name}" if field else name
        if name not in value:
            if name == key:
                return f"{full} is missing"
        elif (fault := _fault(value[name], inner, full)) is not None:
            return fault
    return None


def _fault_of_values(value: dict[str, Any], shape: Each, field: str) -> str | None:
    for name, entry in value.items():
        if shape.names and (fault := name_fault(name)) is not None:
            return (
                f"{field or 'the record'} names {reprlib.repr(name)}, which {fault} and cannot be part of a file name"
            )
        if (
            fault := _fault(entry, shape.shape, f"{field}.{reprlib.repr(name)[1:-1]}" if field else name[:60])
        ) is not None:
            return fault
    return None


def _fault_of_alternatives(value: Any, shape: tuple[Any, ...], field: str) -> str | None:
    if value is None and None in shape:
        return None
    others = [alternative for alternative in shape if alternative is not None]
    if len(others) == 1:
        return _fault(value, others[0], field)
    faults = [_fault(value, alternative, field) for alternative in others]
    if None in faults:
        return None
    # that of the alternative which is of the same kind says most
    for alternative, fault in zip(others, faults, strict=True):
        if isinstance(value, list) and isinstance(alternative, list | Pair):
            return fault
        if isinstance(value, dict) and isinstance(alternative, dict | Each):
            return fault
    return f"{field or 'the record'} is {reprlib.repr(value)}, not {' or '.join(map(_words, others))}"


def _fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, set | frozenset):
        return isinstance(value, str) and value in shape
    if isinstance(shape, Number):
        return _fits(value, int if shape.whole else float) and shape.least <= value <= shape.most
    if not isinstance(shape, type):
        return False
    if isinstance(value, int) and not isinstance(value, bool):
        return shape in (int, float) and abs(value) < _MOST
    if isinstance(value, float):
        return shape is float and math.isfinite(value)
    return isinstance(value, shape) and shape is not int


def _words(shape: Any) -> str:
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
    if isinstance(shape, Each):
        return "an object"
    return _WORDS[shape if isinstance(shape, type) else type(shape)]
