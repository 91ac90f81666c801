"""From a row's cells to an example: every cell is checked, and every fault names file, line and value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lorchestra.config.data import DataConfig
from lorchestra.data.answers import Given, Reading, is_missing, is_no_label
from lorchestra.data.formats import stem
from lorchestra.data.labels import LabelRules, label_names
from lorchestra.data.layouts import Finder, Layout, choices_of, nearest, show
from lorchestra.data.readers.streams import FileRow
from lorchestra.errors import DataError
from lorchestra.types import Example

LONGEST_CHOICE = 100_000
"""Characters of a choice or label; it is tokenized with every prompt it may follow, and is never cut."""

Answers = Literal["required", "optional", "lenient", "ignored"]
"""Of a row's label or answer: it must be there and right; it may be missing (empty, null, NaN, -1, ?); one that cannot
be read counts as missing, too; it is not looked at."""


@dataclass(frozen=True)
class RowReader:
    """Reads rows of one layout.

    `labels` is the label set of the training rows where these are texts with labels, else None.
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

        Raises: DataError where no layout fits; ConfigError where `data.read.label_names` cannot be used.
        """
        layout = Finder(config.fields, answers == "required", labels).find(first)
        names = label_names(config.read.label_names)
        rules = LabelRules(labels, names, config.read.clean_labels, plain=config.read.rules == 1)
        return cls(config, layout, answers, labels, rules)

    def check(self, row: FileRow) -> None:
        """Refuse a row of another form, or one that lacks a column.

        Raises: DataError.
        """
        Finder(self.config.fields, self.answers == "required", self.labels).check(row, self.layout)

    def example(self, row: FileRow, number: int) -> Example:
        """One row by itself, as a stream of rows to predict needs it; `number` from 1 is for rows without an id.

        Raises: DataError where the row cannot be used; where the task is texts with labels, `labels` must be given.
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
        """A fault of a row."""
        return DataError(f"{row.where}: {text}")

    def value(self, row: FileRow, part: str) -> Any:
        """What a row has for a part."""
        return self.layout.value(row, part)

    def id(self, row: FileRow, number: int) -> str:
        """A row's id; the default is the file's stem and the row's number.

        Raises: DataError where it is neither a string nor an integer.
        """
        value = self.value(row, "id")
        if isinstance(value, bool) or not isinstance(value, str | int | None):
            raise self.error(row, f"the id is {show(value)}; give a string or an integer, or leave it out")
        given = value is not None and bool(str(value).strip())
        return self._clean(row, "id", str(value)) if given else f"{stem(row.path)}-{number}"

    def string(self, row: FileRow, part: str) -> str:
        """The question or text of a row.

        Raises: DataError where it is empty or no string.
        """
        value = self.value(row, part)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise self.error(row, f"the {part} is empty; fill it in or leave the row out")
        if not isinstance(value, str):
            raise self.error(row, f"the {part} is {show(value)}, which is not a string; write it as one")
        return self._clean(row, part, value)

    def question(self, row: FileRow) -> tuple[str, Given]:
        """The question of a row, and its choices with the answer as the file has it.

        Raises: DataError where one of them cannot be used, or the answer is missing and required.
        """
        question = self.string(row, "question")
        choices, names = self._choices(row)
        value = None if self.answers == "ignored" else self.value(row, "answer")
        if self.answers == "required" and is_missing(value) and not isinstance(value, float):
            raise self.error(row, f"the answer is missing; give the right choice's index, 0 to {len(choices) - 1}")
        # ? may be the text of a choice
        if self.answers != "required" and is_no_label(value) and str(value).strip() not in choices:
            value = None
        return question, Given(value, choices, names, row.where)

    def _choices(self, row: FileRow) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
        value, names = choices_of(self.value(row, "choices"))
        if not isinstance(value, list):
            hint = ', in a CSV cell as JSON: ["red", "blue"]' if ".csv" in row.path.lower() else ""
            raise self.error(row, f"the choices are {show(value)}; give a list of strings{hint}")
        for index, choice in enumerate(value):
            if not isinstance(choice, str):
                raise self.error(row, f"choice {index} is {show(choice)}, which is not a string; write it as one")
            if not choice.strip():
                raise self.error(row, f"choice {index} is empty; fill it in or leave it out")
            self._short(row, f"choice {index}", choice)
        if len(value) < 2:
            raise self.error(row, f"the choices are {show(value)}; a question needs at least two")
        return tuple(value), names

    def _single_answer(self, given: Given) -> int | None:
        """An answer without the file's other rows to compare with: an index, unless the configuration says else."""
        if given.value is None:
            return None
        asked = self.config.read.answer_as
        readings: tuple[Reading, ...] = ("label", "index", "letter", "text") if asked is None else (asked,)
        found = [index for index in map(given.read, readings) if index is not None]
        if found or self.answers == "lenient":
            return found[0] if found else None
        raise DataError(f"{given.where}: the answer is {show(given.value)}; give the right choice's index")

    def label(self, row: FileRow) -> str | None:
        """A row's label as it is spelled, None where there is none.

        Raises: DataError where it is missing and required, or no word and no integer.
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
            fault = "several labels a row cannot be learned: give one"
        elif isinstance(value, float):
            fault = "regression is not possible: give classes as words or integers"
        elif not isinstance(value, str | int):
            fault = "give a string or an integer"
        if fault is not None and self.answers == "lenient":
            return None
        if fault is not None:
            raise self.error(row, f"the label is {show(value)}; {fault}")
        return self._short(row, "label", str(value))

    def _is_unlabeled(self, value: Any) -> bool:
        if self.answers == "required" or not is_no_label(value):
            return False
        # -1 and ? may be classes of the task
        known = () if self.labels is None else {*self.labels, *self.rules.names}
        return is_missing(value) or str(value).strip() not in known

    def label_index(self, row: FileRow, label: str | None, index: Mapping[str, int]) -> int | None:
        """The index of a label, None of None.

        Raises: DataError where the training rows have no such label.
        """
        if label is not None and label not in index:
            near = nearest(label, index)
            hint = f"the nearest is {show(near)}" if near else f"known are {', '.join(map(show, list(index)[:12]))}"
            message = f"label {show(label)} was not in the training file"
            raise self.error(row, f"{message}; {hint}; correct it, or add rows with it to the training file")
        return None if label is None else index[label]

    def _clean(self, row: FileRow, part: str, text: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError:
            message = f"the {part} {show(text)} holds half of a surrogate pair, which is no character"
            raise self.error(row, f"{message}; mend the escape") from None
        return text

    def _short(self, row: FileRow, part: str, text: str) -> str:
        if len(text) > LONGEST_CHOICE:
            message = f"the {part} {show(text)} has {len(text):,} characters, over {LONGEST_CHOICE:,}"
            raise self.error(row, f"{message}; shorten it or leave the row out")
        return self._clean(row, part, text)
