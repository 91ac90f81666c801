"""Rows to predict, read lazily; a row that cannot be used has its fault as a value.

Answers are optional, ids may repeat, and unknown labels count as missing.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorchestra.config.data import DataConfig
from lorchestra.data.files import check_fields, rows_of
from lorchestra.data.formats import stem
from lorchestra.data.in_memory import Entry, is_na
from lorchestra.data.readers.streams import FileRow
from lorchestra.data.row_reader import RowReader
from lorchestra.errors import DataError, InputError
from lorchestra.types import Example

logger = logging.getLogger(__name__)

_ROWS_TRIED = 100
"""The layout is that of the first of these rows in which one is recognized."""


@dataclass(frozen=True, slots=True)
class InputRow:
    """A row to predict: `number` counts from 1, `cells` are all its columns, and either `example` or `fault` is set.

    `kept` are the cells to repeat in its record: all except its id and choices, which the record has anyway.
    """

    number: int
    id: str
    example: Example | None
    fault: str | None
    cells: Mapping[str, object]
    kept: Mapping[str, object]


def read_input_rows(path: str | Path, config: DataConfig, labels: tuple[str, ...] | None) -> Iterator[InputRow]:
    """The rows of a file (see `formats.read_rows`), one at a time; assumptions about the file are logged.

    Args:
        path: what to read.
        config: how to read files, and the names of their columns.
        labels: the label set of the training rows, None for questions with choices.

    Raises:
        DataError: the file cannot be read, or none of its first rows has the required columns.
        ConfigError: two fields name the same column.
    """
    check_fields(config.fields)
    return _input_rows(rows_of(path, config, every_column=True, faults=True, note=logger.info), config, labels)


def input_rows(entries: Iterable[Entry], config: DataConfig, labels: tuple[str, ...] | None) -> Iterator[InputRow]:
    """Rows in memory (see `in_memory.entries_of`): examples, texts to label, or mappings of columns to cells.

    An iterator is read lazily, from its first entry.

    Raises:
        DataError: none of the first mappings has the required columns.
    """
    if isinstance(entries, Iterator):
        return _lazily(entries, config, labels)
    return _entry_rows(iter(entries), config, labels)


def _lazily(entries: Iterator[Entry], config: DataConfig, labels: tuple[str, ...] | None) -> Iterator[InputRow]:
    yield from _entry_rows(entries, config, labels)


def _entry_rows(remaining: Iterator[Entry], config: DataConfig, labels: tuple[str, ...] | None) -> Iterator[InputRow]:
    first = next(remaining, None)
    if first is None:
        return iter(())
    numbered = enumerate(itertools.chain([first], remaining), 1)
    if isinstance(first, Example):
        return (_example_row(entry, number) for number, entry in numbered)
    rows = (FileRow(number, _cells(entry, config.fields.text, number), "rows") for number, entry in numbered)
    return _input_rows(rows, config, labels)


def _example_row(entry: Entry, number: int) -> InputRow:
    if not isinstance(entry, Example):
        raise InputError(f"row {number} is {type(entry).__name__}, and earlier rows are examples; use one type")
    return InputRow(number, entry.id, entry, None, {"question": entry.question, "choices": entry.choices}, {})


def _cells(entry: Entry, column: str, number: int) -> dict[str, object]:
    if isinstance(entry, Mapping):
        return {str(name): _plain(cell) for name, cell in entry.items()}
    if not isinstance(entry, str):
        raise InputError(f"row {number} is {type(entry).__name__}, and earlier rows are not; use one type")
    return {column: entry}


def _input_rows(rows: Iterator[FileRow], config: DataConfig, labels: tuple[str, ...] | None) -> Iterator[InputRow]:
    """Reads now up to the first row with a recognized layout, and the others lazily."""
    tried: list[FileRow] = []
    reader = _reader(rows, tried, config, labels)
    if reader is not None and reader.layout.sentence is not None:
        logger.info(f"{tried[0].path}: {reader.layout.sentence}")
    return _read(itertools.chain(tried, rows), reader)


def _read(rows: Iterator[FileRow], reader: RowReader | None) -> Iterator[InputRow]:
    num_in_file: Counter[str] = Counter()
    for number, row in enumerate(rows, 1):
        num_in_file[row.path] += 1
        yield _input_row(row, number, num_in_file[row.path], reader)


def _plain(cell: object) -> object:
    """A cell as JSON: dates, decimals and bytes of Parquet files as text, missing values as None."""
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
    return None if is_na(cell) else str(cell)


def _reader(
    rows: Iterator[FileRow], tried: list[FileRow], config: DataConfig, labels: tuple[str, ...] | None
) -> RowReader | None:
    """A reader for the layout of the first row in which one is recognized; None if no row could be read at all.

    The rows that were taken for that are appended to `tried`: no more than necessary, since they may come slowly.
    """
    errors = []
    for row in itertools.islice(rows, _ROWS_TRIED):
        tried.append(row)
        if row.fault is not None:
            continue
        try:
            reader = RowReader.for_file(row, config, answers="lenient", labels=labels)
        except DataError as error:
            errors.append(error)
            continue
        if labels is None and reader.layout.form == "text":
            message = "rows with a text and no choices, but the task was trained on questions with choices"
            raise DataError(f"{row.path}: {message}; give each row a question and choices")
        return reader
    if errors:
        raise errors[0]
    return None


def _input_row(row: FileRow, number: int, number_in_file: int, reader: RowReader | None) -> InputRow:
    name = f"{stem(row.path)}-{number_in_file}"
    if row.fault is not None:
        return InputRow(number, name, None, str(row.fault), row.cells, row.cells)
    if reader is None:
        message = f"{row.where}: its columns are not known, since none of the first {_ROWS_TRIED} rows could be read"
        return InputRow(number, name, None, message, row.cells, row.cells)
    omitted = {*reader.layout.columns.get("id", ()), *reader.layout.columns.get("choices", ())}
    kept = {column: _plain(cell) for column, cell in row.cells.items() if column not in omitted}
    try:
        name = reader.id(row, number_in_file)
        return InputRow(number, name, reader.example(row, number_in_file), None, row.cells, kept)
    except DataError as error:
        return InputRow(number, name, None, str(error), row.cells, kept)
