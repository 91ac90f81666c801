"""Task files: JSONL, gzipped JSONL, CSV and Parquet rows read as examples.

A row is a question with its own choices (`question`, `choices`, `answer`) or a text with a label (`text`, `label`);
the first row decides which for the whole file. Columns that no field names are ignored.
"""

from __future__ import annotations

import difflib
import reprlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lorchestra.data.config import FieldsConfig
from lorchestra.data.formats import Row, read_rows
from lorchestra.errors import ConfigError, DataError
from lorchestra.types import Example

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_Form = Literal["question", "text"]
_PARTS: dict[_Form, tuple[str, ...]] = {"question": ("question", "choices", "answer"), "text": ("text", "label")}

LONGEST_CHOICE = 100_000
"""Characters of a choice or label; it is tokenized with every prompt it may follow, and is never cut."""

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 60


@dataclass(frozen=True)
class TaskFile:
    """The rows of one file in file order.

    `labels` is the label set in order when the rows are texts with labels (every example's choices are then these),
    and None when every row brings its own choices. `warnings` are sentences for the user.
    """

    path: str
    examples: tuple[Example, ...]
    labels: tuple[str, ...] | None
    warnings: tuple[str, ...] = ()


def read_task_file(
    path: str | Path,
    fields: FieldsConfig,
    *,
    require_answer: bool,
    labels: tuple[str, ...] | None,
    ignore_answers: bool = False,
) -> TaskFile:
    """Read a `.jsonl`, `.jsonl.gz`, `.csv` or `.parquet` file.

    `labels` is None for a training file, and for any file of a task whose rows bring their own choices; for the other
    files of a task of texts with labels it is the label set of the training file. Without `require_answer` a missing
    answer is None; with `ignore_answers` (rows unlike the training rows) every answer is None, whatever the file says.

    Raises: DataError naming file and line (in Parquet: the row, from 1) where the file or a row cannot be used;
    ConfigError where two fields of a form name the same column.
    """
    _check_fields(fields)
    path = Path(path)
    rows = list(read_rows(path, fields))
    if not rows:
        raise DataError(f"{path}: the file has no rows; give it one example a row")
    reader = _Reader(path, fields, require_answer and not ignore_answers, ignore_answers, labels)
    form = reader.decide_form(rows[0])
    for row in rows:
        reader.check_form(row, form)
    ids = reader.ids(rows)
    if form == "question":
        examples = tuple(reader.question(row, name) for row, name in zip(rows, ids, strict=True))
        return TaskFile(str(path), examples, None, tuple(_equal_choices(examples)))
    found = [reader.label(row) for row in rows]
    known = reader.label_set(found)
    index = {label: position for position, label in enumerate(known)}
    examples = tuple(
        Example(name, reader.string(row, "text"), known, reader.label_index(row, label, index), reader.where(row))
        for row, name, label in zip(rows, ids, found, strict=True)
    )
    return TaskFile(str(path), examples, known, tuple(_like_labels(path, known)))


def _check_fields(fields: FieldsConfig) -> None:
    for parts in _PARTS.values():
        names = [getattr(fields, part) for part in parts]
        for part, name in zip(parts, names, strict=True):
            first = parts[names.index(name)]
            if first != part:
                message = f"data.fields.{first} and data.fields.{part} both name the column {_show(name)}"
                raise ConfigError(f"{message}; name two columns")


def _show(value: object) -> str:
    return _REPR.repr(value)


def _nearest(name: str, known: Iterable[str]) -> str | None:
    # Bounded lengths: a cell of a megabyte must not turn an error message into minutes of comparing.
    by_lower = {candidate[:100].lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name[:100].lower(), list(by_lower), n=1, cutoff=0.5)
    return by_lower[near[0]] if near else None


def _equal_choices(examples: Sequence[Example]) -> Iterable[str]:
    equal = [example.where for example in examples if len(set(example.choices)) < len(example.choices)]
    if equal:
        shown = ", ".join(equal[:5]) + (", ..." if len(equal) > 5 else "")
        yield f"{len(equal)} row(s) with two equal choices, which are scored alike: {shown}"


def _like_labels(path: Path, labels: tuple[str, ...]) -> Iterable[str]:
    seen: dict[str, str] = {}
    for label in labels:
        other = seen.setdefault(" ".join(label.lower().split()), label)
        if other != label:
            yield f"{path}: labels {_show(other)} and {_show(label)} differ only in case or spaces; are they one?"


