"""JSON: one object per line, one array of objects, or one object with the rows in it."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterator

from lorchestra.data.readers.streams import FileRow, ReadContext, bad_byte, open_text, undecodable
from lorchestra.errors import DataError

_CHUNK = 1 << 20
# Characters before the end of the buffer in which an incomplete value may look invalid: `tru`, `\u00`.
_UNSURE = 16
_BLANK = re.compile(r"[ \t\n\r]*")
_BETWEEN = re.compile(r"[ \t\n\r,]*")


class Object(dict[str, object]):
    """A JSON object; of duplicate keys it has the last value, and their names in `repeated`."""

    repeated: frozenset[str] = frozenset()


def _object(pairs: list[tuple[str, object]]) -> Object:
    result = Object(pairs)
    if len(result) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        result.repeated = frozenset(name for name, count in counts.items() if count > 1)
    return result


def json_rows(stream: io.BufferedReader, context: ReadContext, *, one_value: bool) -> Iterator[FileRow]:
    """The objects of a JSON file in order, one at a time.

    Text that starts with `[` is one array. Otherwise every line is an object; with `one_value`, the file may also be
    one object with the rows in it, which is read whole.
    """
    text = open_text(stream, context.shown, context.options.encoding, None)
    try:
        number, first = next(((number, line) for number, line in enumerate(text, 1) if line.strip()), (0, ""))
        if first.lstrip()[:1] == "[" and _opens_array(first):
            yield from _Array(text, context, first, number).rows()
        elif one_value and not _is_object(first):
            yield from _held_rows(first + text.read(), context)
        elif one_value:
            yield from _one_or_many(text, first, number, context)
        else:
            yield from _object_lines(text, first, number, context)
    except UnicodeError as error:
        raise undecodable(error, context.shown) from error


def _opens_array(line: str) -> bool:
    """Whether a first line that starts with a bracket opens an array of rows: an object follows, or nothing."""
    return line.strip()[1:].lstrip()[:1] in ("", "{", "]")


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _one_or_many(text: io.TextIOWrapper, first: str, number: int, context: ReadContext) -> Iterator[FileRow]:
    """Lines of objects, or a single object with the rows in it.

    The second line decides, but only about a first line that could be such an object: others need not wait for it.
    """
    if not _may_hold_rows(first):
        yield from _object_lines(text, first, number, context)
        return
    for after, second in enumerate(text, number + 1):
        if second.strip():
            yield _row(first, number, context)
            yield _row(second, after, context)
            yield from _object_lines(text, "", after, context)
            return
    yield from _held_rows(first, context)


def _object_lines(text: io.TextIOWrapper, first: str, number: int, context: ReadContext) -> Iterator[FileRow]:
    if first.strip():
        yield _row(first, number, context)
    for line_number, line in enumerate(text, number + 1):
        if line.strip():
            yield _row(line, line_number, context)


def _row(line: str, number: int, context: ReadContext) -> FileRow:
    bad = bad_byte(line)
    if bad is not None:
        return context.fault(number, bad)
    shown = line.strip()[:60]
    try:
        cells = json.loads(line, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        message = f"invalid JSON at column {error.colno} ({error.msg}): {shown}"
        return context.fault(number, f"{message}; write one JSON object per line")
    except (ValueError, RecursionError) as error:
        return context.fault(number, f"JSON that cannot be read ({error}): {shown}; simplify it")
    return _checked(cells, number, shown, context)


def _checked(cells: object, number: int, shown: str, context: ReadContext) -> FileRow:
    if not isinstance(cells, Object):
        return context.fault(number, f"not a JSON object: {shown}; write one object per line, with a key per column")
    for column in sorted(context.wanted & cells.repeated):
        return context.fault(number, f"duplicate key {column!r}; leave one out")
    return FileRow(number, cells, context.shown)


class _Array:
    """The elements of a JSON array, read in chunks."""

    def __init__(self, text: io.TextIOWrapper, context: ReadContext, first: str, line: int) -> None:
        self.text, self.context = text, context
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
                yield _checked(*self._element(line), self.context)
            elif not self._more():
                raise DataError(f"{self.context.shown}:{self.line}: the array does not end; is the file truncated?")

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

    def _element(self, line: int) -> tuple[object, int, str]:
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
                raise DataError(f"{self.context.shown}:{line}: JSON that cannot be read ({error})") from error
            size *= 2
        raw = self.buffer[self.position : end]
        bad = bad_byte(raw)
        if bad is not None:
            raise DataError(f"{self.context.shown}:{line}: {bad}")
        self._move(end)
        return value, line, " ".join(raw[:60].split())

    def _broken(self, error: json.JSONDecodeError) -> DataError:
        line = self.line + self.buffer.count("\n", self.position, error.pos)
        shown = " ".join(self.buffer[error.pos : error.pos + 60].split())
        message = f"{self.context.shown}:{line}: invalid JSON ({error.msg}): {shown}"
        return DataError(f"{message}; no later row can be read either: fix the array")

    def _check_end(self) -> None:
        self._move(self.position + 1)
        self._skip(_BLANK)
        while self.position == len(self.buffer) and self._more():
            self._skip(_BLANK)
        if self.position < len(self.buffer):
            shown = " ".join(self.buffer[self.position : self.position + 60].split())
            raise DataError(f"{self.context.shown}:{self.line}: text after the end of the array: {shown}")


def _held_rows(text: str, context: ReadContext) -> Iterator[FileRow]:
    """The rows in one object: its only list of objects, or one list per column."""
    bad = bad_byte(text)
    if bad is not None:
        raise DataError(f"{context.shown}: {bad}")
    if not text.strip():
        return
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        message = f"{context.shown}:{error.lineno}: invalid JSON at column {error.colno} ({error.msg})"
        raise DataError(f"{message}; a .json file is an array of objects, or has one object per line") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{context.shown}: JSON that cannot be read ({error}); simplify it") from error
    if not isinstance(value, Object):
        raise DataError(f"{context.shown}: not an object; a .json file is an array of objects")
    yield from _unfolded(value, context)


def _unfolded(value: Object, context: ReadContext) -> Iterator[FileRow]:
    lists = _row_lists(value)
    if len(lists) == 1:
        (key, rows), *_ = lists.items()
        context.note(f"{context.shown}: the rows are those under {key!r}")
        yield from (_checked(row, number, str(row)[:60], context) for number, row in enumerate(rows, 1))
        return
    columns = _columns(value)
    if columns is not None:
        context.note(f"{context.shown}: read as one list per column")
        context.check_names(list(columns))
        for number, cells in enumerate(zip(*columns.values(), strict=True), 1):
            yield FileRow(number, dict(zip(columns, cells, strict=True)), context.shown)
        return
    if lists:
        raise DataError(
            f"{context.shown}: several lists of rows ({', '.join(map(repr, lists))}); write one of them to a file"
        )
    yield _checked(value, 1, str(value)[:60], context)


def _may_hold_rows(line: str) -> bool:
    value = json.loads(line, object_pairs_hook=_object)
    return bool(_row_lists(value)) or _columns(value) is not None


def _row_lists(value: Object) -> dict[str, list[object]]:
    return {key: item for key, item in value.items() if isinstance(item, list) and _has_only_objects(item)}


def _has_only_objects(items: list[object]) -> bool:
    return bool(items) and all(isinstance(item, dict) for item in items)


def _columns(value: Object) -> dict[str, list[object]] | None:
    """The columns of an object of equally long lists, or of objects with the same keys (as pandas writes them)."""
    if len(value) < 2:
        return None
    columns: dict[str, list[object]] = {}
    keys: list[object] | None = None
    kind = type(next(iter(value.values())))
    for name, column in value.items():
        if isinstance(column, list) and kind is list:
            columns[name] = column
        elif isinstance(column, Object) and kind is Object:
            keys = keys or list(column)
            if list(column) != keys:
                return None
            columns[name] = list(column.values())
        else:
            return None
    same_length = len({len(column) for column in columns.values()}) == 1
    # a single row with a list of choices has no texts in its columns
    has_texts = any(isinstance(cell, str) for column in columns.values() for cell in column)
    return columns if same_length and has_texts else None
