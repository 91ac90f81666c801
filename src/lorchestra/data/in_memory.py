"""Texts, rows and labels that come from Python objects and not from files, read in one way for all that take them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lorchestra.data.formats import SUFFIXES
from lorchestra.errors import InputError
from lorchestra.types import Example

_ROWS = "texts, dicts, a DataFrame, a Series, a Dataset or examples"


def texts_of(X: Any) -> list[str]:
    """X, a list, array or Series of strings, as a list of them.

    Raises:
        InputError: it is one string, has two axes, or an entry is no text.
    """
    if isinstance(X, str | bytes):
        raise InputError("X is one string; give a list of texts")
    if getattr(X, "ndim", 1) != 1:
        raise InputError(f"X has shape {tuple(X.shape)}; give one axis of texts: a list, an array or a column")
    try:
        texts = list(X)
    except TypeError as error:
        raise InputError(f"X is of type {type(X).__name__}; give a list of texts") from error
    if not texts:
        raise InputError("Found array with 0 sample(s): X holds no texts; a minimum of 1 is required")
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"X[{i}] is {text!r:.60}, which is no text; give non-empty strings")
    return [str(text) for text in texts]


def is_file(rows: Any) -> bool:
    """Whether `rows` names a file.

    Raises:
        InputError: it is one string that names none, and so was probably meant as a text.
    """
    if isinstance(rows, bytes):
        raise InputError("rows is one string of bytes; give a list of texts")
    if not isinstance(rows, str):
        return isinstance(rows, Path)
    if rows.lower().endswith(SUFFIXES) or _exists(rows):
        return True
    raise InputError(f"{rows!r:.80} is one string and names no file; to answer one text, give a list: [text]")


def _exists(name: str) -> bool:
    try:
        return os.path.lexists(name)
    except (OSError, ValueError):  # longer than any name, or with a null
        return False


def entries_of(rows: Any, labels: tuple[str, ...] | None) -> Iterable[Example | str | Mapping[Any, Any]]:
    """The rows of whatever holds them, each a text, a dict or an example; what is in them is not looked at yet.

    Args:
        rows: a list, array, Series or other iterable of texts, dicts or examples; a DataFrame (pandas, polars), a Table
            (pyarrow) or a Dataset (datasets). An iterator is not read yet.
        labels: the label set of the training rows, None for questions that bring their choices.

    Raises:
        InputError: it holds no rows, or names the row that is neither of the three.
    """
    if isinstance(rows, Iterator):
        return (_entry(row, i, labels) for i, row in enumerate(rows))
    return [_entry(row, i, labels) for i, row in enumerate(_listed(rows))]


def _entry(row: Any, i: int, labels: tuple[str, ...] | None) -> Example | str | Mapping[Any, Any]:
    if isinstance(row, str) and labels is None:
        raise InputError(
            f"rows[{i}] is a text, but the training rows were questions with choices; give dicts with both, as"
            ' {"question": ..., "choices": [...]}'
        )
    if not isinstance(row, Example | str | Mapping):
        kind = "a text or a dict" if labels is not None else "a dict"
        raise InputError(f"rows[{i}] is {row!r:.60}; give {kind}")
    return row


def _listed(rows: Any) -> list[Any]:
    if isinstance(rows, Mapping):
        raise InputError("rows is one dict; give a list of rows: [row]")
    if len(getattr(rows, "shape", ())) == 2:
        if hasattr(rows, "iloc"):  # pandas
            return list(rows.to_dict(orient="records"))
        for method in ("to_dicts", "to_pylist"):  # polars, pyarrow
            if hasattr(rows, method):
                return list(getattr(rows, method)())
    if len(getattr(rows, "shape", (0,))) != 1 and not hasattr(rows, "column_names"):
        raise InputError(f"rows has shape {tuple(rows.shape)}; give one axis of texts")
    try:
        return list(rows)
    except TypeError as error:
        raise InputError(f"rows is of type {type(rows).__name__}; give {_ROWS}") from error


def plain_labels(y: Any) -> Any:
    """y, checked; of a library's types of columns (pandas, polars) as an array of Python's values.

    So whole numbers stay whole numbers, which NumPy would read as floats where a column could also hold none.

    Raises:
        InputError: a label is missing, or text and other types are mixed.
    """
    if getattr(y, "ndim", 1) != 1 or isinstance(y, str | bytes) or not hasattr(y, "__iter__"):
        return y
    labels = list(y.tolist()) if hasattr(y, "tolist") else list(y)
    missing = next((i for i, label in enumerate(labels) if is_missing(label)), None)
    if missing is not None:
        raise InputError(f"y[{missing}] is missing ({labels[missing]!r}); leave such rows out")
    kinds = sorted({type(label).__name__ for label in labels})
    if "str" in kinds and len(kinds) > 1:
        raise InputError(f"y mixes {' and '.join(kinds)}; give labels of one type")
    if not hasattr(y, "dtype"):
        return labels
    return y if isinstance(y.dtype, np.dtype) else np.asarray(labels, dtype=object if "str" in kinds else None)


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: None, NaN, or pandas' NA and NaT, whose comparisons give neither true nor false."""
    is_na = type(value).__name__ in ("NAType", "NaTType")
    return value is None or is_na or (isinstance(value, float) and value != value)
