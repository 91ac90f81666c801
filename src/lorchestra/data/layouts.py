"""Layouts: the columns of a file for question, choices and answer, or for text and label.

Configured column names take precedence. For the other parts, a common layout is recognized if it is unambiguous; if
not, the error suggests options. Several columns for one part (`--data.fields.choices A,B,C,D`, `--data.fields.text
premise,hypothesis`) become a list of choices, or lines `column: cell`.
"""

from __future__ import annotations

import difflib
import json
import re
import reprlib
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from lorchestra.config.data import FieldsConfig
from lorchestra.data.readers.streams import FileRow
from lorchestra.errors import DataError

Form = Literal["question", "text"]
PARTS: dict[Form, tuple[str, ...]] = {"question": ("question", "choices", "answer"), "text": ("text", "label")}

_QUESTIONS = (
    *("question", "question_stem", "query", "stem", "goal", "ctx", "startphrase", "sentence", "prompt"),
    *("context", "premise", "passage", "article", "support", "narrative"),
)
_CHOICES = ("choices", "options", "endings", "candidates")
_ANSWERS = (
    *("answer", "label", "answerkey", "answer_key", "answer_idx", "answer_index", "correct", "correct_answer"),
    *("correct_option", "gold", "gold_label", "cop", "target"),
)
_TEXT_PAIRS = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"), ("title", "text"))
_SERIES = re.compile(
    r"(?P<stem>|choices?|options?|op|endings?|sol|solutions?|answers?|candidates?)"
    r"(?P<mark>[ _.-]?)(?P<end>[a-z]|\d{1,2})",
    re.IGNORECASE,
)

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 60


def show(value: object) -> str:
    """A value quoted for messages, shortened if it is long."""
    return _REPR.repr(value)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to `name`, if any is close."""
    # bounded lengths: comparing cells of a megabyte would take minutes
    by_lower = {candidate[:100].lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name[:100].lower(), list(by_lower), n=1, cutoff=0.5)
    return by_lower[near[0]] if near else None


@dataclass(frozen=True)
class Layout:
    """The columns of each part of a row; a part without columns is not in the file.

    `sentence` describes a recognized layout; it is None if the columns have the configured names.
    """

    form: Form
    columns: Mapping[str, tuple[str, ...]]
    sentence: str | None = None

    def value(self, row: FileRow, part: str) -> object:
        """A row's value for a part, None if it has none."""
        names = self.columns.get(part, ())
        if len(names) < 2:
            return row.cells.get(names[0]) if names else None
        cells = [row.cells.get(name) for name in names]
        if part == "choices":
            while cells and _is_blank(cells[-1]):  # a question with fewer choices than others
                cells.pop()
            return cells
        return "\n".join(f"{name}: {cell}" for name, cell in zip(names, cells, strict=True) if not _is_blank(cell))

    def missing(self, row: FileRow, part: str) -> bool:
        """Whether a row has no column for a part."""
        return not any(name in row.cells for name in self.columns.get(part, ()))


def _is_blank(cell: object) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip())


def named_columns(fields: FieldsConfig, part: str, names: Iterable[str]) -> tuple[str, ...]:
    """The columns among `names` that are configured for a part (one, or several separated by commas), or ()."""
    configured, names = str(getattr(fields, part)), set(names)
    if configured in names:
        return (configured,)
    pieces = tuple(piece.strip() for piece in configured.split(","))
    return pieces if len(pieces) > 1 and part in ("choices", "text", "question") and names.issuperset(pieces) else ()


def used_columns(fields: FieldsConfig, names: list[str]) -> list[str]:
    """The columns that any layout may use."""
    known = {column for part in asdict(fields) for column in named_columns(fields, part, names)}
    known |= {name for name in names if name.lower() in {*_QUESTIONS, *_CHOICES, *_ANSWERS}}
    return list(known.union(*_series(names)))


def choices_of(value: object) -> tuple[object, tuple[str, ...] | None]:
    """The list of choices in a cell, in any of its notations, and the names of the choices, if they have any.

    Names are in `{"text": [...], "label": [...]}`, a list of `{"text", "label"}`, and `{"A": "...", ...}`.
    """
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return value, None
    if isinstance(value, dict):
        texts, names = value.get("text"), value.get("label")
        if not isinstance(texts, list) or not isinstance(names, list):
            texts, names = list(value.values()), list(value)
    elif isinstance(value, list) and value and all(isinstance(item, dict) and "text" in item for item in value):
        texts, names = [item["text"] for item in value], [item.get("label") for item in value]
    else:
        return value, None
    fits = len(texts) == len(names) == len(set(map(str, names))) and all(isinstance(n, str | int) for n in names)
    return texts, tuple(str(name).strip() for name in names) if fits else None


