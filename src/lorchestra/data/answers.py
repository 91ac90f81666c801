"""Answers: the right choice given by index, by number from 1, by letter, by name or by text.

Which of these a file means is decided over all its rows: a reading counts only if it fits every one.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lorchestra.data.layouts import show
from lorchestra.errors import DataError

Reading = Literal["label", "index", "number", "letter", "text"]
READINGS: tuple[Reading, ...] = ("label", "index", "number", "letter", "text")

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LETTER = re.compile(r"\(?([A-Z])[).:]?", re.IGNORECASE)
_INTEGER = re.compile(r"[+-]?\d{1,18}")
# So many rows without an answer 0 are unlikely where answers count from 0.
_ENOUGH = 20

_KINDS = {
    "label": "names that come with the choices",
    "index": "indices from 0",
    "number": "numbers from 1",
    "letter": "letters",
    "text": "the choices' texts",
}


def is_missing(value: Any) -> bool:
    """Whether a value says that nothing is known: empty, null or NaN."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


def is_no_label(value: Any) -> bool:
    """Whether a value stands for "no label" where one may be missing: also -1 and ?."""
    return is_missing(value) or (not isinstance(value, bool) and value in (-1, -1.0)) or _word(value) in ("?", "-1")


def _word(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


@dataclass(frozen=True)
class Given:
    """A row's answer as the file has it; `names` come with its choices, `where` is for messages."""

    value: Any
    choices: tuple[str, ...]
    names: tuple[str, ...] | None
    where: str

    def read(self, reading: Reading) -> int | None:
        """The right choice's index by one reading, None where that does not fit."""
        value, last = self.value, len(self.choices) - 1
        if reading == "label":
            return None if self.names is None else _position(str(value).strip(), self.names)
        if reading in ("index", "number"):
            index = _integer(value)
            index = index if index is None or reading == "index" else index - 1
            return index if index is not None and 0 <= index <= last else None
        if reading == "letter":
            match = _LETTER.fullmatch(_word(value))
            index = None if match is None else _LETTERS.index(match[1].upper())
            return index if index is not None and index <= last else None
        if isinstance(value, bool) or not isinstance(value, str | int):
            return None
        return _position(_folded(str(value)), [_folded(choice) for choice in self.choices])


def _integer(value: Any) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return int(value) if _INTEGER.fullmatch(_word(value)) else None


def _position(value: str, known: Sequence[str]) -> int | None:
    return known.index(value) if known.count(value) == 1 else None


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def read_answers(
    answers: Sequence[Given], asked: Reading | None, note: Callable[[str], None], path: str
) -> tuple[list[int], Reading]:
    """The index of each row's right choice, and the reading that fits all rows.

    Integers that fit are indices, as documented; what else they might be is noted.

    Raises: DataError at the first row that no reading of the others fits, or with the options where several do.
    """
    readings: tuple[Reading, ...] = READINGS if asked is None else (asked,)
    if asked is None and len(answers) < 2:  # one answer out of range does not make all count from 1
        readings = tuple(reading for reading in READINGS if reading != "number")
    found = {reading: [given.read(reading) for given in answers] for reading in readings}
    fitting = {name: [i for i in read if i is not None] for name, read in found.items() if None not in read}
    native = [isinstance(given.value, int) for given in answers]
    if not fitting or (asked is None and len(set(native)) > 1):
        raise _fault(answers, found, native)
    first = next(iter(fitting))
    if asked is not None or len({tuple(indices) for indices in fitting.values()}) == 1:
        chosen = first
    elif "label" in fitting:
        chosen = "label"
    elif "index" in fitting and native[0]:
        chosen = "index"
        _warn(fitting, note, path)
    else:
        raise _ambiguous(answers, fitting, path)
    if asked is None and chosen not in ("index", "label"):
        note(f"{path}: the answers are read as {_KINDS[chosen]}")
    return fitting[chosen], chosen


def _warn(fitting: dict[Reading, list[int]], note: Callable[[str], None], path: str) -> None:
    if "number" in fitting and len(fitting["index"]) >= _ENOUGH:
        note(f"{path}: no answer is 0; if they count from 1, give --data.answer-as number")
    if "text" in fitting:
        note(f"{path}: the answers are read as indices from 0; if they are texts, give --data.answer-as text")


def _ambiguous(answers: Sequence[Given], fitting: dict[Reading, list[int]], path: str) -> DataError:
    names = list(fitting)
    row = next(i for i in range(len(answers)) if len({fitting[name][i] for name in names}) > 1)
    says = ", ".join(f"{show(answers[row].choices[fitting[name][row]])} by --data.answer-as {name}" for name in names)
    message = f"the answers can be read in several ways: {show(answers[row].value)} is {says}"
    return DataError(f"{answers[row].where}: {message}; give the one that is meant")


def _fault(answers: Sequence[Given], found: dict[Reading, list[int | None]], native: Sequence[bool]) -> DataError:
    """The error of the first row that does not fit the reading of most others."""
    fits = {reading: sum(index is not None for index in indices) for reading, indices in found.items()}
    best = max(fits, key=lambda reading: fits[reading])
    kind = sum(native) * 2 >= len(native)
    row = next(
        i for i in range(len(answers)) if found[best][i] is None or (None not in found[best] and native[i] != kind)
    )
    given = answers[row]
    others = "" if best == "index" or not fits[best] else f"most answers are {_KINDS[best]}; "
    return DataError(f"{given.where}: the answer is {show(given.value)}; {others}{_hint(given)}")


def _hint(given: Given) -> str:
    value, choices = given.value, given.choices
    last = len(choices) - 1
    if isinstance(value, int) and not isinstance(value, bool):
        hint = "; indices count from 0" if value == last + 1 else ""
        return f"{last + 1} choices have indices 0 to {last}{hint}"
    for reading, what in (("text", "that is a choice's text: give its index, {}"), ("letter", _LETTER_HINT)):
        index = given.read(reading)  # type: ignore[arg-type]
        if index is not None:
            return what.format(index)
    if isinstance(value, float) and value.is_integer():
        return f"give the integer, {int(value)}"
    return f"give the right choice's index, an integer from 0 to {last}"


_LETTER_HINT = "give the letter's index, {} (A is 0, B is 1, and so on)"
