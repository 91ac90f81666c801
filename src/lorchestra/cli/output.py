"""The command line's output: results to stdout, progress and messages to stderr."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable
from typing import TextIO, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from lorchestra.cli.streams import UnfailingStderr
from lorchestra.errors import visible
from lorchestra.store.atomic import json_line
from lorchestra.types import plain_values

_LIBRARY = logging.getLogger("lorchestra")
_TABLE_WIDTH = 100
"""Width of tables written to a file or a pipe, in columns."""


def results() -> Console:
    """A console on stdout for tables and text: as wide as the terminal, else of a fixed width."""
    console = _SafeConsole()
    return console if console.is_terminal else _SafeConsole(width=_TABLE_WIDTH)


def messages() -> Console:
    """A console on stderr for progress and messages; the library's log records are printed there from now on."""
    console = _SafeConsole(file=cast(TextIO, UnfailingStderr()))
    stop_logging()
    _LIBRARY.addHandler(_ConsoleHandler(console))
    _LIBRARY.setLevel(logging.INFO)
    return console


def stop_logging() -> None:
    """Detach the library's logger from the console again."""
    for handler in [handler for handler in _LIBRARY.handlers if isinstance(handler, _ConsoleHandler)]:
        _LIBRARY.removeHandler(handler)
        _LIBRARY.setLevel(logging.NOTSET)


def printer(console: Console) -> Callable[[str], None]:
    """A function that prints a line verbatim: no markup, no wrapping."""
    return lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)


class _ConsoleHandler(logging.Handler):
    """Prints log records as lines; warnings begin with "warning: "."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._print = printer(console)

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message without time and module."""
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        self._print(prefix + record.getMessage())


def print_json(value: object) -> None:
    """Print a value to stdout as one line of JSON; characters that stdout cannot encode are escaped."""
    line = json_line(value)
    try:
        line.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        line = json.dumps(plain_values(value), allow_nan=False)
    print(line)


class _SafeConsole(Console):
    """A console on which untrusted text cannot control the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Rich's segments with control characters escaped, except in rich's control segments."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable() or segment.text == "\n":
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Raise, so that `main` decides; rich would exit with code 1."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
