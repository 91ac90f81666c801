"""Rows with typed questions: a state in one column, and a column per question; or `{"state", "answers": {...}}`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorchestra.config.data import DataConfig, FieldsConfig
from lorchestra.data.answers import is_missing
from lorchestra.data.in_memory import is_na, plain_cell
from lorchestra.data.layouts import Layout, named_columns, nearest, show, shown_columns
from lorchestra.data.readers.streams import FileRow
from lorchestra.data.row_reader import Answers, clean_text, row_id
from lorchestra.data.states import state_text
from lorchestra.errors import ConfigError, DataError, did_you_mean
from lorchestra.questions import Question
from lorchestra.types import Example

STATE, ANSWERS = "state", "answers"
"""Columns of a row with its state, and with an object of its answers by question."""

_INTEGER = re.compile(r"\s*([+-]?\d{1,18})(?:\.0*)?\s*")
_TRUTH = {"true": 1, "false": 0, "yes": 1, "no": 0}
_SHOWN = 12


def answer_index(question: Question, value: object) -> int | None:
    """The index of the option that a value names; None if it names none.

    A choice or level is named by its text, with or without blanks around it. A level is also named by its index from 0,
    unless one of the levels is an integer itself. A predicate is true, false, yes, no, 1 or 0 in any case.
    """
    if question.type == "predicate":
        return _truth(value)
    names = [option.strip() for option in question.options]
    index = next((names.index(text) for text in _spellings(value) if text in names), None)
    if index is None and question.type == "score" and not has_integers(question):
        position = _integer(value)
        return position if position is not None and 0 <= position < len(names) else None
    return index


def has_integers(question: Question) -> bool:
    """Whether an option is an integer as text, so that an integer may be its name."""
    return any(_INTEGER.fullmatch(option) for option in question.options)


def _truth(value: object) -> int | None:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str) and value.strip().casefold() in _TRUTH:
        return _TRUTH[value.strip().casefold()]
    number = _integer(value)
    return number if number in (0, 1) else None


def _spellings(value: object) -> list[str]:
    """The texts that may be meant by a value; a column of integers with gaps has floats in other formats than CSV."""
    if isinstance(value, str):
        return [value.strip()]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return []
    return [str(value), str(int(value))] if isinstance(value, float) and value.is_integer() else [str(value)]


def _integer(value: object) -> int | None:
    if isinstance(value, str):
        match = _INTEGER.fullmatch(value)
        return None if match is None else int(match[1])
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if isinstance(value, int) or value.is_integer() else None


def check_question_names(questions: Sequence[Question], fields: FieldsConfig) -> None:
    """Refuse questions that have the name of another column.

    Raises:
        ConfigError: names the question and the column.
    """
    texts = {fields.text, *(piece.strip() for piece in fields.text.split(","))}
    columns = {**dict.fromkeys(texts, "state"), STATE: "state", ANSWERS: "answers", fields.id: "id"}
    for question in questions:
        if question.name in columns:
            message = f"question {show(question.name)} has the name of the column with the {columns[question.name]}"
            raise ConfigError(f"{message}; rename the question, or the column with --data.fields")


def typed_columns(questions: Sequence[Question], fields: FieldsConfig) -> frozenset[str]:
    """The columns of rows with typed questions, whose cells are read as they are written; ids are not among them."""
    texts = {fields.text, *(piece.strip() for piece in fields.text.split(","))}
    return frozenset({*texts, STATE, ANSWERS, *(question.name for question in questions)})


@dataclass(frozen=True)
class TypedRowReader:
    """Reads rows as one example per question, in the order of the questions.

    Raises:
        ConfigError: a question has the name of another column.
    """

    config: DataConfig
    questions: tuple[Question, ...]
    answers: Answers

    def __post_init__(self) -> None:
        """Check the questions' names."""
        check_question_names(self.questions, self.config.fields)

    def examples(self, row: FileRow, name: str) -> tuple[Example, ...]:
        """The row's state with every question; unanswered ones have no answer. `name` is the row's id.

        Raises:
            DataError: the state or an answer cannot be used.
        """
        state, given = self.state(row), self.given(row)
        return tuple(
            Example(
                f"{name}/{question.name}",
                state,
                question.options,
                self._answer(row, question, given.get(question.name)),
                row.where,
                question,
            )
            for question in self.questions
        )

    def id(self, row: FileRow, number: int) -> str:
        """A row's id; the default is the file's stem and the row's number.

        Raises:
            DataError: it is neither a string nor an integer.
        """
        return row_id(row, row.cells.get(self.config.fields.id), number)

    def state(self, row: FileRow) -> str:
        """The row's state as text.

        Raises:
            DataError: it is missing or empty, or neither text nor a JSON object or array.
        """
        columns = self.state_columns(row)
        value = plain_cell(Layout("text", {"text": columns}).value(row, "text"))
        name = show(",".join(columns))
        if is_missing(value):
            raise DataError(f"{row.where}: the state ({name}) is empty; fill it in or leave the row out")
        if not isinstance(value, str | Mapping | list):
            message = f"{row.where}: the state ({name}) is {show(value)}, neither text nor a JSON object or array"
            raise DataError(f"{message}; write it as text")
        return clean_text(row, "state", state_text(value))

    def state_columns(self, row: FileRow) -> tuple[str, ...]:
        """The column of the row's state, or several that are joined.

        Raises:
            DataError: it has none.
        """
        fields = self.config.fields
        columns = named_columns(fields, "text", row.cells) or ((STATE,) if STATE in row.cells else ())
        if not columns:
            names = {question.name for question in self.questions}
            near = nearest(fields.text, [column for column in row.cells if column not in names])
            hint = f"; if {show(near)} is the state: --data.fields.text {near}" if near else ""
            message = f"{row.where}: no column {show(fields.text)} or {show(STATE)} with the state"
            raise DataError(f"{message}; the columns are: {shown_columns(row)}{hint}")
        return columns

    def given(self, row: FileRow) -> Mapping[str, object]:
        """The row's answers by question, in the file's notation, among other cells; empty if answers are ignored.

        Raises:
            DataError: `answers` is not an object, has another name than those of the questions, or an answer is given
                there and in a column.
        """
        answers = row.cells.get(ANSWERS)
        if self.answers == "ignored":
            return {}
        if self.answers == "lenient":
            return {**row.cells, **answers} if isinstance(answers, Mapping) else row.cells
        if is_missing(answers):
            return row.cells
        if not isinstance(answers, Mapping):
            message = f"{row.where}: {ANSWERS!r} is {show(answers)}, not an object"
            raise DataError(f'{message}; write {{"question": answer}}, or give each question a column')
        names = [question.name for question in self.questions]
        for name in answers:
            if name not in names:
                raise DataError(f"{row.where}: {ANSWERS!r} has {show(name)}; {did_you_mean(str(name), names)}")
            if not is_missing(row.cells.get(name)) or name in getattr(answers, "repeated", ()):
                raise DataError(f"{row.where}: question {show(name)} is answered twice; leave one answer out")
        return {**row.cells, **answers}

    def _answer(self, row: FileRow, question: Question, value: object) -> int | None:
        if is_na(value) or is_missing(value):
            return None
        index = answer_index(question, plain_cell(value))
        if index is None and self.answers != "lenient":
            message = f"{row.where}: {show(question.name)} is {show(value)}, which is not an answer"
            raise DataError(f"{message}; {_expected(question, value)}, or leave it empty if it is not answered")
        return index


def _expected(question: Question, value: object) -> str:
    """What may be written for an answer, the nearest option first."""
    if question.type == "predicate":
        return "write true or false (also yes, no, 1 or 0)"
    near = nearest(str(value), question.options)
    noun = "option" if question.type == "choice" else "level"
    more = ", ..." if len(question.options) > _SHOWN else ""
    known = f"its {noun}s are {', '.join(map(show, question.options[:_SHOWN]))}{more}"
    text = f"the closest {noun} is {show(near)}: correct it" if near else f"{known}: write one of them"
    if question.type == "score" and not has_integers(question):
        text += f", or its index, 0 to {len(question.options) - 1}"
    return text
