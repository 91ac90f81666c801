"""The one tree of errors a user can meet.

Every message names the file, line or field, the value found there, and what to do about it.
"""

import difflib
import unicodedata
from collections.abc import Iterable, Mapping
from types import MappingProxyType


def did_you_mean(name: str, known: Iterable[str], elsewhere: Mapping[str, str] = MappingProxyType({})) -> str:
    """The end of a message about an unknown name: the nearest known one as a question, and what is known at all.

    Where none is near, a near one of `elsewhere` is asked for by what it maps to.
    """
    names = list(known)
    near = difflib.get_close_matches(name[:100], names, n=1)
    near = near or [elsewhere[far] for far in difflib.get_close_matches(name[:100], elsewhere, n=1)]
    question = f"did you mean {near[0]!r}? " if near else ""
    return f"{question}known here: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"


def printable(text: str, longest: int = 2000) -> str:
    """Text on one line, control characters and halves of surrogate pairs as escapes, the middle cut where too long."""
    line = " ".join(text.split()) if "\n" in text or "\r" in text else text
    if len(line) > longest:
        line = f"{line[: longest - 300]} ... {line[-295:]}"
    return line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def visible(text: str) -> str:
    """Text with its lines, but without what a terminal or browser would obey, reorder by, or hide: that as escapes.

    Escaped are control characters (ESC, U+009B, ...), marks of direction, zero-width characters and halves of surrogate
    pairs; line ends, tabs and all kinds of spaces stay.
    """
    if text.isprintable():
        return text
    return "".join(c if _is_shown(c) or c in "\n\t" else ascii(c)[1:-1] for c in text.replace("\r\n", "\n"))


def visible_json(text: str) -> str:
    """The text of a JSON value, which stays the same value, with the same characters as JSON's escapes."""
    if text.isprintable():
        return text
    return "".join(c if _is_shown(c) or c == "\n" else _json_escape(c) for c in text)


def _is_shown(c: str) -> bool:
    return c.isprintable() or unicodedata.category(c) == "Zs"


def _json_escape(c: str) -> str:
    code = ord(c)
    if code < 0x10000:
        return f"\\u{code:04x}"
    return f"\\u{0xD7C0 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


class LorchestraError(Exception):
    """Base of all errors that a user can mend; the command line prints its text without a traceback.

    `exit_code` is what the command line ends with.
    """

    exit_code = 2

    def __str__(self) -> str:
        """The message on one line, fit for a terminal whatever the file that it quotes holds."""
        return printable(super().__str__())


class ConfigError(LorchestraError, ValueError):
    """A configuration value is missing, unknown or out of range."""


class DataError(LorchestraError):
    """A task file, a row or a split cannot be used."""


class InputError(DataError, ValueError):
    """Texts or labels given from Python cannot be used; a ValueError too, as scikit-learn's conventions ask."""


class CheckpointError(LorchestraError):
    """A run directory, adapter or base model cannot be read, written or matched."""


class RequestError(LorchestraError):
    """A request to a trained ensemble cannot be served."""


class TrainingError(LorchestraError):
    """Training itself failed: no member is left, or a check did not hold."""

    exit_code = 1
