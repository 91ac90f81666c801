"""Texts, rows and labels from Python objects instead of files."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np

from lorchestra.data.formats import SUFFIXES
from lorchestra.data.readers.remote import is_url
from lorchestra.errors import InputError
from lorchestra.types import Example

Entry: TypeAlias = Example | str | Mapping[str, object]
"""A row in memory: an example, a text, or cells by column."""

_ROWS = "texts, dicts, a DataFrame, a Series, a Dataset or examples"


def texts_of(X: Iterable[object]) -> list[str]:
    """The strings in X, a list, array or Series.

    Raises:
        InputError: X is one string, has two axes, or an entry is not text.
    """
    if isinstance(X, str | bytes):
        raise InputError("X is one string; pass a list of texts")
    if getattr(X, "ndim", 1) != 1:
        raise InputError(
            f"X has shape {tuple(getattr(X, 'shape', ()))}; pass one axis of texts: a list, an array or a column"
        )
    try:
        texts = list(X)
    except TypeError as error:
        raise InputError(f"X is of type {type(X).__name__}; pass a list of texts") from error
    if not texts:
        raise InputError("Found array with 0 sample(s): X has no texts; a minimum of 1 is required")
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"X[{i}] is {text!r:.60}, which is not text; pass non-empty strings")
    return [str(text) for text in texts]


def is_file(rows: object) -> bool:
    """Whether `rows` is the name of a file.

    Raises:
        InputError: it is a string that is not the name of a file, and so probably meant as a text.
    """
    if isinstance(rows, bytes):
        raise InputError("rows is one string of bytes; pass a list of texts")
    if not isinstance(rows, str):
        return isinstance(rows, Path)
    if rows.lower().endswith(SUFFIXES) or is_url(rows) or _exists(rows):
        return True
    raise InputError(f"{rows!r:.80} is one string and not the name of a file; for a single text, pass a list: [text]")


def _exists(name: str) -> bool:
    try:
        return os.path.lexists(name)
    except (OSError, ValueError):  # longer than any name, or with a null
        return False


def entries_of(rows: object, labels: tuple[str, ...] | None, *, typed: bool = False) -> Iterable[Entry]:
    """The rows of any supported container, each a text, a dict or an example; their values are not checked.

    Args:
        rows: a list, array, Series or other iterable of texts, dicts or examples; a DataFrame (pandas, polars), a Table
            (pyarrow) or a Dataset (datasets). An iterator is read lazily.
        labels: the label set of the training rows, None for questions with choices.
        typed: whether the training rows have typed questions, so that a text is a state.

    Raises:
        InputError: it has no rows, or a row is neither a text, a dict nor an example.
    """
    if isinstance(rows, Iterator):
        return (_entry(row, i, typed or labels is not None) for i, row in enumerate(rows))
    return [_entry(row, i, typed or labels is not None) for i, row in enumerate(_listed(rows))]


def _entry(row: object, i: int, texts: bool) -> Entry:
    if isinstance(row, str) and not texts:
        raise InputError(
            f"rows[{i}] is a text, but the training rows were questions with choices; pass dicts with both, as"
            ' {"question": ..., "choices": [...]}'
        )
    if not isinstance(row, Example | str | Mapping):
        kind = "a text or a dict" if texts else "a dict"
        raise InputError(f"rows[{i}] is {row!r:.60}; pass {kind}")
    return row


def _listed(rows: object) -> list[object]:
    if isinstance(rows, Mapping):
        raise InputError("rows is one dict; pass a list of rows: [row]")
    shape = getattr(rows, "shape", None)
    if shape is not None and len(shape) == 2:
        if hasattr(rows, "iloc") and hasattr(rows, "to_dict"):  # pandas
            return list(rows.to_dict(orient="records"))
        for method in ("to_dicts", "to_pylist"):  # polars, pyarrow
            if hasattr(rows, method):
                return list(getattr(rows, method)())
    if shape is not None and len(shape) != 1 and not hasattr(rows, "column_names"):
        raise InputError(f"rows has shape {tuple(shape)}; pass one axis of texts")
    try:
        return list(cast("Iterable[object]", rows))
    except TypeError as error:
        raise InputError(f"rows is of type {type(rows).__name__}; pass {_ROWS}") from error


def plain_labels(y: object) -> object:
    """The checked labels y; columns of other libraries (pandas, polars) become arrays of Python values.

    So integers stay integers, while NumPy would convert a nullable column of them to floats.

    Raises:
        InputError: a label is missing, or text and other types are mixed.
    """
    if getattr(y, "ndim", 1) != 1 or isinstance(y, str | bytes) or not isinstance(y, Iterable):
        return y
    labels = list(y.tolist()) if hasattr(y, "tolist") else list(y)
    missing = next((i for i, label in enumerate(labels) if is_na(label)), None)
    if missing is not None:
        raise InputError(f"y[{missing}] is missing ({labels[missing]!r}); leave such rows out")
    kinds = sorted({type(label).__name__ for label in labels})
    if "str" in kinds and len(kinds) > 1:
        raise InputError(f"y mixes {' and '.join(kinds)}; pass labels of one type")
    if not hasattr(y, "dtype"):
        return labels
    return y if isinstance(y.dtype, np.dtype) else np.asarray(labels, dtype=object if "str" in kinds else None)


def is_na(value: object) -> bool:
    """Whether a cell is empty: None, NaN, or pandas' NA and NaT, whose comparisons are neither true nor false."""
    is_na = type(value).__name__ in ("NAType", "NaTType")
    return value is None or is_na or (isinstance(value, float) and value != value)


def plain_cell(cell: object) -> object:
    """A cell as JSON: dates, decimals and bytes of Parquet files as text, missing values as None."""
    if cell is None or isinstance(cell, str | int):
        return cell
    if isinstance(cell, Mapping):
        return {str(name): plain_cell(value) for name, value in cell.items()}
    if isinstance(cell, list | tuple):
        return [plain_cell(value) for value in cell]
    if isinstance(cell, np.generic | np.ndarray):
        return plain_cell(cell.tolist())
    if isinstance(cell, float):
        return cell if math.isfinite(cell) else None
    return None if is_na(cell) else str(cell)
