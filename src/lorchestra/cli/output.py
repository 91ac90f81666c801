"""Where the command line writes: results on stdout, all that is said meanwhile on stderr."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from lorchestra.cli.streams import UnfailingStderr
from lorchestra.errors import visible
from lorchestra.store.atomic import json_line, plain_values

_LIBRARY = logging.getLogger("lorchestra")
_TABLE_WIDTH = 100
"""Columns of a table that goes into a file or a pipe."""


def results() -> Console:
    """Stdout, for tables and text: as wide as the terminal, or a fixed width elsewhere."""
    console = _SafeConsole()
    return console if console.is_terminal else _SafeConsole(width=_TABLE_WIDTH)


def messages() -> Console:
    """Stderr, for progress and messages; from now on, what the library logs is printed there too."""
    console = _SafeConsole(file=cast(TextIO, UnfailingStderr()))
    stop_logging()
    _LIBRARY.addHandler(_ConsoleHandler(console))
    _LIBRARY.setLevel(logging.INFO)
    return console


def stop_logging() -> None:
    """Undo what `messages` did to the library's logger."""
    for handler in [handler for handler in _LIBRARY.handlers if isinstance(handler, _ConsoleHandler)]:
        _LIBRARY.removeHandler(handler)
        _LIBRARY.setLevel(logging.NOTSET)


def printer(console: Console) -> Callable[[str], None]:
    """A function that prints one line unchanged: no markup, and unwrapped where no terminal would wrap it."""
    return lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)


class _ConsoleHandler(logging.Handler):
    """Prints log records as lines; warnings begin with "warning: "."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._print = printer(console)

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message alone: time and module are for logs, not for people."""
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        self._print(prefix + record.getMessage())


def print_json(value: Any) -> None:
    """A value on stdout as one line of JSON, with escapes for what stdout's encoding lacks."""
    line = json_line(value)
    try:
        line.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        line = json.dumps(plain_values(value), allow_nan=False)
    print(line)


class _SafeConsole(Console):
    """A console on which texts of others change nothing but their own characters."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Rich's segments; characters that a terminal would obey are escaped in all but rich's own control codes."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable() or segment.text == "\n":
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Leave it to the command line, instead of ending with exit code 1."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
