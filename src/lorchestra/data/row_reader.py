"""From a row's cells to an example: all cells are checked, and errors name file, line and value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lorchestra.config.data import DataConfig
from lorchestra.data.answers import AnswerKind, GivenAnswer, is_missing, is_no_label
from lorchestra.data.formats import stem
from lorchestra.data.labels import LabelRules, label_names
from lorchestra.data.layouts import Layout, LayoutFinder, choices_of, nearest, show
from lorchestra.data.readers.streams import FileRow
from lorchestra.errors import DataError
from lorchestra.types import Example

LONGEST_CHOICE = 100_000
"""Maximum characters of a choice or label: each is tokenized with every prompt that it may follow, and never cut."""

Answers = Literal["required", "optional", "lenient", "ignored"]
"""How labels and answers are read. required: must exist and be valid; optional: may be missing (empty, null, NaN, -1,
?); lenient: invalid ones count as missing, too; ignored: not read."""


@dataclass(frozen=True)
class RowReader:
    """Reads rows of one layout.

    `labels` is the label set of the training rows if they are texts with labels, else None.
    """

    config: DataConfig
    layout: Layout
    answers: Answers
    labels: tuple[str, ...] | None
    rules: LabelRules

    @classmethod
    def for_file(
        cls, first: FileRow, config: DataConfig, *, answers: Answers, labels: tuple[str, ...] | None
    ) -> RowReader:
        """A reader for the layout of a file's first row.

        Raises: DataError if no layout fits; ConfigError if `data.read.label_names` cannot be used.
        """
        layout = LayoutFinder(config.fields, answers == "required", labels).find(first)
        names = label_names(config.read.label_names)
        rules = LabelRules(labels, names, config.read.clean_labels, plain=config.read.rules == 1)
        return cls(config, layout, answers, labels, rules)

    def check(self, row: FileRow) -> None:
        """Refuse a row of another form, or with a missing column.

        Raises: DataError.
        """
        LayoutFinder(self.config.fields, self.answers == "required", self.labels).check(row, self.layout)

    def example(self, row: FileRow, number: int) -> Example:
        """The example of a single row, independent of other rows; `number`, from 1, is the id of rows without one.

        For texts with labels, `labels` must be set.

        Raises: DataError if the row cannot be used.
        """
        if row.fault is not None:
            raise row.fault
        self.check(row)
        name = self.id(row, number)
        if self.layout.form == "question":
            question, given = self.question(row)
            answer = self._single_answer(given)
            return Example(name, question, given.choices, answer, row.where)
        assert self.labels is not None
        label = self.label(row)
        if label is not None:
            label = self.rules.label_set({self.rules.spelled(label): 1})[1][self.rules.spelled(label)]
        index = {known: position for position, known in enumerate(self.labels)}
        if self.answers == "lenient" and label not in index:
            label = None
        return Example(name, self.string(row, "text"), self.labels, self.label_index(row, label, index), row.where)

    def error(self, row: FileRow, text: str) -> DataError:
        """An error about a row."""
        return DataError(f"{row.where}: {text}")

    def value(self, row: FileRow, part: str) -> object:
        """A row's value for a part."""
        return self.layout.value(row, part)

    def id(self, row: FileRow, number: int) -> str:
        """A row's id; the default is the file's stem and the row's number.

        Raises: DataError if it is neither a string nor an integer.
        """
        return row_id(row, self.value(row, "id"), number)

    def string(self, row: FileRow, part: str) -> str:
        """The question or text of a row.

        Raises: DataError if it is empty or not a string.
        """
        value = self.value(row, part)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise self.error(row, f"the {part} is empty; fill it in or leave the row out")
        if not isinstance(value, str):
            raise self.error(row, f"the {part} is {show(value)}, which is not a string; write it as one")
        return clean_text(row, part, value)

    def question(self, row: FileRow) -> tuple[str, GivenAnswer]:
        """The question of a row, and its choices with the answer in the file's notation.

        Raises: DataError if one of them cannot be used, or the answer is missing and required.
        """
        question = self.string(row, "question")
        choices, names = self._choices(row)
        value = None if self.answers == "ignored" else self.value(row, "answer")
        if self.answers == "required" and is_missing(value) and not isinstance(value, float):
            raise self.error(row, f"the answer is missing; it is the right choice's index, 0 to {len(choices) - 1}")
        # ? may be the text of a choice
        if self.answers != "required" and is_no_label(value) and str(value).strip() not in choices:
            value = None
        return question, GivenAnswer(value, choices, names, row.where)

    def _choices(self, row: FileRow) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
        value, names = choices_of(self.value(row, "choices"))
        if not isinstance(value, list):
            hint = ', in a CSV cell as JSON: ["red", "blue"]' if ".csv" in row.path.lower() else ""
            raise self.error(row, f"the choices are {show(value)}; use a list of strings{hint}")
        for index, choice in enumerate(value):
            if not isinstance(choice, str):
                raise self.error(row, f"choice {index} is {show(choice)}, which is not a string; write it as one")
            if not choice.strip():
                raise self.error(row, f"choice {index} is empty; fill it in or leave it out")
            self._short(row, f"choice {index}", choice)
        if len(value) < 2:
            raise self.error(row, f"the choices are {show(value)}; a question needs at least two")
        return tuple(value), names

    def _single_answer(self, given: GivenAnswer) -> int | None:
        """The index of an answer without other rows to infer its kind: the first kind that fits, or the configured."""
        if given.value is None:
            return None
        configured = self.config.read.answer_as
        kinds: tuple[AnswerKind, ...] = ("label", "index", "letter", "text") if configured is None else (configured,)
        indices = [index for index in map(given.index, kinds) if index is not None]
        if indices or self.answers == "lenient":
            return indices[0] if indices else None
        raise DataError(f"{given.where}: the answer is {show(given.value)}; it must be the right choice's index")

    def label(self, row: FileRow) -> str | None:
        """A row's label as spelled, None if it has none.

        Raises: DataError if it is missing and required, or neither a word nor an integer.
        """
        value = None if self.answers == "ignored" else self.value(row, "label")
        if self._is_unlabeled(value):
            return None
        if value is None or (isinstance(value, str) and not value.strip()):
            raise self.error(row, "the label is empty; fill it in or leave the row out")
        if is_missing(value):
            raise self.error(row, "the label is missing (NaN); fill it in or leave the row out")
        fault = None
        if isinstance(value, list | tuple | dict):
            fault = "several labels per row are not supported: use one"
        elif isinstance(value, float):
            fault = "regression is not supported: use classes that are words or integers"
        elif not isinstance(value, str | int):
            fault = "use a string or an integer"
        if fault is not None and self.answers == "lenient":
            return None
        if fault is not None:
            raise self.error(row, f"the label is {show(value)}; {fault}")
        return self._short(row, "label", str(value))

    def _is_unlabeled(self, value: object) -> bool:
        if self.answers == "required" or not is_no_label(value):
            return False
        # -1 and ? may be classes of the task
        known = () if self.labels is None else {*self.labels, *self.rules.names}
        return is_missing(value) or str(value).strip() not in known

    def label_index(self, row: FileRow, label: str | None, index: Mapping[str, int]) -> int | None:
        """The index of a label; None for None.

        Raises: DataError if the training rows have no such label.
        """
        if label is not None and label not in index:
            near = nearest(label, index)
            hint = f"the closest is {show(near)}" if near else f"known are {', '.join(map(show, list(index)[:12]))}"
            message = f"label {show(label)} is not in the training file"
            raise self.error(row, f"{message}; {hint}; correct it, or add rows with it to the training file")
        return None if label is None else index[label]

    def _short(self, row: FileRow, part: str, text: str) -> str:
        if len(text) > LONGEST_CHOICE:
            message = f"the {part} {show(text)} has {len(text):,} characters, over {LONGEST_CHOICE:,}"
            raise self.error(row, f"{message}; shorten it or leave the row out")
        return clean_text(row, part, text)


def clean_text(row: FileRow, part: str, text: str) -> str:
    """The text of a part of a row.

    Raises: DataError if it has a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        message = f"the {part} {show(text)} contains a lone surrogate, which is not a character"
        raise DataError(f"{row.where}: {message}; fix the escape") from None
    return text


def row_id(row: FileRow, value: object, number: int) -> str:
    """A row's id, of the value in its column; without one, the file's stem and the row's number.

    Raises: DataError if it is neither a string nor an integer.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise DataError(f"{row.where}: the id is {show(value)}; use a string or an integer, or leave it out")
    given = value is not None and bool(str(value).strip())
    return clean_text(row, "id", str(value)) if given else f"{stem(row.path)}-{number}"
