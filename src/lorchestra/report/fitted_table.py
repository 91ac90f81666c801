"""Tables wider than the terminal: pieces below each other, each with the names of the rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table

_MIN_TEXT = 14
"""Least width of running text, in columns of the terminal."""
_MIN_NAME = 22
"""Least width of the names of rows."""


class FittedTable:
    """A table whose first columns name its rows and are never cut.

    If the table does not fit, the other columns are distributed over several tables, each with the names.

    Args:
        table: the table; its title is above the first piece and its caption below the last.
        num_names: the number of first columns that name a row.
        break_before: index of a column that starts another table where they do not all fit.
    """

    def __init__(self, table: Table, num_names: int = 1, break_before: int | None = None) -> None:
        self.table = table
        self.num_names = num_names
        self.break_before = break_before

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, or its pieces."""
        pieces = self._pieces(console, options)
        if len(pieces) == 1 and not self._too_wide(pieces[0], console, options):
            yield self.table
            return
        for number, indices in enumerate(pieces):
            yield self._piece(indices, first=number == 0)
        caption = self.table.caption
        if caption is not None:  # not as wide as the last piece, which may be narrow, but as the terminal
            yield console.render_str(caption, style="table.caption") if isinstance(caption, str) else caption

    def _pieces(self, console: Console, options: ConsoleOptions) -> list[list[int]]:
        """The columns of each piece in addition to the names, by index."""
        every = range(self.num_names, len(self.table.columns))
        if not self._too_wide(every, console, options):
            return [list(every)]
        pieces: list[list[int]] = [[]]
        for index in every:
            full = index == self.break_before or self._too_wide([*pieces[-1], index], console, options)
            if pieces[-1] and full:
                pieces.append([])
            pieces[-1].append(index)
        return pieces

    def _too_wide(self, indices: Sequence[int], console: Console, options: ConsoleOptions) -> bool:
        shown = [*range(self.num_names), *indices]
        dividers = len(shown) - 1 if self.table.box is not None else 0
        return dividers + sum(self._width(index, console, options) for index in shown) > options.max_width

    def _width(self, index: int, console: Console, options: ConsoleOptions) -> int:
        """Least readable width of a column, including padding."""
        column = self.table.columns[index]
        wide = options.update(max_width=10_000)
        sizes = [Measurement.get(console, wide, cell) for cell in (column.header, *column.cells)]
        width = max(size.maximum for size in sizes)
        if not column.no_wrap:
            word = 0 if index < self.num_names else max(size.minimum for size in sizes)  # names break anywhere
            width = min(width, max(_MIN_NAME if index < self.num_names else _MIN_TEXT, word))
        _, right, _, left = self.table.padding
        return max(width, column.min_width or 0) + left + right

    def _piece(self, indices: Sequence[int], *, first: bool) -> Table:
        columns = [self._name_column(self.table.columns[index]) for index in range(self.num_names)]
        columns += [dataclasses.replace(self.table.columns[index].copy(), overflow="fold") for index in indices]
        piece = Table(
            *columns,
            title=self.table.title if first else None,
            box=self.table.box,
            show_edge=self.table.show_edge,
            padding=self.table.padding,
            header_style=self.table.header_style,
            title_justify=self.table.title_justify,
        )
        cells = [list(self.table.columns[index].cells) for index in (*range(self.num_names), *indices)]
        for row in zip(*cells, strict=True):
            piece.add_row(*row)
        return piece

    def _name_column(self, column: Column) -> Column:
        """A column of names that wraps names which are too wide."""
        return dataclasses.replace(column.copy(), min_width=None, no_wrap=False, overflow="fold")
