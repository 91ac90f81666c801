"""One row of a file, and how a file is read.

Streams: a file or standard input as bytes, decompressed, and as text whose bad bytes can be located.
"""

from __future__ import annotations

import codecs
import gzip
import io
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from lorchestra.errors import ConfigError, DataError

Format = Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow"]


@dataclass(frozen=True, slots=True)
class FileRow:
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

    def fault(self, line: int, text: str) -> FileRow:
        """A row that cannot be read.

        Raises: DataError where faults are not values.
        """
        error = DataError(f"{self.shown}:{line}: {text}")
        if not self.faults:
            raise error
        return FileRow(line, {}, self.shown, error)

    def check_names(self, names: list[str], line: int | None = None) -> None:
        """Refuse two columns of one name, where it is one that is used."""
        where = self.shown if line is None else f"{self.shown}:{line}"
        for name in names:
            if name in self.wanted and names.count(name) > 1:
                raise DataError(f"{where}: two columns are named {name!r}; rename one")


STANDARD_INPUT = "-"
SHOWN_STANDARD_INPUT = "standard input"

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_UTF8 = ("utf-8", "utf-8-sig")
# Where UTF-8 cannot be decoded, `surrogateescape` leaves these: no valid UTF-8 decodes to them.
_BAD = re.compile("[\udc80-\udcff]")


class _Guarded(io.RawIOBase):
    """A binary stream whose failures are errors that name the file."""

    def __init__(self, stream: Any, shown: str, what: str) -> None:
        self._stream, self._shown, self._what = stream, shown, what
        # what a pipe has by now, without waiting for a whole buffer of it
        self._read = getattr(stream, "read1", stream.read)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        try:
            data = self._read(len(view))
        except (OSError, EOFError, zlib.error, ValueError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise DataError(f"{self._shown}: {self._what} ({reason})") from error
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            try:
                self._stream.close()
            finally:
                super().close()


@contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedReader]:
    """A file, or standard input where the path is `-`, as one decompressed stream.

    Raises: DataError where it cannot be opened.
    """
    with ExitStack() as opened:
        if str(path) == STANDARD_INPUT:
            shown = SHOWN_STANDARD_INPUT
            # closing what is read must not close the process's standard input
            stream: Any = _Unclosed(getattr(sys.stdin, "buffer", io.BytesIO()))
        else:
            shown = str(path)
            try:
                stream = path.open("rb")
            except OSError as error:
                raise DataError(f"{path}: the file cannot be read ({error.strerror}); check its permissions") from error
        guarded = _Guarded(stream, shown, "the file cannot be read")
        reader = opened.enter_context(io.BufferedReader(guarded, 1 << 16))
        yield _decompressed(reader, path, shown, opened)


class _Unclosed:
    def __init__(self, stream: IO[bytes]) -> None:
        self.read = getattr(stream, "read1", stream.read)

    def close(self) -> None:
        pass


def _decompressed(reader: Any, path: Path, shown: str, opened: ExitStack) -> Any:
    name = path.name.lower()
    start = reader.peek(4)[:4]
    if start.startswith(_GZIP):
        what = "no whole gzip file; compress it again"
        plain: Any = gzip.GzipFile(fileobj=reader, mode="rb")
        return opened.enter_context(io.BufferedReader(_Guarded(plain, shown, what), 1 << 16))
    if start.startswith(_ZSTD):
        import pyarrow

        what = "no whole Zstandard file; compress it again"
        plain = pyarrow.CompressedInputStream(pyarrow.PythonFile(reader, mode="r"), "zstd")
        return opened.enter_context(io.BufferedReader(_Guarded(plain, shown, what), 1 << 16))
    for end, kind in ((".gz", "gzip"), (".zst", "Zstandard")):
        if name.endswith(end) and start:
            message = f"{shown}: no {kind} file, whatever its name says"
            raise DataError(f"{message}; call it {path.name[: -len(end)]} if it is plain text")
    return reader


def open_text(stream: io.BufferedReader, shown: str, encoding: str | None, newline: str | None) -> io.TextIOWrapper:
    """The stream as text; bytes that are no UTF-8 come as they are, for `bad_byte` to find.

    Raises:
        ConfigError: an unknown encoding.
        DataError: the text is plainly UTF-16 without a byte order mark.
    """
    start = stream.peek(64)[:64]
    if encoding is not None:
        try:
            encoding = codecs.lookup(encoding).name
            "".encode(encoding)
        except (LookupError, ValueError) as error:
            message = f"--data.encoding: {encoding!r} is no text encoding that Python knows"
            raise ConfigError(f"{message}; give a name like utf-8, cp1252, latin-1, utf-16, shift_jis") from error
    if encoding is None or encoding in _UTF8:
        mark = next((mark for mark in _BOMS if start.startswith(mark)), None)
        encoding = "utf-8-sig" if mark is None else _BOMS[mark]
        if mark is None and len(start) >= 4 and (start[1::2].count(0), start[0::2].count(0)) != (0, 0):
            order = "le" if start[1::2].count(0) > start[0::2].count(0) else "be"
            if max(start[1::2].count(0), start[0::2].count(0)) * 4 >= len(start):
                raise DataError(
                    f"{shown}: looks like UTF-16 without a byte order mark; give --data.encoding utf-16-{order}"
                )
    errors = "surrogateescape" if encoding in _UTF8 else "strict"
    return io.TextIOWrapper(stream, encoding, errors, newline)


def bad_byte(text: str) -> str | None:
    """What is wrong with a line or cell that held bytes that are no UTF-8, and what to do; None where none did."""
    found = None if text.isascii() else _BAD.search(text)
    if found is None:
        return None
    start, stop = max(0, found.start() - 20), found.start() + 20
    near = " ".join(text[start:stop].encode("utf-8", "surrogateescape").decode("cp1252", "replace").split())
    return (
        f"not UTF-8 (byte 0x{ord(found.group()) - 0xDC00:02x}); give the file's encoding: with --data.encoding cp1252"
        f" (Western European) this reads {near!r}; or save the file as UTF-8"
    )


def undecodable(error: UnicodeError, shown: str) -> DataError:
    """The error of a file in another encoding than the one it is read in."""
    encoding = getattr(error, "encoding", "its encoding")
    reason = getattr(error, "reason", error)
    return DataError(f"{shown}: is not text in {encoding} ({reason}); give its encoding with --data.encoding")
