"""The errors that users see. Every message names the file, line or field, the value, and what to do about it."""

import difflib
import unicodedata
from collections.abc import Iterable, Mapping
from types import MappingProxyType


def did_you_mean(name: str, known: Iterable[str], elsewhere: Mapping[str, str] = MappingProxyType({})) -> str:
    """The end of a message about an unknown name: the closest known name as a question, then all known names.

    If no known name is close, the closest key of `elsewhere` is suggested by the name that it maps to.
    """
    names = list(known)
    near = difflib.get_close_matches(name[:100], names, n=1)
    near = near or [elsewhere[other] for other in difflib.get_close_matches(name[:100], elsewhere, n=1)]
    question = f"did you mean {near[0]!r}? " if near else ""
    return f"{question}known here: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"


def printable(text: str, longest: int = 2000) -> str:
    """Text on one line, with control characters and lone surrogates escaped, and the middle of long text cut out."""
    line = " ".join(text.split()) if "\n" in text or "\r" in text else text
    if len(line) > longest:
        line = f"{line[: longest - 300]} ... {line[-295:]}"
    return line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def visible(text: str) -> str:
    """Text with everything escaped that a terminal or browser would execute, reorder or hide.

    That is control characters (ESC, U+009B, ...), direction marks, zero-width characters and lone surrogates; line
    ends, tabs and all kinds of spaces stay.
    """
    if text.isprintable():
        return text
    return "".join(c if _is_shown(c) or c in "\n\t" else ascii(c)[1:-1] for c in text.replace("\r\n", "\n"))


def visible_json(text: str) -> str:
    """JSON text with the same characters as JSON escapes, so that its value stays the same."""
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
    """Base class of errors that users can fix; the command line prints the message without a traceback.

    `exit_code` is the exit code of the command line, `http_status` the status of the server's response.
    """

    exit_code = 2
    http_status = 500

    def __str__(self) -> str:
        """The message on one line, safe to print whatever it quotes from a file."""
        return printable(super().__str__())


class ConfigError(LorchestraError, ValueError):
    """A configuration value is missing, unknown or out of range."""

    http_status = 422


class DataError(LorchestraError):
    """A task file, a row or a split cannot be used."""

    http_status = 422


class InputError(DataError, ValueError):
    """Texts or labels passed from Python cannot be used; also a ValueError, as scikit-learn expects."""


class CheckpointError(LorchestraError):
    """A run directory, adapter or base model cannot be read, written or matched."""


class RequestError(LorchestraError):
    """A request to a trained ensemble cannot be served."""

    http_status = 400


class TrainingError(LorchestraError):
    """Training failed: no member is left, or a check did not pass."""

    exit_code = 1


class LostProcessError(LorchestraError):
    """Another process of a distributed training has ended or does not answer."""

    exit_code = 1


class ReportedError(LorchestraError):
    """An error in several processes of a training, or the consequence of one in another process, which reports it."""

    exit_code = 1

    def __init__(self, message: str, exit_code: int = exit_code) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Interrupted(Exception):  # noqa: N818 - an event, not an error
    """A callback requested a stop; a training stops after a whole optimizer step."""
