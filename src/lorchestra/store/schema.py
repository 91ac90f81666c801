"""The shape of the JSON records in a run directory, checked where they are read.

A shape is a type (`int` of 64 bits; `float` takes these too, and nothing that is not finite), a set of strings to
choose from, `(shape, None)` for what may be null, `[shape]` for a list of these, or `{"name": shape}` for an object
that has these fields among others.
"""

from __future__ import annotations

import math
import reprlib
from pathlib import Path
from typing import Any

from lorchestra.errors import CheckpointError

# Python's integers have no bound, but floats, files and torch do.
_MOST = 2**63
_WORDS = {str: "text", int: "an integer", float: "a number", bool: "true or false", dict: "an object", list: "a list"}


def check_shape(value: Any, shape: Any, where: Path, field: str = "") -> None:
    """Refuse a record that does not have the shape that the program that wrote it gave it.

    Raises:
        CheckpointError: names the file, the field and the value.
    """
    if isinstance(shape, dict) and isinstance(value, dict):
        for name, inner in shape.items():
            full = f"{field}.{name}" if field else name
            if name not in value:
                raise CheckpointError(f"{where}: {full} is missing; the file was changed or damaged")
            check_shape(value[name], inner, where, full)
    elif isinstance(shape, list) and isinstance(value, list):
        for index, entry in enumerate(value):
            check_shape(entry, shape[0], where, f"{field}[{index}]")
    elif isinstance(shape, tuple) and value is not None:
        (inner,) = (alternative for alternative in shape if alternative is not None)
        check_shape(value, inner, where, field)
    elif not _fits(value, shape):
        wanted = _words(shape)
        message = f"{where}: {field or 'the record'} is {reprlib.repr(value)}, not {wanted}"
        raise CheckpointError(f"{message}; the file was changed or damaged")


def _fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, tuple):
        return value is None and None in shape
    if isinstance(shape, set | frozenset):
        return isinstance(value, str) and value in shape
    if not isinstance(shape, type):
        return False
    if isinstance(value, int) and not isinstance(value, bool):
        return shape in (int, float) and abs(value) < _MOST
    if isinstance(value, float):
        return shape is float and math.isfinite(value)
    return isinstance(value, shape) and shape is not int


def _words(shape: Any) -> str:
    if isinstance(shape, tuple):
        return _words(next(alternative for alternative in shape if alternative is not None))
    if isinstance(shape, set | frozenset):
        return f"one of {', '.join(sorted(shape))}"
    return _WORDS[shape if isinstance(shape, type) else type(shape)]
