"""One row of a file, and how a file is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from lorchestra.errors import DataError

Format = Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow"]


@dataclass(frozen=True, slots=True)
class Row:
    """One row: `line` is its first line in the file `path` from 1 (in Parquet and Arrow its row number).

    `cells` are its named values. `fault` is set, and `cells` empty, where the row cannot be read and faults were asked
    for as values.
    """

    line: int
    cells: dict[str, Any]
    path: str = ""
    fault: DataError | None = None

    @property
    def where(self) -> str:
        """File and line, as messages begin."""
        return f"{self.path}:{self.line}"


@dataclass(frozen=True)
class ReadOptions:
    """How files are read; what is None is taken from the file itself.

    `encoding` is the name of a text encoding; `format` stands in for the file's suffix; `delimiter` separates the cells
    of CSV files. `label_names` says whether class names in a Parquet or Arrow schema stand in for class numbers.
    """

    encoding: str | None = None
    format: Format | None = None
    delimiter: str | None = None
    label_names: bool = True


def _silent(text: str) -> None:
    pass


@dataclass(frozen=True)
class Reading:
    """What the reader of one file is given.

    `shown` is the file's name in messages, `wanted` the columns that are used (a doubled one is an error), `columns`
    picks from all column names those whose cells are read where reading fewer is cheaper, and `note` takes one
    sentence about each thing that was assumed. With `faults` a row that cannot be read is a value.
    """

    shown: str
    options: ReadOptions = field(default_factory=ReadOptions)
    wanted: frozenset[str] = frozenset()
    columns: Callable[[list[str]], Iterable[str]] = list
    note: Callable[[str], None] = _silent
    faults: bool = False

    def fault(self, line: int, text: str) -> Row:
        """A row that cannot be read.

        Raises: DataError where faults are not values.
        """
        error = DataError(f"{self.shown}:{line}: {text}")
        if not self.faults:
            raise error
        return Row(line, {}, self.shown, error)

    def check_names(self, names: list[str], line: int | None = None) -> None:
        """Refuse two columns of one name, where it is one that is used."""
        where = self.shown if line is None else f"{self.shown}:{line}"
        for name in names:
            if name in self.wanted and names.count(name) > 1:
                raise DataError(f"{where}: two columns are named {name!r}; rename one")
