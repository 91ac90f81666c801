"""Where the command line writes: results on stdout, all that is said meanwhile on stderr."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

_TABLE_WIDTH = 100
"""Columns of a table that goes into a file or a pipe."""


def results() -> Console:
    """Stdout, for tables and text: as wide as the terminal, or a fixed width elsewhere."""
    console = Console()
    return console if console.is_terminal else Console(width=_TABLE_WIDTH)


def messages() -> Console:
    """Stderr, for progress and remarks."""
    return Console(stderr=True)


def speaker(console: Console) -> Callable[[str], None]:
    """A function that says one line as it is: no markup, and unwrapped where no terminal would wrap it."""
    return lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)
