"""JSON: one object a line, one array of objects, or one object that holds the rows."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from lorchestra.data.readers.streams import FileRow, Reading, bad_byte, open_text, undecodable
from lorchestra.errors import DataError

_CHUNK = 1 << 20
# The end of the text at which an unfinished value may look broken: `tru`, `\u00`.
_UNSURE = 16
_BLANK = re.compile(r"[ \t\n\r]*")
_BETWEEN = re.compile(r"[ \t\n\r,]*")


class Object(dict[str, Any]):
    """A JSON object that remembers which of its keys came more than once (it keeps the last value of each)."""

    repeated: frozenset[str] = frozenset()


def _object(pairs: list[tuple[str, Any]]) -> Object:
    made = Object(pairs)
    if len(made) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        made.repeated = frozenset(name for name, count in counts.items() if count > 1)
    return made


def json_rows(stream: io.BufferedReader, reading: Reading, *, one_value: bool) -> Iterator[FileRow]:
    """The objects of a JSON file, in order, without holding more than one.

    Where the text begins with `[` it is one array. Else every line is an object, unless `one_value` says that the file
    may be one object that holds the rows and its first line is no object by itself; that one is read whole.
    """
    text = open_text(stream, reading.shown, reading.options.encoding, None)
    try:
        number, first = next(((number, line) for number, line in enumerate(text, 1) if line.strip()), (0, ""))
        if first.lstrip()[:1] == "[" and _opens_array(first):
            yield from _Array(text, reading, first, number).rows()
        elif one_value and not _is_object(first):
            yield from _held_rows(first + text.read(), reading)
        elif one_value:
            yield from _one_or_many(text, first, number, reading)
        else:
            yield from _object_lines(text, first, number, reading)
    except UnicodeError as error:
        raise undecodable(error, reading.shown) from error


def _opens_array(line: str) -> bool:
    """Whether a first line begins an array of rows: what follows its bracket is an object, or on other lines."""
    return line.strip()[1:].lstrip()[:1] in ("", "{", "]")


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _one_or_many(text: io.TextIOWrapper, first: str, number: int, reading: Reading) -> Iterator[FileRow]:
    """Lines of objects, or a single line that may hold the rows."""
    for after, second in enumerate(text, number + 1):
        if second.strip():
            yield _row(first, number, reading)
            yield _row(second, after, reading)
            yield from _object_lines(text, "", after, reading)
            return
    yield from _held_rows(first, reading)


def _object_lines(text: io.TextIOWrapper, first: str, number: int, reading: Reading) -> Iterator[FileRow]:
    if first.strip():
        yield _row(first, number, reading)
    for line_number, line in enumerate(text, number + 1):
        if line.strip():
            yield _row(line, line_number, reading)


def _row(line: str, number: int, reading: Reading) -> FileRow:
    bad = bad_byte(line)
    if bad is not None:
        return reading.fault(number, bad)
    shown = line.strip()[:60]
    try:
        cells = json.loads(line, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        message = f"no JSON at column {error.colno} ({error.msg}): {shown}"
        return reading.fault(number, f"{message}; write one JSON object a line")
    except (ValueError, RecursionError) as error:
        return reading.fault(number, f"JSON that cannot be read ({error}): {shown}; simplify it")
    return _checked(cells, number, shown, reading)


def _checked(cells: Any, number: int, shown: str, reading: Reading) -> FileRow:
    if not isinstance(cells, Object):
        return reading.fault(number, f"not a JSON object: {shown}; write one object a line, with a key a column")
    for column in sorted(reading.wanted & cells.repeated):
        return reading.fault(number, f"the key {column!r} comes twice; leave one out")
    return FileRow(number, cells, reading.shown)


class _Array:
    """The elements of one JSON array, read piece by piece."""

    def __init__(self, text: io.TextIOWrapper, reading: Reading, first: str, line: int) -> None:
        self.text, self.reading = text, reading
        self.buffer, self.position, self.line = first, first.index("[") + 1, line
        self.ended = False
        self.decoder = json.JSONDecoder(object_pairs_hook=_object)

    def rows(self) -> Iterator[FileRow]:
        while True:
            self._skip(_BETWEEN)
            if self.position < len(self.buffer):
                if self.buffer[self.position] == "]":
                    self._check_end()
                    return
                line = self.line
                yield _checked(*self._element(line), self.reading)
            elif not self._more():
                raise DataError(f"{self.reading.shown}:{self.line}: the array does not end; is the file cut off?")

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.buffer, self.position)
        assert match is not None
        self._move(match.end())

    def _move(self, end: int) -> None:
        self.line += self.buffer.count("\n", self.position, end)
        self.position = end

    def _more(self, size: int = _CHUNK) -> bool:
        read = "" if self.ended else self.text.read(size)
        if not read:
            self.ended = True
            return False
        self.buffer, self.position = self.buffer[self.position :] + read, 0
        return True

    def _element(self, line: int) -> tuple[Any, int, str]:
        size = _CHUNK
        while True:
            try:
                value, end = self.decoder.raw_decode(self.buffer, self.position)
                if end < len(self.buffer) or not self._more(size):
                    break
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated") or error.pos >= len(self.buffer) - _UNSURE
                if not unfinished or not self._more(size):
                    raise self._broken(error) from error
            except (ValueError, RecursionError) as error:
                raise DataError(f"{self.reading.shown}:{line}: JSON that cannot be read ({error})") from error
            size *= 2
        raw = self.buffer[self.position : end]
        bad = bad_byte(raw)
        if bad is not None:
            raise DataError(f"{self.reading.shown}:{line}: {bad}")
        self._move(end)
        return value, line, " ".join(raw[:60].split())

    def _broken(self, error: json.JSONDecodeError) -> DataError:
        line = self.line + self.buffer.count("\n", self.position, error.pos)
        shown = " ".join(self.buffer[error.pos : error.pos + 60].split())
        message = f"{self.reading.shown}:{line}: no JSON ({error.msg}): {shown}"
        return DataError(f"{message}; every row after it is unreadable, too: mend the array")

    def _check_end(self) -> None:
        self._move(self.position + 1)
        self._skip(_BLANK)
        while self.position == len(self.buffer) and self._more():
            self._skip(_BLANK)
        if self.position < len(self.buffer):
            shown = " ".join(self.buffer[self.position : self.position + 60].split())
            raise DataError(f"{self.reading.shown}:{self.line}: more follows the end of the array: {shown}")


def _held_rows(text: str, reading: Reading) -> Iterator[FileRow]:
    """The rows in one object: under its only list of objects, or as one list a column."""
    bad = bad_byte(text)
    if bad is not None:
        raise DataError(f"{reading.shown}: {bad}")
    if not text.strip():
        return
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        message = f"{reading.shown}:{error.lineno}: no JSON at column {error.colno} ({error.msg})"
        raise DataError(f"{message}; a .json file is an array of objects, or has one object a line") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{reading.shown}: JSON that cannot be read ({error}); simplify it") from error
    if not isinstance(value, Object):
        raise DataError(f"{reading.shown}: holds no object; a .json file is an array of objects")
    yield from _unfolded(value, reading)


def _unfolded(value: Object, reading: Reading) -> Iterator[FileRow]:
    lists = {key: held for key, held in value.items() if _is_list_of(held, dict)}
    if len(lists) == 1:
        (key, rows), *_ = lists.items()
        reading.note(f"{reading.shown}: the rows are those under {key!r}")
        yield from (_checked(row, number, str(row)[:60], reading) for number, row in enumerate(rows, 1))
        return
    columns = _columns(value)
    if columns is not None:
        reading.note(f"{reading.shown}: read as one list a column")
        reading.check_names(list(columns))
        for number, cells in enumerate(zip(*columns.values(), strict=True), 1):
            yield FileRow(number, dict(zip(columns, cells, strict=True)), reading.shown)
        return
    if lists:
        raise DataError(
            f"{reading.shown}: several lists of rows ({', '.join(map(repr, lists))}); write one of them to a file"
        )
    yield _checked(value, 1, str(value)[:60], reading)


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, kind) for item in value)


def _columns(value: Object) -> dict[str, list[Any]] | None:
    """The columns of an object of equally long lists, or of objects with the same keys (as pandas writes them)."""
    if len(value) < 2:
        return None
    if all(isinstance(column, list) for column in value.values()):
        columns = dict(value)
    elif all(isinstance(column, dict) for column in value.values()):
        keys = [list(column) for column in value.values()]
        if any(other != keys[0] for other in keys):
            return None
        columns = {name: list(column.values()) for name, column in value.items()}
    else:
        return None
    same = len({len(column) for column in columns.values()}) == 1
    # a row with a list of choices alone is no table
    return (
        columns if same and any(any(isinstance(cell, str) for cell in column) for column in columns.values()) else None
    )
