"""Task files with typed questions: one example per row and answered question."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lorchestra.config.data import DataConfig
from lorchestra.data.files import RowIds, TaskFile, check_fields, rows_of, with_progress
from lorchestra.data.labels import contradictions
from lorchestra.data.layouts import nearest, show
from lorchestra.data.readers.streams import FileRow
from lorchestra.data.row_reader import Answers
from lorchestra.data.typed_rows import TypedRowReader, typed_columns
from lorchestra.errors import DataError
from lorchestra.questions import Question
from lorchestra.types import Example

_SHOWN = 12


def read_typed_file(
    path: str | Path,
    config: DataConfig,
    questions: tuple[Question, ...],
    *,
    require_answer: bool,
    ignore_answers: bool = False,
) -> TaskFile:
    """Read the rows of a file, directory or pattern (see `formats.read_rows`).

    The questions of a row follow each other, in the order of the questions; the id of each is `ROWID/QUESTION`. With
    `require_answer`, those without an answer are left out; without it, every question is asked. With `ignore_answers`
    (OOD rows), every answer is None.

    Raises:
        DataError: names file and line if the file or a row cannot be used.
        ConfigError: a question has the name of another column.
    """
    check_fields(config.fields)
    answers: Answers = "ignored" if ignore_answers else "required" if require_answer else "optional"
    reader, notes = TypedRowReader(config, questions, answers), list[str]()
    verbatim = typed_columns(questions, config.fields)
    ids, census = RowIds(reader.id), _Census(str(path), questions)
    examples: list[Example] = []
    for row in with_progress(rows_of(path, config, verbatim=verbatim, note=notes.append), path):
        asked = reader.examples(row, ids.of(row))
        answered = [example for example in asked if example.answer is not None]
        census.add(row, reader.given(row), answered)
        examples += answered if require_answer else asked
    census.check(require_answer)
    warnings = tuple(_warnings(examples, str(path))) if require_answer else ()
    if require_answer:
        notes += census.notes()
    return TaskFile(str(path), tuple(examples), None, warnings, tuple(notes), questions)


@dataclass
class _Census:
    """Counts the rows of a file, its columns, and the answers to each question."""

    path: str
    questions: tuple[Question, ...]
    num_rows: int = 0
    num_unanswered: int = 0
    columns: set[str] = field(default_factory=set)
    """Names of columns, and in objects of answers."""
    answers: Counter[str] = field(default_factory=Counter)

    def add(self, row: FileRow, given: Mapping[str, object], answered: Sequence[Example]) -> None:
        self.num_rows += 1
        self.num_unanswered += not answered
        self.columns.update(row.cells, given)
        self.answers.update(example.asked.name for example in answered if example.asked is not None)

    def check(self, require_answer: bool) -> None:
        """Refuse a file without rows, or without the answers that it must have.

        Raises:
            DataError: names the columns.
        """
        if not self.num_rows:
            raise DataError(f"{self.path}: the file has no rows; it needs one state per row")
        if not require_answer or self.answers:
            return
        names = [question.name for question in self.questions]
        if self.columns.intersection(names):
            raise DataError(f"{self.path}: no row answers a question; fill in the columns of the questions")
        shown = ", ".join(map(show, sorted(self.columns)[:_SHOWN]))
        near = next((f"; is {show(close)} {show(name)}?" for name in names if (close := self._near(name))), ".")
        message = f"{self.path}: none of the {len(names)} question(s) has a column; the columns are: {shown}"
        raise DataError(f"{message}{near} Name columns as the questions: {', '.join(map(show, names[:_SHOWN]))}")

    def notes(self) -> Iterator[str]:
        """Sentences on what the file has and lacks."""
        counts = [f"{question.name} ({self.answers[question.name]:,})" for question in self.questions]
        more = f", and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else ""
        message = (
            f"{self.path}: {self.num_rows:,} rows with {self.answers.total():,} answers to {len(counts)} questions"
        )
        yield f"{message}: {', '.join(counts[:_SHOWN])}{more}"
        if self.num_unanswered:
            yield f"{self.path}: {self.num_unanswered:,} row(s) answer no question, and are left out"
        missing = [question.name for question in self.questions if question.name not in self.columns]
        if missing:
            near = next((f"; is {show(close)} {show(name)}?" for name in missing if (close := self._near(name))), "")
            more = ", ..." if len(missing) > _SHOWN else ""
            yield f"{self.path}: no column for question(s) {', '.join(map(show, missing[:_SHOWN]))}{more}{near}"

    def _near(self, name: str) -> str | None:
        """A column that is no question's and has a similar name."""
        return nearest(name, sorted(self.columns - {question.name for question in self.questions}))


def _warnings(examples: Sequence[Example], path: str) -> Iterator[str]:
    """One sentence per likely mistake."""
    answers: dict[str, set[str]] = defaultdict(set)
    for example in examples:
        assert example.asked is not None
        assert example.answer is not None
        answers[example.asked.name].add(example.choices[example.answer])
    for name, given in answers.items():
        if len(given) == 1:
            yield f"{path}: every answer to {show(name)} is {show(given.pop())}; members cannot learn another"
    rows = ((f"{e.question}\n{e.asked.name if e.asked else ''}", e.choices[e.answer or 0], e.where) for e in examples)
    yield from contradictions(rows, path, "answer")
