"""Answers: the right choice given as an index, a number from 1, a letter, a name, or its text.

The kind is inferred from all rows of a file: it must fit every one.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Literal

from lorchestra.data.layouts import show
from lorchestra.errors import DataError

AnswerKind = Literal["label", "index", "number", "letter", "text"]
ANSWER_KINDS: tuple[AnswerKind, ...] = ("label", "index", "number", "letter", "text")

_LETTER = re.compile(r"\(?([A-Z])[).:]?", re.IGNORECASE)
_INTEGER = re.compile(r"[+-]?\d{1,18}")
# if answers count from 0, this many rows without an answer 0 are unlikely
_ENOUGH = 20

_DESCRIPTIONS = {
    "label": "names that come with the choices",
    "index": "indices from 0",
    "number": "numbers from 1",
    "letter": "letters",
    "text": "the choices' texts",
}


def is_missing(value: object) -> bool:
    """Whether a value means that nothing is known: empty, null or NaN."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


def is_no_label(value: object) -> bool:
    """Whether a value means "no label" where labels may be missing: also -1 and ?."""
    return is_missing(value) or (not isinstance(value, bool) and value in (-1, -1.0)) or _word(value) in ("?", "-1")


def _word(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


@dataclass(frozen=True)
class GivenAnswer:
    """A row's answer in the file's notation; `names` come with its choices, `where` is for messages."""

    value: object
    choices: tuple[str, ...]
    names: tuple[str, ...] | None
    where: str

    def index(self, kind: AnswerKind) -> int | None:
        """The right choice's index if the answer is of this kind, None if it cannot be."""
        value, last = self.value, len(self.choices) - 1
        if kind == "label":
            return None if self.names is None else _position(str(value).strip(), self.names)
        if kind in ("index", "number"):
            index = _integer(value)
            index = index if index is None or kind == "index" else index - 1
            return index if index is not None and 0 <= index <= last else None
        if kind == "letter":
            match = _LETTER.fullmatch(_word(value))
            index = None if match is None else ascii_uppercase.index(match[1].upper())
            return index if index is not None and index <= last else None
        if isinstance(value, bool) or not isinstance(value, str | int):
            return None
        return _position(_folded(str(value)), [_folded(choice) for choice in self.choices])


def _integer(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return int(value) if isinstance(value, str) and _INTEGER.fullmatch(value.strip()) else None


def _position(value: str, known: Sequence[str]) -> int | None:
    return known.index(value) if known.count(value) == 1 else None


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def read_answers(
    answers: Sequence[GivenAnswer], configured: AnswerKind | None, note: Callable[[str], None], path: str
) -> tuple[list[int], AnswerKind]:
    """The index of each row's right choice, and the kind of answers that fits all rows.

    Integers that can be indices are indices, as documented; other possible kinds are noted.

    Raises: DataError for the first row that does not fit the kind of the others, or if several kinds fit.
    """
    kinds: tuple[AnswerKind, ...] = ANSWER_KINDS if configured is None else (configured,)
    if configured is None and len(answers) < 2:  # one answer out of range does not mean that answers count from 1
        kinds = tuple(kind for kind in ANSWER_KINDS if kind != "number")
    indices = {kind: [given.index(kind) for given in answers] for kind in kinds}
    fitting = {kind: [i for i in of_kind if i is not None] for kind, of_kind in indices.items() if None not in of_kind}
    is_integer = [isinstance(given.value, int) for given in answers]
    if not fitting or (configured is None and len(set(is_integer)) > 1):
        raise _fault(answers, indices, is_integer)
    first = next(iter(fitting))
    if configured is not None or len({tuple(of_kind) for of_kind in fitting.values()}) == 1:
        chosen = first
    elif "label" in fitting:
        chosen = "label"
    elif "index" in fitting and is_integer[0]:
        chosen = "index"
        _note_alternatives(fitting, note, path)
    else:
        raise _ambiguous(answers, fitting, path)
    if configured is None and chosen not in ("index", "label"):
        note(f"{path}: the answers are read as {_DESCRIPTIONS[chosen]}")
    return fitting[chosen], chosen


def _note_alternatives(fitting: Mapping[AnswerKind, list[int]], note: Callable[[str], None], path: str) -> None:
    if "number" in fitting and len(fitting["index"]) >= _ENOUGH:
        note(f"{path}: no answer is 0; if they count from 1, use --data.answer-as number")
    if "text" in fitting:
        note(f"{path}: the answers are read as indices from 0; if they are texts, use --data.answer-as text")


def _ambiguous(answers: Sequence[GivenAnswer], fitting: Mapping[AnswerKind, list[int]], path: str) -> DataError:
    row = next(i for i in range(len(answers)) if len({indices[i] for indices in fitting.values()}) > 1)
    given = answers[row]
    readings = ", ".join(
        f"{show(given.choices[indices[row]])} with --data.answer-as {kind}" for kind, indices in fitting.items()
    )
    return DataError(f"{given.where}: the answers are ambiguous: {show(given.value)} is {readings}; choose one of them")


def _fault(
    answers: Sequence[GivenAnswer], indices: Mapping[AnswerKind, list[int | None]], is_integer: Sequence[bool]
) -> DataError:
    """The error for the first row that does not fit the kind of most others."""
    counts = {kind: sum(index is not None for index in of_kind) for kind, of_kind in indices.items()}
    best = max(counts, key=lambda kind: counts[kind])
    mostly_integers = sum(is_integer) * 2 >= len(is_integer)
    all_fit = None not in indices[best]
    row = next(
        i for i in range(len(answers)) if indices[best][i] is None or (all_fit and is_integer[i] != mostly_integers)
    )
    given = answers[row]
    others = "" if best == "index" or not counts[best] else f"most answers are {_DESCRIPTIONS[best]}; "
    return DataError(f"{given.where}: the answer is {show(given.value)}; {others}{_hint(given)}")


def _hint(given: GivenAnswer) -> str:
    value, last = given.value, len(given.choices) - 1
    if isinstance(value, int) and not isinstance(value, bool):
        hint = "; indices count from 0" if value == last + 1 else ""
        return f"{last + 1} choices have indices 0 to {last}{hint}"
    if (index := given.index("text")) is not None:
        return f"that is a choice's text: use its index, {index}"
    if (index := given.index("letter")) is not None:
        return f"use the letter's index, {index} (A is 0, B is 1, and so on)"
    if isinstance(value, float) and value.is_integer():
        return f"use the integer, {int(value)}"
    return f"use the right choice's index, an integer from 0 to {last}"
