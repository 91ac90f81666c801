"""Delimited text: CSV, TSV and their relatives with semicolons or bars."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

from lorchestra.data.readers.streams import FileRow, Reading, bad_byte, open_text, undecodable

NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
"""Delimiters that are tried, the likeliest first."""

# A text in one cell may be longer than the csv module's bound of 128 KiB.
_LONGEST_CELL = 2**31 - 1
_SAMPLE_LINES, _SAMPLE_CHARACTERS = 200, 1 << 20
_SEP_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)


def delimited_rows(stream: io.BufferedReader, reading: Reading, delimiter: str | None) -> Iterator[FileRow]:
    """The rows under a header, one at a time; empty cells are None.

    Without a `delimiter` it is the one that a first line `sep=;` names, or the one that the header goes by.
    """
    text = open_text(stream, reading.shown, reading.options.encoding, "")
    try:
        sample, skipped = _sample(text), 0
        named = _SEP_LINE.fullmatch(sample[0]) if sample else None
        if named is not None:
            delimiter, skipped = delimiter or named.group(1), 1
            reading.note(f"{reading.shown}: the first line says that {_name(delimiter)}s separate the cells")
        elif delimiter is None:
            delimiter = sniffed(sample, reading.wanted)
            if delimiter != ",":
                reading.note(f"{reading.shown}: read as {_name(delimiter)}-separated")
        lines = itertools.chain(sample[skipped:], text)
        yield from _rows(_Lines(lines, reading, delimiter, skipped), reading, delimiter)
    except UnicodeError as error:
        raise undecodable(error, reading.shown) from error


def sniffed(sample: Sequence[str], wanted: frozenset[str]) -> str:
    """The delimiter that the first lines go by: it makes columns of the names that are used, and else most columns."""
    best, delimiter = (0, 1), ","
    for candidate in NAMES:
        parsed = list(_parsed(sample, candidate))
        if len(parsed) == 0:
            continue
        header, *rows = parsed
        # a mark that is part of some name makes rows of other lengths
        fits = not rows or sum(len(row) == len(header) for row in rows) * 2 > len(rows)
        score = (len(wanted & {name.strip() for name in header}), len(header) if fits else 1)
        if len(header) > 1 and score > best:
            best, delimiter = score, candidate
    return delimiter


def _parsed(sample: Sequence[str], delimiter: str) -> Iterator[list[str]]:
    try:
        for cells in csv.reader(sample, delimiter=delimiter):
            if any(cells):
                yield cells
    except csv.Error:  # the reading itself names line and reason
        return


def _sample(text: io.TextIOWrapper) -> list[str]:
    lines: list[str] = []
    size = 0
    for line in text:
        lines.append(line)
        size += len(line)
        if len(lines) >= _SAMPLE_LINES or size > _SAMPLE_CHARACTERS:
            break
    return lines


def _name(delimiter: str) -> str:
    return NAMES.get(delimiter, repr(delimiter))


class _Lines:
    """The cells of each row that has any, with the number of the row's first line, or a fault."""

    def __init__(self, lines: Iterable[str], reading: Reading, delimiter: str, skipped: int) -> None:
        self.reader = csv.reader(lines, delimiter=delimiter, strict=True)
        self.reading, self.skipped = reading, skipped

    def __iter__(self) -> Iterator[tuple[int, list[str] | FileRow]]:
        while True:
            line = self.reader.line_num + self.skipped + 1
            # the module has one bound for all its readers
            bound = csv.field_size_limit(_LONGEST_CELL)
            try:
                cells = next(self.reader)
            except StopIteration:
                return
            except csv.Error as error:
                at = self.reader.line_num + self.skipped
                message = f"the row that starts here is no CSV ({error}, line {at}); close and double its quotes"
                yield line, self.reading.fault(line, message)
                continue
            finally:
                csv.field_size_limit(bound)
            if any(cells):
                bad = next(filter(None, map(bad_byte, cells)), None)
                yield line, cells if bad is None else self.reading.fault(line, bad)


def _rows(lines: _Lines, reading: Reading, delimiter: str) -> Iterator[FileRow]:
    header: list[str] | None = None
    for line, cells in lines:
        if isinstance(cells, FileRow):
            if header is None and cells.fault is not None:
                raise cells.fault
            yield cells
        elif header is None:
            header = [_column(name, reading) for name in cells]
            reading.check_names(header, line)
        elif len(cells) > len(header):
            message = f"{len(cells)} cells under a header of {len(header)}"
            marks = f"{_name(delimiter)}s"
            yield reading.fault(line, f"{message}; put cells that hold {marks} in double quotes")
        else:
            values = [cell or None for cell in cells] + [None] * (len(header) - len(cells))
            yield FileRow(line, dict(zip(header, values, strict=True)), reading.shown)


def _column(name: str, reading: Reading) -> str:
    """A column's name, without the blanks of `text, label` where a name that is used is meant."""
    return name.strip() if name not in reading.wanted and name.strip() in reading.wanted else name
