"""Delimited text: CSV, TSV and variants with semicolons or bars."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

from lorchestra.data.readers.streams import FileRow, ReadContext, bad_byte, open_text, undecodable

NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
"""Delimiters to detect, the most likely first."""

# cells may be longer than the csv module's default bound of 128 KiB
_LONGEST_CELL = 2**31 - 1
_SAMPLE_LINES, _SAMPLE_CHARACTERS = 200, 1 << 20
_SEP_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)


def delimited_rows(stream: io.BufferedReader, context: ReadContext, delimiter: str | None) -> Iterator[FileRow]:
    """The rows after a header, one at a time; empty cells are None.

    If `delimiter` is None, it is read from a first line `sep=;`, or detected.
    """
    text = open_text(stream, context.shown, context.options.encoding, "")
    try:
        # with a known delimiter, only a first line `sep=;` is looked for: rows from a pipe may come slowly
        sample, skipped = _sample(text, _SAMPLE_LINES if delimiter is None else 1), 0
        named = _SEP_LINE.fullmatch(sample[0]) if sample else None
        if named is not None:
            delimiter, skipped = delimiter or named.group(1), 1
            context.note(f"{context.shown}: read as {_name(delimiter)}-separated, as the first line says")
        elif delimiter is None:
            delimiter = sniffed(sample, context.wanted)
            if delimiter != ",":
                context.note(f"{context.shown}: read as {_name(delimiter)}-separated")
        lines = itertools.chain(sample[skipped:], text)
        yield from _rows(_Lines(lines, context, delimiter, skipped), context, delimiter)
    except UnicodeError as error:
        raise undecodable(error, context.shown) from error


def sniffed(sample: Sequence[str], wanted: frozenset[str]) -> str:
    """The delimiter that results in most columns with names in use, then in most columns."""
    best, delimiter = (0, 1), ","
    for candidate in NAMES:
        parsed = list(_parsed(sample, candidate))
        if len(parsed) == 0:
            continue
        header, *rows = parsed
        # with a character that is only part of a column name, rows differ in length from the header
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
    except csv.Error:  # reading the rows reports line and reason
        return


def _sample(text: io.TextIOWrapper, most: int) -> list[str]:
    lines: list[str] = []
    size = 0
    for line in text:
        lines.append(line)
        size += len(line)
        if len(lines) >= most or size > _SAMPLE_CHARACTERS:
            break
    return lines


def _name(delimiter: str) -> str:
    return NAMES.get(delimiter, repr(delimiter))


class _Lines:
    """The cells of each nonempty row, or its fault, with the number of its first line."""

    def __init__(self, lines: Iterable[str], context: ReadContext, delimiter: str, skipped: int) -> None:
        self.reader = csv.reader(lines, delimiter=delimiter, strict=True)
        self.context, self.skipped = context, skipped

    def __iter__(self) -> Iterator[tuple[int, list[str] | FileRow]]:
        while True:
            line = self.reader.line_num + self.skipped + 1
            # the module's bound is global: it is set for this call only
            bound = csv.field_size_limit(_LONGEST_CELL)
            try:
                cells = next(self.reader)
            except StopIteration:
                return
            except csv.Error as error:
                at = self.reader.line_num + self.skipped
                message = f"the row that starts here is not valid CSV ({error}, line {at}); close and double its quotes"
                yield line, self.context.fault(line, message)
                continue
            finally:
                csv.field_size_limit(bound)
            if any(cells):
                bad = next(filter(None, map(bad_byte, cells)), None)
                yield line, cells if bad is None else self.context.fault(line, bad)


def _rows(lines: _Lines, context: ReadContext, delimiter: str) -> Iterator[FileRow]:
    header: list[str] | None = None
    for line, cells in lines:
        if isinstance(cells, FileRow):
            if header is None and cells.fault is not None:
                raise cells.fault
            yield cells
        elif header is None:
            header = [_column(name, context) for name in cells]
            context.check_names(header, line)
        elif len(cells) > len(header):
            message = f"{len(cells)} cells, but the header has {len(header)}"
            yield context.fault(line, f"{message}; put cells that contain {_name(delimiter)}s in double quotes")
        else:
            values = [cell or None for cell in cells] + [None] * (len(header) - len(cells))
            yield FileRow(line, dict(zip(header, values, strict=True)), context.shown)


def _column(name: str, context: ReadContext) -> str:
    """A column's name, stripped of blanks (as in `text, label`) if the result is a name in use."""
    return name.strip() if name not in context.wanted and name.strip() in context.wanted else name
