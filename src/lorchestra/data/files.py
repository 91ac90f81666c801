"""Task files: the rows of a file, directory or pattern as examples.

A row is a question with choices (`question`, `choices`, `answer`) or a text with a label (`text`, `label`); the first
row determines which for the whole file. Other columns are ignored.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorchestra.config.data import DataConfig, FieldsConfig
from lorchestra.data.answers import GivenAnswer, is_no_label, read_answers
from lorchestra.data.formats import read_rows
from lorchestra.data.labels import LabelCensus, contradictions
from lorchestra.data.layouts import PARTS, show, used_columns
from lorchestra.data.readers.streams import FileRow, ReadOptions, shown_path
from lorchestra.data.row_reader import Answers, RowReader
from lorchestra.errors import ConfigError, DataError
from lorchestra.questions import Question
from lorchestra.types import Example

logger = logging.getLogger(__name__)

_ROWS_PER_MESSAGE, _SECONDS_PER_MESSAGE = 100_000, 5.0


@dataclass(frozen=True)
class TaskFile:
    """The rows of one file, in its order.

    `labels` is the label set in order if the rows are texts with labels (then the choices of every example), and None
    for questions with choices and typed `questions`. `warnings` are sentences about possible mistakes, `notes` about
    how the file was read.
    """

    path: str
    examples: tuple[Example, ...]
    labels: tuple[str, ...] | None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()


def read_task_file(
    path: str | Path,
    config: DataConfig,
    *,
    require_answer: bool,
    labels: tuple[str, ...] | None,
    ignore_answers: bool = False,
) -> TaskFile:
    """Read the rows of a file, directory or pattern (see `formats.read_rows`).

    `labels` is the label set of the training file if this is another file of a task of texts with labels, else None.
    Without `require_answer`, a missing answer is None; with `ignore_answers` (OOD rows), every answer is None.

    Raises: DataError naming file and line (in Parquet: the row, from 1) if the file or a row cannot be used;
    ConfigError if two fields of a form name the same column.
    """
    check_fields(config.fields)
    answers: Answers = "ignored" if ignore_answers else "required" if require_answer else "optional"
    notes: list[str] = []
    rows = with_progress(rows_of(path, config, note=notes.append), path)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path}: the file has no rows; it needs one example per row")
    reader = RowReader.for_file(first, config, answers=answers, labels=labels)
    if reader.layout.sentence is not None:
        notes.append(f"{path}: {reader.layout.sentence}")
    examples = _ExampleReader(str(path), reader, notes)
    all_rows = itertools.chain([first], rows)
    return examples.questions(all_rows) if reader.layout.form == "question" else examples.texts(all_rows)


def rows_of(
    path: str | Path,
    config: DataConfig,
    *,
    every_column: bool = False,
    verbatim: Collection[str] = (),
    faults: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[FileRow]:
    """The rows of a file, read as configured, one at a time (see `formats.read_rows`).

    With `every_column`, all cells of Parquet and Arrow files are read; without, those of columns that may be used. The
    columns `verbatim` always are, and their cells stay text in CSV files.

    Raises: DataError, ConfigError: as `formats.read_rows`.
    """
    read = config.read
    options = ReadOptions(read.encoding, read.format, read.delimiter_mark, label_names=read.rules > 1)
    fields = config.fields

    def columns(names: list[str]) -> Iterable[str]:
        return names if every_column else {*used_columns(fields, names), *verbatim}

    return read_rows(path, fields, options, verbatim=verbatim, columns=columns, faults=faults, note=note)


def check_fields(fields: FieldsConfig) -> None:
    """Refuse two parts of a form with the same column.

    Raises: ConfigError.
    """
    for parts in PARTS.values():
        names = [getattr(fields, part) for part in parts]
        for part, name in zip(parts, names, strict=True):
            first = parts[names.index(name)]
            if first != part:
                message = f"data.fields.{first} and data.fields.{part} are both the column {show(name)}"
                raise ConfigError(f"{message}; name two different columns")


def with_progress(rows: Iterable[FileRow], path: str | Path) -> Iterator[FileRow]:
    """The rows, with their number so far logged from time to time."""
    last = time.monotonic()
    for number, row in enumerate(rows, 1):
        yield row
        if number % 1000 == 0:
            now = time.monotonic()
            if number % _ROWS_PER_MESSAGE == 0 or now - last > _SECONDS_PER_MESSAGE:
                last = now
                logger.info(f"reading {shown_path(path)}: {number:,} rows")


class RowIds:
    """The unique ids of a file's rows; `row_id` gives a row's id, by its number within its file."""

    def __init__(self, row_id: Callable[[FileRow, int], str]) -> None:
        self.row_id = row_id
        self.lines: dict[str, tuple[str, int]] = {}
        self.numbers: Counter[str] = Counter()

    def of(self, row: FileRow) -> str:
        """The id of the next row.

        Raises: DataError if an earlier row has it.
        """
        self.numbers[row.path] += 1
        name = self.row_id(row, self.numbers[row.path])
        if name in self.lines:
            path, line = self.lines[name]
            first = f"line {line}" if path == row.path else f"line {line} of {path}"
            raise DataError(f"{row.where}: id {show(name)} is already used by {first}; make the ids unique")
        self.lines[name] = (row.path, row.line)
        return name


@dataclass(frozen=True)
class _ExampleReader:
    """Reads the rows of a file as examples."""

    path: str
    reader: RowReader
    notes: list[str]

    def questions(self, rows: Iterable[FileRow]) -> TaskFile:
        ids, read, dropped, missing = RowIds(self.reader.id), [], 0, _Missing(self.path, "answer")
        for row in rows:
            self.reader.check(row)
            name = ids.of(row)
            if self._dropped(row, "answer"):
                dropped += 1
                continue
            try:
                read.append((name, *self.reader.question(row)))
                missing.seen += 1
            except DataError as error:
                missing.add(error, self.reader.value(row, "answer"))
        missing.check()
        warnings = self._drops(dropped, "answer", len(read))
        answered = [given for _, _, given in read if given.value is not None]
        indices: Iterator[int] = iter(())
        if answered:
            answers, _ = read_answers(answered, self.reader.config.read.answer_as, self.notes.append, self.path)
            indices = iter(answers)
        examples = tuple(
            Example(name, question, given.choices, self._next(given, indices), given.where)
            for name, question, given in read
        )
        warnings += list(_equal_choices(examples))
        if self.reader.answers == "required":
            rows_with = ((f"{e.question}\n{sorted(e.choices)}", e.choices[e.answer or 0], e.where) for e in examples)
            warnings += contradictions(rows_with, self.path, "answer")
        return TaskFile(self.path, examples, None, tuple(warnings), tuple(self.notes))

    @staticmethod
    def _next(given: GivenAnswer, indices: Iterator[int]) -> int | None:
        return None if given.value is None else next(indices)

    def texts(self, rows: Iterable[FileRow]) -> TaskFile:
        reader, ids = self.reader, RowIds(self.reader.id)
        census, missing, dropped = LabelCensus(self.path), _Missing(self.path, "label"), 0
        read: list[tuple[str, str, str | None, FileRow]] = []
        labels = reader.layout.columns.get("label", ())
        for row in rows:
            reader.check(row)
            name = ids.of(row)
            if self._dropped(row, "label"):
                dropped += 1
                continue
            try:
                raw = reader.label(row)
            except DataError as error:
                missing.add(error, reader.value(row, "label"))
                continue
            missing.seen += 1
            label = None if raw is None else reader.rules.spelled(raw)
            if raw is not None and not label:
                raise reader.error(row, f"the label {show(raw)} has no visible characters; fill it in")
            if raw is not None and label is not None:
                others = (cell for column, cell in row.cells.items() if column not in labels)
                census.add(raw, label, row.where, others)
            # without the cells, which would fill memory if there are a million rows
            read.append((name, reader.string(row, "text"), label, FileRow(row.line, {}, row.path)))
        missing.check()
        warnings = self._drops(dropped, "label", len(read))
        known, mapped = self._label_set(census)
        index = {label: position for position, label in enumerate(known)}
        examples = tuple(
            Example(
                name, text, known, reader.label_index(row, None if label is None else mapped[label], index), row.where
            )
            for name, text, label, row in read
        )
        if reader.answers == "required" and reader.labels is None:
            self.notes.extend((census.summary(known, mapped), *census.changes(mapped)))
            warnings += census.remarks(known, mapped)
            warnings += self._unused_names(census)
        if reader.answers == "required":
            pairs = ((e.question, known[e.answer or 0], e.where) for e in examples)
            warnings += contradictions(pairs, self.path, "label")
        return TaskFile(self.path, examples, known, tuple(warnings), tuple(self.notes))

    def _label_set(self, census: LabelCensus) -> tuple[tuple[str, ...], dict[str, str]]:
        if self.reader.labels is None and self.reader.answers != "required":
            message = "rows with a text and no choices, but the task was trained on questions with choices"
            raise DataError(f"{self.path}: {message}; give each row a question and choices")
        known, mapped = self.reader.rules.label_set(census.counts)
        if len(known) < 2:
            every = show(known[0]) if known else "missing"
            raise DataError(f"{self.path}: every label is {every}; at least two different labels are needed")
        return known, mapped

    def _unused_names(self, census: LabelCensus) -> Iterator[str]:
        unused = [label for label in self.reader.rules.names if label not in census.counts]
        if unused:
            yield f"{self.path}: no row has the label(s) {', '.join(map(show, unused))} of --data.label-names"

    def _dropped(self, row: FileRow, part: str) -> bool:
        """Whether the row has no label or answer, and such rows are dropped."""
        reader = self.reader
        if not reader.config.read.drop_unlabeled or reader.answers != "required":
            return False
        value = reader.value(row, part)
        known = {*(reader.labels or ()), *reader.rules.names}
        return is_no_label(value) and str(value).strip() not in known

    def _drops(self, dropped: int, part: str, kept: int) -> list[str]:
        if dropped and not kept:
            raise DataError(f"{self.path}: no row has {'an' if part == 'answer' else 'a'} {part}; no rows are left")
        warning = f"{self.path}: {dropped:,} row(s) without {part} are left out (--data.drop-unlabeled)"
        return [warning] if dropped else []


class _Missing:
    """Counts the rows whose label or answer is missing, for one error about all of them."""

    def __init__(self, path: str, part: str) -> None:
        self.path, self.part = path, part
        self.first: DataError | None = None
        self.seen = self.count = 0

    def add(self, error: DataError, value: object) -> None:
        if not is_no_label(value) or f"the {self.part} is" not in str(error):
            raise error
        self.first = self.first or error
        self.count += 1

    def check(self) -> None:
        if self.first is not None:
            message = f"{self.count:,} of {self.count + self.seen:,} rows have no {self.part}"
            raise DataError(f"{self.first}; {message}: --data.drop-unlabeled leaves them out")


def _equal_choices(examples: Sequence[Example]) -> Iterable[str]:
    equal = [example.where for example in examples if len(set(example.choices)) < len(example.choices)]
    if equal:
        shown = ", ".join(equal[:5]) + (", ..." if len(equal) > 5 else "")
        yield f"{len(equal)} row(s) with two equal choices, which get the same score: {shown}"
