"""Rows to predict, read lazily; a row that cannot be used has its fault as a value.

Answers are optional, ids may repeat, and unknown labels count as missing.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorchestra.config.data import DataConfig
from lorchestra.data.files import check_fields, rows_of
from lorchestra.data.formats import stem
from lorchestra.data.in_memory import Entry, plain_cell
from lorchestra.data.readers.streams import FileRow
from lorchestra.data.row_reader import RowReader
from lorchestra.data.typed_rows import TypedRowReader, typed_columns
from lorchestra.errors import DataError, InputError
from lorchestra.questions import Question
from lorchestra.types import Example

logger = logging.getLogger(__name__)

_ROWS_TRIED = 100
"""The layout is that of the first of these rows in which one is recognized."""


@dataclass(frozen=True, slots=True)
class InputRow:
    """A row to predict: `number` counts from 1, `cells` are all its columns, and either `example` or `fault` is set.

    `kept` are the cells to repeat in its record: all except its id and choices, which the record has anyway. A row with
    typed questions is as many of these in a row, one per question `asked`, with the same number; so a stream of them
    can be continued after any one.
    """

    number: int
    id: str
    example: Example | None
    fault: str | None
    cells: Mapping[str, object]
    kept: Mapping[str, object]
    asked: Question | None = None

    @property
    def question(self) -> str | None:
        """The name of its typed question."""
        return None if self.asked is None else self.asked.name


def digest_line(row: InputRow) -> bytes:
    """What a digest of rows has of each, to compare them with those of an earlier command."""
    return json.dumps([row.id, row.fault, row.cells], default=str).encode("ascii") + b"\n"


def read_input_rows(
    path: str | Path, config: DataConfig, labels: tuple[str, ...] | None, questions: tuple[Question, ...] = ()
) -> Iterator[InputRow]:
    """The rows of a file (see `formats.read_rows`), one at a time; assumptions about the file are logged.

    Args:
        path: what to read.
        config: how to read files, and the names of their columns.
        labels: the label set of the training rows, None for questions with choices.
        questions: the typed questions to ask of every row, if the training rows have them.

    Raises:
        DataError: the file cannot be read, or none of its first rows has the required columns.
        ConfigError: two fields name the same column.
    """
    check_fields(config.fields)
    verbatim = typed_columns(questions, config.fields) if questions else ()
    rows = rows_of(path, config, every_column=True, verbatim=verbatim, faults=True, note=logger.info)
    return _input_rows(rows, config, labels, questions)


def input_rows(
    entries: Iterable[Entry],
    config: DataConfig,
    labels: tuple[str, ...] | None,
    questions: tuple[Question, ...] = (),
) -> Iterator[InputRow]:
    """Rows in memory (see `in_memory.entries_of`): examples, texts to label or states, or mappings of columns to cells.

    An iterator is read lazily, from its first entry.

    Raises:
        DataError: none of the first mappings has the required columns.
    """
    if isinstance(entries, Iterator):
        return _lazily(entries, config, labels, questions)
    return _entry_rows(iter(entries), config, labels, questions)


def _lazily(
    entries: Iterator[Entry], config: DataConfig, labels: tuple[str, ...] | None, questions: tuple[Question, ...]
) -> Iterator[InputRow]:
    yield from _entry_rows(entries, config, labels, questions)


def _entry_rows(
    remaining: Iterator[Entry], config: DataConfig, labels: tuple[str, ...] | None, questions: tuple[Question, ...]
) -> Iterator[InputRow]:
    first = next(remaining, None)
    if first is None:
        return iter(())
    numbered = enumerate(itertools.chain([first], remaining), 1)
    if isinstance(first, Example):
        return (_example_row(entry, number, questions) for number, entry in numbered)
    rows = (FileRow(number, _cells(entry, config.fields.text, number), "rows") for number, entry in numbered)
    return _input_rows(rows, config, labels, questions)


def _example_row(entry: Entry, number: int, questions: tuple[Question, ...]) -> InputRow:
    if not isinstance(entry, Example):
        raise InputError(f"row {number} is {type(entry).__name__}, and earlier rows are examples; use one type")
    if questions and entry.asked not in questions:
        asked = "no typed question" if entry.asked is None else f"question {entry.asked.name!r}"
        names = ", ".join(question.name for question in questions[:12])
        raise InputError(f"row {number} asks {asked}, which the run was not trained on; it was trained on {names}")
    cells = {"question": entry.question, "choices": entry.choices}
    return InputRow(number, entry.id, entry, None, cells, {}, entry.asked)


def _cells(entry: Entry, column: str, number: int) -> dict[str, object]:
    if isinstance(entry, Mapping):
        return {str(name): plain_cell(cell) for name, cell in entry.items()}
    if not isinstance(entry, str):
        raise InputError(f"row {number} is {type(entry).__name__}, and earlier rows are not; use one type")
    return {column: entry}


def _input_rows(
    rows: Iterator[FileRow], config: DataConfig, labels: tuple[str, ...] | None, questions: tuple[Question, ...]
) -> Iterator[InputRow]:
    """Reads now up to the first row with a recognized layout, and the others lazily."""
    tried: list[FileRow] = []
    if questions:
        typed = TypedRowReader(config, questions, "lenient")
        _check_states(rows, tried, typed)
        return _read_typed(itertools.chain(tried, rows), typed)
    reader = _reader(rows, tried, config, labels)
    if reader is not None and reader.layout.sentence is not None:
        logger.info(f"{tried[0].path}: {reader.layout.sentence}")
    return _read(itertools.chain(tried, rows), reader)


def _check_states(rows: Iterator[FileRow], tried: list[FileRow], reader: TypedRowReader) -> None:
    """Refuse rows of which none of the first has the column of the state; those read for that go to `tried`."""
    errors = []
    for row in itertools.islice(rows, _ROWS_TRIED):
        tried.append(row)
        if row.fault is None:
            try:
                reader.state_columns(row)
                return
            except DataError as error:
                errors.append(error)
    if errors:
        raise errors[0]


def _read_typed(rows: Iterator[FileRow], reader: TypedRowReader) -> Iterator[InputRow]:
    num_in_file: Counter[str] = Counter()
    for number, row in enumerate(rows, 1):
        num_in_file[row.path] += 1
        yield from _typed_rows(row, number, num_in_file[row.path], reader)


def _typed_rows(row: FileRow, number: int, number_in_file: int, reader: TypedRowReader) -> Iterator[InputRow]:
    """A row with each of the questions; if it cannot be used, the fault is the same for all of them."""
    name, fault = f"{stem(row.path)}-{number_in_file}", row.fault
    examples: Sequence[Example | None] = [None] * len(reader.questions)
    if fault is None:
        try:
            name = reader.id(row, number_in_file)
            examples = reader.examples(row, name)
        except DataError as error:
            fault = error
    kept = {column: plain_cell(cell) for column, cell in row.cells.items() if column != reader.config.fields.id}
    for question, example in zip(reader.questions, examples, strict=True):
        reason = None if fault is None else str(fault)
        yield InputRow(number, f"{name}/{question.name}", example, reason, row.cells, kept, question)


def _read(rows: Iterator[FileRow], reader: RowReader | None) -> Iterator[InputRow]:
    num_in_file: Counter[str] = Counter()
    for number, row in enumerate(rows, 1):
        num_in_file[row.path] += 1
        yield _input_row(row, number, num_in_file[row.path], reader)


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
    kept = {column: plain_cell(cell) for column, cell in row.cells.items() if column not in omitted}
    try:
        name = reader.id(row, number_in_file)
        return InputRow(number, name, reader.example(row, number_in_file), None, row.cells, kept)
    except DataError as error:
        return InputRow(number, name, None, str(error), row.cells, kept)