@dataclass(frozen=True)
class _Reader:
    """Reads and checks the rows of one file."""

    path: Path
    fields: FieldsConfig
    require_answer: bool
    ignore_answers: bool
    labels: tuple[str, ...] | None

    def where(self, row: Row) -> str:
        return f"{self.path}:{row.line}"

    def error(self, row: Row, text: str) -> DataError:
        return DataError(f"{self.where(row)}: {text}")

    def column(self, part: str) -> str:
        return str(getattr(self.fields, part))

    def value(self, row: Row, part: str) -> Any:
        return row.cells.get(self.column(part))

    def decide_form(self, row: Row) -> _Form:
        """The form of the whole file, from the columns of its first row."""
        parts = [part for form in _PARTS.values() for part in form]
        has = {part for part in parts if self.value(row, part) is not None}
        has = has or {part for part in parts if self.column(part) in row.cells}
        questions = {"question", "choices"} <= has
        if self.labels is not None:
            if questions and "text" not in has:
                message = "the row brings its own choices, but the task's training rows are texts with labels"
                asked, text = self.column("question"), self.column("text")
                hint = f"to have {asked!r} read as the text, call it {text!r} in the file"
                raise self.error(row, f"{message}; {hint}")
            questions = False
        # Both columns of the text form win over a question, as the configuration documents.
        if "text" in has and ("label" in has or not questions):
            return "text"
        if not has:
            self._refuse_columns(row)
        return "text" if "label" in has and not has & {"question", "choices"} else "question"

    def _refuse_columns(self, row: Row) -> None:
        if "completion" in row.cells or "messages" in row.cells:
            message = (
                "free-text rows (prompt and completion, or messages) cannot be used, as nothing generates text yet"
            )
            raise self.error(row, f"{message}; give each row a question with choices, or a text with a label")
        hints = "".join(self._hint(row, part) for part in ("question", "choices", "text", "label"))
        message = 'no row form fits: a row has "question", "choices" and "answer", or "text" and "label"'
        raise self.error(row, f"{message}; columns found: {self._columns(row)}. {hints}Name them with --data.fields.")

    def _columns(self, row: Row) -> str:
        columns = list(row.cells)
        shown = ", ".join(map(_show, columns[:12])) + (", ..." if len(columns) > 12 else "")
        if len(columns) == 1 and any(mark in columns[0] for mark in ";\t|"):
            shown += " (commas must separate the cells)"
        return shown or "none"

    def _hint(self, row: Row, part: str) -> str:
        taken = set(asdict(self.fields).values())
        near = _nearest(self.column(part), [column for column in row.cells if column not in taken])
        return f"If {_show(near)} is the {part}: --data.fields.{part} {shlex.quote(near)}. " if near else ""

    def check_form(self, row: Row, form: _Form) -> None:
        """Refuse a row that is of the other form or lacks a column."""
        other: _Form = "text" if form == "question" else "question"
        if self.value(row, form) is None and all(self.value(row, part) is not None for part in _PARTS[other][:2]):
            raise self.error(row, f"a {other} row in a file that began with a {form} row; use one form a file")
        for part in _PARTS[form]:
            optional = part in ("answer", "label") and not self.require_answer
            if self.column(part) not in row.cells and not optional:
                hint = self._hint(row, part) or f"Name the column with --data.fields.{part}."
                message = f"no column {_show(self.column(part))}; columns found: {self._columns(row)}"
                raise self.error(row, f"{message}. {hint.strip()}")

    def ids(self, rows: Sequence[Row]) -> list[str]:
        """The rows' ids; the default is the file's stem and the row number from 1."""
        stem = self.path.name.removesuffix(".gz").rpartition(".")[0]
        lines: dict[str, int] = {}
        for number, row in enumerate(rows, 1):
            value = self.value(row, "id")
            if isinstance(value, bool) or not isinstance(value, str | int | None):
                raise self.error(row, f"the id is {_show(value)}; give a string or an integer, or leave it out")
            given = value is not None and bool(str(value).strip())
            name = self._clean(row, "id", str(value)) if given else f"{stem}-{number}"
            if name in lines:
                raise self.error(row, f"id {_show(name)} was already that of line {lines[name]}; make the ids unique")
            lines[name] = row.line
        return list(lines)

    def _clean(self, row: Row, part: str, text: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError:
            message = f"the {part} {_show(text)} holds half of a surrogate pair, which is no character"
            raise self.error(row, f"{message}; mend the escape") from None
        return text

    def _short(self, row: Row, part: str, text: str) -> str:
        if len(text) > LONGEST_CHOICE:
            message = f"the {part} {_show(text)} has {len(text):,} characters, over {LONGEST_CHOICE:,}"
            raise self.error(row, f"{message}; shorten it or leave the row out")
        return self._clean(row, part, text)

    def string(self, row: Row, part: str) -> str:
        value = self.value(row, part)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise self.error(row, f"the {part} is empty; fill it in or leave the row out")
        if not isinstance(value, str):
            raise self.error(row, f"the {part} is {_show(value)}, which is not a string; write it as one")
        return self._clean(row, part, value)

    def question(self, row: Row, name: str) -> Example:
        question, choices = self.string(row, "question"), self._choices(row)
        return Example(name, question, choices, self._answer(row, choices), self.where(row))

    def _choices(self, row: Row) -> tuple[str, ...]:
        value = self.value(row, "choices")
        if not isinstance(value, list):
            hint = ', in a CSV cell as JSON: ["red", "blue"]' if self.path.suffix.lower() == ".csv" else ""
            raise self.error(row, f"the choices are {_show(value)}; give a list of strings{hint}")
        for index, choice in enumerate(value):
            if not isinstance(choice, str):
                raise self.error(row, f"choice {index} is {_show(choice)}, which is not a string; write it as one")
            if not choice.strip():
                raise self.error(row, f"choice {index} is empty; fill it in or leave it out")
            self._short(row, f"choice {index}", choice)
        if len(value) < 2:
            raise self.error(row, f"the choices are {_show(value)}; a question needs at least two")
        return tuple(value)

    def _answer(self, row: Row, choices: tuple[str, ...]) -> int | None:
        value = None if self.ignore_answers else self.value(row, "answer")
        last = len(choices) - 1
        if value is None:
            if self.require_answer:
                raise self.error(row, f"the answer is missing; give the right choice's index, 0 to {last}")
            return None
        if isinstance(value, int) and not isinstance(value, bool):
            if 0 <= value <= last:
                return value
            hint = "; indices count from 0" if value == last + 1 else ""
            raise self.error(row, f"the answer is {_show(value)}; {last + 1} choices have indices 0 to {last}{hint}")
        hint = f"give the right choice's index, an integer from 0 to {last}"
        if isinstance(value, str) and value in choices:
            hint = f"that is a choice's text: give its index, {choices.index(value)}"
        elif isinstance(value, str) and value.strip().upper() in tuple(_LETTERS[: last + 1]):
            hint = f"give the letter's index, {_LETTERS.index(value.strip().upper())} (A is 0, B is 1, and so on)"
        elif isinstance(value, float) and value.is_integer():
            hint = f"give the integer, {int(value)}"
        raise self.error(row, f"the answer is {_show(value)}; {hint}")

    def label(self, row: Row) -> str | None:
        """The row's label as a string, None where there is none."""
        value = None if self.ignore_answers else self.value(row, "label")
        if value is None and not self.require_answer:
            return None
        if value is None or (isinstance(value, str) and not value.strip()):
            raise self.error(row, "the label is empty; fill it in or leave the row out")
        if isinstance(value, list | tuple | dict):
            raise self.error(row, f"the label is {_show(value)}; several labels a row cannot be learned: give one")
        if isinstance(value, float):
            message = f"the label is {_show(value)}; regression (and NaN for a missing label) is not possible"
            raise self.error(row, f"{message}: give classes as words or integers")
        if not isinstance(value, str | int):
            raise self.error(row, f"the label is {_show(value)}; give a string or an integer")
        return self._short(row, "label", str(value))

    def label_set(self, found: Sequence[str | None]) -> tuple[str, ...]:
        if self.labels is not None:
            return self.labels
        if not self.require_answer:
            message = "rows with a text and no choices, but the task was trained on rows that bring their own choices"
            raise DataError(f"{self.path}: {message}; give each row a question and choices")
        labels = tuple(sorted({label for label in found if label is not None}))
        if len(labels) < 2:
            raise DataError(f"{self.path}: every label is {_show(labels[0])}; at least two different ones are needed")
        return labels

    def label_index(self, row: Row, label: str | None, index: Mapping[str, int]) -> int | None:
        if label is not None and label not in index:
            near = _nearest(label, index)
            hint = f"the nearest is {_show(near)}" if near else f"known are {', '.join(map(_show, list(index)[:12]))}"
            message = f"label {_show(label)} was not in the training file"
            raise self.error(row, f"{message}; {hint}; correct it, or add rows with it to the training file")
        return None if label is None else index[label]