@dataclass(frozen=True)
class LayoutFinder:
    """Determines the layout of a file from its first row.

    `labels` is the label set of the training rows if they are texts with labels; then the rows must be texts too.
    """

    fields: FieldsConfig
    require_answer: bool
    labels: tuple[str, ...] | None

    def find(self, row: FileRow) -> Layout:
        """The layout of the file.

        Raises: DataError if no form fits, with the columns and helpful options.
        """
        given = {part: named_columns(self.fields, part, row.cells) for part in asdict(self.fields)}
        has = {part for part, names in given.items() if any(row.cells.get(name) is not None for name in names)}
        has = (has or {part for part, names in given.items() if names}) - {"id"}
        form = self._form(row, has)
        if form is None or any(part not in has for part in self._needed(form)):
            recognized = self._recognized(row, given, has)
            if recognized is not None:
                return recognized
        if form is None:
            raise self._no_form(row)
        return Layout(form, self._complete(given))

    def check(self, row: FileRow, layout: Layout) -> None:
        """Refuse a row of the other form, or with a missing column.

        Raises: DataError.
        """
        form = layout.form
        other: Form = "text" if form == "question" else "question"
        if layout.value(row, form) is None:
            values = (named_columns(self.fields, part, row.cells) for part in PARTS[other][:2])
            if all(names and row.cells[names[0]] is not None for names in values):
                message = f"a {other} row in a file that starts with a {form} row; use one form per file"
                raise DataError(f"{row.where}: {message}")
        for part in PARTS[form]:
            optional = part in ("answer", "label") and not self.require_answer
            if layout.missing(row, part) and not optional:
                names = layout.columns.get(part) or (str(getattr(self.fields, part)),)
                hint = self._hint(row, part) or f"Set the column with --data.fields.{part}."
                message = f"no column {show(names[0])}; the columns are: {shown_columns(row)}"
                raise DataError(f"{row.where}: {message}. {hint.strip()}")

    def _complete(self, columns: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """All parts: those without columns in the first row may be in later rows, under the configured names."""
        return {part: names or (str(getattr(self.fields, part)),) for part, names in columns.items()}

    def _needed(self, form: Form) -> tuple[str, ...]:
        return PARTS[form] if self.require_answer else PARTS[form][:-1]

    def _form(self, row: FileRow, has: set[str]) -> Form | None:
        questions = {"question", "choices"} <= has
        if self.labels is not None:
            if questions and "text" not in has:
                message = "a question with choices, but the task's training rows are texts with labels"
                question, text = self.fields.question, self.fields.text
                hint = f"if the text is in {question!r}, rename that column to {text!r}"
                raise DataError(f"{row.where}: {message}; {hint}, or use --data.fields.text {shlex.quote(question)}")
            questions = False
        # the text form takes precedence if both of its columns exist, as documented in the configuration
        if "text" in has and ("label" in has or not questions):
            return "text"
        if not has:
            return None
        return "text" if "label" in has and not has & {"question", "choices"} else "question"

    def _recognized(self, row: FileRow, given: Mapping[str, tuple[str, ...]], has: set[str]) -> Layout | None:
        """The layout of a question with other column names; None if there is none, or several are possible."""
        if self.labels is not None:
            return None
        guesses = _guesses(row)
        columns: dict[str, tuple[str, ...]] = dict(given)
        for part in PARTS["question"]:
            if part in has and (part != "question" or len(guesses["question"]) == 1 or "choices" in has):
                continue
            if len(guesses[part]) > 1 or (not guesses[part] and (part != "answer" or self.require_answer)):
                return None
            columns[part] = guesses[part][0] if guesses[part] else ()
        shown = "; ".join(f"{part}: {', '.join(columns[part])}" for part in PARTS["question"] if columns[part])
        return Layout("question", self._complete(columns), f"read as questions with choices by their columns ({shown})")

    def _no_form(self, row: FileRow) -> DataError:
        if "completion" in row.cells or "messages" in row.cells:
            message = "free-text rows (prompt and completion, or messages) are not supported"
            return DataError(f"{row.where}: {message}; each row needs a question with choices, or a text with a label")
        hints = "".join(self._hint(row, part) for part in ("question", "choices", "text", "label"))
        message = 'neither row form fits: a row has "question", "choices" and "answer", or "text" and "label"'
        return DataError(
            f"{row.where}: {message}; the columns are: {shown_columns(row)}. {hints}Set them with --data.fields."
        )

    def _hint(self, row: FileRow, part: str) -> str:
        """The option that sets a missing part's column."""
        guesses = _guesses(row)
        if part in guesses and _looks_like_question(guesses) and self.labels is None:
            options = [
                f"--data.fields.{name} {shlex.quote(','.join(_joined(name, columns)))}"
                for name, columns in guesses.items()
                if columns and not (len(columns) == 1 and columns[0] == (getattr(self.fields, name),))
            ]
            if options:
                return f"As a question with choices: {' '.join(options)}. "
        if part in ("text", "question"):
            for pair in _TEXT_PAIRS:
                if all(name in row.cells for name in pair):
                    return f"To put both columns into the prompt: --data.fields.{part} {','.join(pair)}. "
        taken = set(asdict(self.fields).values())
        others = [column for column in row.cells if column not in taken]
        near = nearest(str(getattr(self.fields, part)), others)
        if near is None and part == "text":
            texts = [name for name in others if isinstance(cell := row.cells[name], str) and " " in cell.strip()]
            near = texts[0] if len(texts) == 1 else None
        return f"If {show(near)} is the {part}: --data.fields.{part} {shlex.quote(near)}. " if near else ""


def shown_columns(row: FileRow) -> str:
    """A row's columns for messages."""
    columns = list(row.cells)
    shown = ", ".join(map(show, columns[:12])) + (", ..." if len(columns) > 12 else "")
    if len(columns) == 1 and any(mark in columns[0] for mark in ";\t|"):
        shown += " (set the cell delimiter with --data.delimiter)"
    return shown or "none"


def _guesses(row: FileRow) -> dict[str, list[tuple[str, ...]]]:
    """Columns with common names for each part of a question; a series of columns with one choice each is one guess."""
    names = list(row.cells)
    lists: list[tuple[str, ...]] = [
        (name,) for name in names if name.lower() in _CHOICES and isinstance(choices_of(row.cells[name])[0], list)
    ]
    choices = lists or _series(names)
    taken = {name for group in choices for name in group}
    guesses: dict[str, list[tuple[str, ...]]] = {"question": [], "choices": choices, "answer": []}
    for part, known in (("question", _QUESTIONS), ("answer", _ANSWERS)):
        guesses[part] = [
            (name,)
            for name in sorted(names, key=lambda name: known.index(name.lower()) if name.lower() in known else 0)
            if name.lower() in known and name not in taken and row.cells[name] is not None
        ]
    return guesses


def _looks_like_question(guesses: Mapping[str, list[tuple[str, ...]]]) -> bool:
    return len(guesses["choices"]) == 1 and bool(guesses["question"])


def _joined(part: str, columns: list[tuple[str, ...]]) -> tuple[str, ...]:
    # a context precedes its question, which comes first among the known names
    return tuple(name for names in reversed(columns) for name in names) if part == "question" else columns[0]


def _series(names: list[str]) -> list[tuple[str, ...]]:
    """Consecutively numbered or lettered columns, such as `A`, `B`, `C` or `option1`, `option2`."""
    groups: dict[tuple[str, str, bool], dict[int, str]] = {}
    for name in names:
        match = _SERIES.fullmatch(name)
        if match is None or (not match["stem"] and (match["end"].isdigit() or match["mark"])):
            continue
        digits = match["end"].isdigit()
        index = int(match["end"]) if digits else ord(match["end"].lower()) - ord("a")
        groups.setdefault((match["stem"].lower(), match["mark"], digits), {})[index] = name
    series = []
    for group in groups.values():
        start, digits = min(group), next(iter(group.values()))[-1].isdigit()
        if len(group) > 1 and start <= digits and sorted(group) == list(range(start, start + len(group))):
            series.append(tuple(group[index] for index in sorted(group)))
    return series
