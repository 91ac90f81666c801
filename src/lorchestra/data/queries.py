"""Rows to be answered: read as they are asked for, each by itself, with its fault in place of an error.

Answers are not needed, ids may repeat, and a label that the task does not have counts as none.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorchestra.config.data import DataConfig
from lorchestra.data.files import check_fields, rows_of
from lorchestra.data.formats import stem
from lorchestra.data.in_memory import is_missing
from lorchestra.data.readers.streams import FileRow
from lorchestra.data.row_reader import RowReader
from lorchestra.errors import DataError, InputError
from lorchestra.types import Example

logger = logging.getLogger(__name__)

_ROWS_TRIED = 100
"""Rows at the start of which one must show where question or text are; the others are faulty then."""


@dataclass(frozen=True, slots=True)
class QueryRow:
    """One row: `number` counts from 1, `cells` are all its columns, and either `example` or `fault` is set.

    `kept` are the cells that go into its answer: all but those that hold its id and choices, which an answer has too.
    """

    number: int
    id: str
    example: Example | None
    fault: str | None
    cells: Mapping[str, Any]
    kept: Mapping[str, Any]


def query_rows(path: str | Path, config: DataConfig, labels: tuple[str, ...] | None) -> Iterator[QueryRow]:
    """The rows of a file (see `formats.read_rows`), one at a time; what was assumed about it is logged.

    Args:
        path: what to read.
        config: how files are read, and the names of their columns.
        labels: the label set of the training rows, None where these brought their choices.

    Raises:
        DataError: the file cannot be read, or none of its first rows has the columns that are needed.
        ConfigError: two fields name the same column.
    """
    check_fields(config.fields)
    return _asked(rows_of(path, config, every_column=True, faults=True, note=logger.info), config, labels)


def query_values(
    values: Iterable[Example | str | Mapping[Any, Any]], config: DataConfig, labels: tuple[str, ...] | None
) -> Iterator[QueryRow]:
    """Rows that are in memory already (see `memory.entries_of`): examples, texts to label, or columns with cells.

    Of an iterator none is taken before the first is asked for.

    Raises:
        DataError: none of the first mappings has the columns that are needed.
    """
    if isinstance(values, Iterator):
        return _asked_later(values, config, labels)
    return _asked_values(iter(values), config, labels)


def _asked_later(
    values: Iterator[Example | str | Mapping[Any, Any]], config: DataConfig, labels: tuple[str, ...] | None
) -> Iterator[QueryRow]:
    yield from _asked_values(values, config, labels)


def _asked_values(
    remaining: Iterator[Example | str | Mapping[Any, Any]], config: DataConfig, labels: tuple[str, ...] | None
) -> Iterator[QueryRow]:
    first = next(remaining, None)
    if first is None:
        return iter(())
    all_of_them = enumerate(itertools.chain([first], remaining), 1)
    if isinstance(first, Example):
        return (_example(value, number) for number, value in all_of_them)
    rows = (FileRow(number, _cells(value, config.fields.text, number), "rows") for number, value in all_of_them)
    return _asked(rows, config, labels)


def _example(value: Any, number: int) -> QueryRow:
    if not isinstance(value, Example):
        raise InputError(f"row {number} is {type(value).__name__}, and those before are examples; give one kind")
    return QueryRow(number, value.id, value, None, {"question": value.question, "choices": value.choices}, {})


def _cells(value: Any, column: str, number: int) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {str(name): _plain(cell) for name, cell in value.items()}
    if not isinstance(value, str):
        raise InputError(f"row {number} is {type(value).__name__}, and those before are none; give one kind")
    return {column: value}


def _asked(rows: Iterator[FileRow], config: DataConfig, labels: tuple[str, ...] | None) -> Iterator[QueryRow]:
    """Looks at the first rows at once; the others are read as they are asked for."""
    tried = list(itertools.islice(rows, _ROWS_TRIED))
    if not tried:
        return iter(())
    reader = _reader(tried, config, labels)
    if reader is not None and reader.layout.sentence is not None:
        logger.info(f"{tried[0].path}: {reader.layout.sentence}")
    return _each(itertools.chain(tried, rows), reader)


def _each(rows: Iterator[FileRow], reader: RowReader | None) -> Iterator[QueryRow]:
    in_file: Counter[str] = Counter()
    for number, row in enumerate(rows, 1):
        in_file[row.path] += 1
        yield _one(row, number, in_file[row.path], reader)


def _plain(cell: Any) -> Any:
    """A cell as JSON has it: dates, decimals and bytes of Parquet files as texts, what is missing as None."""
    if cell is None or isinstance(cell, str | int):
        return cell
    if isinstance(cell, Mapping):
        return {str(name): _plain(value) for name, value in cell.items()}
    if isinstance(cell, list | tuple):
        return [_plain(value) for value in cell]
    if isinstance(cell, np.generic | np.ndarray):
        return _plain(cell.tolist())
    if isinstance(cell, float):
        return cell if math.isfinite(cell) else None
    return None if is_missing(cell) else str(cell)


def _reader(tried: list[FileRow], config: DataConfig, labels: tuple[str, ...] | None) -> RowReader | None:
    """The reader for the layout of the first row that has one; None where no row could be read at all."""
    errors = []
    for row in tried:
        if row.fault is not None:
            continue
        try:
            reader = RowReader.for_file(row, config, answers="lenient", labels=labels)
        except DataError as error:
            errors.append(error)
            continue
        if labels is None and reader.layout.form == "text":
            message = "rows with a text and no choices, but the task was trained on rows that bring their choices"
            raise DataError(f"{row.path}: {message}; give each row a question and choices")
        return reader
    if errors:
        raise errors[0]
    return None


def _one(row: FileRow, number: int, in_file: int, reader: RowReader | None) -> QueryRow:
    name = f"{stem(row.path)}-{in_file}"
    if reader is None or row.fault is not None:
        return QueryRow(number, name, None, str(row.fault), row.cells, row.cells)
    held = {*reader.layout.columns.get("id", ()), *reader.layout.columns.get("choices", ())}
    kept = {column: _plain(cell) for column, cell in row.cells.items() if column not in held}
    try:
        name = reader.id(row, in_file)
        return QueryRow(number, name, reader.example(row, in_file), None, row.cells, kept)
    except DataError as error:
        return QueryRow(number, name, None, str(error), row.cells, kept)
