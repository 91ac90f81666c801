"""What all readers share: the row of a file, reading options, and files as byte and text streams.

Byte streams are decompressed; in text streams, bytes that are not UTF-8 can be located.
"""

from __future__ import annotations

import codecs
import gzip
import io
import re
import select
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Literal, Protocol

from lorchestra.data.readers.remote import SourceFile
from lorchestra.errors import ConfigError, DataError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Format = Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow"]


@dataclass(frozen=True, slots=True)
class FileRow:
    """A row: its named cells, and its first line in the file `path`, from 1 (in Parquet and Arrow its row number).

    If the row cannot be read and the caller wants faults as values, `fault` is set and `cells` is empty.
    """

    line: int
    cells: dict[str, object]
    path: str = ""
    fault: DataError | None = None

    @property
    def where(self) -> str:
        """File and line, for error messages."""
        return f"{self.path}:{self.line}"


@dataclass(frozen=True)
class ReadOptions:
    """How files are read; options that are None are detected.

    `encoding` is the name of a text encoding, `format` replaces the one that the suffix names, `delimiter` separates
    the cells of CSV files. With `label_names`, class numbers in Parquet and Arrow files become the class names in the
    schema.
    """

    encoding: str | None = None
    format: Format | None = None
    delimiter: str | None = None
    label_names: bool = True


@dataclass(frozen=True)
class ReadContext:
    """The arguments of a reader for one file.

    `shown` is the file's name in messages, `wanted` the columns in use (duplicates are errors), `columns` selects the
    columns to read, for formats that can skip the others, and `note` is called with a sentence about each assumption.
    With `faults`, a row that cannot be read is returned with its fault instead of raising it.
    """

    shown: str
    options: ReadOptions = field(default_factory=ReadOptions)
    wanted: frozenset[str] = frozenset()
    columns: Callable[[list[str]], Iterable[str]] = list
    note: Callable[[str], None] = lambda text: None
    faults: bool = False

    def fault(self, line: int, text: str) -> FileRow:
        """A row that cannot be read.

        Raises: DataError unless `faults` is set.
        """
        error = DataError(f"{self.shown}:{line}: {text}")
        if not self.faults:
            raise error
        return FileRow(line, {}, self.shown, error)

    def check_names(self, names: list[str], line: int | None = None) -> None:
        """Refuse two columns with the same name, if it is one in use."""
        where = self.shown if line is None else f"{self.shown}:{line}"
        for name in names:
            if name in self.wanted and names.count(name) > 1:
                raise DataError(f"{where}: two columns are named {name!r}; rename one")


STANDARD_INPUT = "-"


def shown_path(path: str | SourceFile) -> str:
    """A path in messages."""
    return "standard input" if str(path) == STANDARD_INPUT else str(path)


_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_UTF8 = ("utf-8", "utf-8-sig")
# Bytes that are not UTF-8, as `surrogateescape` decodes them; no valid UTF-8 decodes to these characters.
_BAD = re.compile("[\udc80-\udcff]")


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


class _CheckedStream(io.RawIOBase):
    """A binary stream whose failures become errors that name the file."""

    def __init__(self, stream: _Stream, shown: str, message: str) -> None:
        self._stream, self._shown, self._message = stream, shown, message
        # read1 returns what a pipe has now, without waiting for a full buffer
        self._read = getattr(stream, "read1", stream.read)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        try:
            data = self._read(len(view))
        except (OSError, EOFError, zlib.error, ValueError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise DataError(f"{self._shown}: {self._message} ({reason})") from error
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            try:
                self._stream.close()
            finally:
                super().close()


@contextmanager
def open_bytes(path: SourceFile) -> Iterator[io.BufferedReader]:
    """A file, or standard input for the path `-`, as a decompressed stream.

    Raises: DataError if it cannot be opened.
    """
    with ExitStack() as opened:
        stream: _Stream
        shown = shown_path(path)
        if str(path) == STANDARD_INPUT:
            stream = _StandardInput(getattr(sys.stdin, "buffer", io.BytesIO()))
        else:
            try:
                stream = path.open("rb")
            except OSError as error:
                reason = error.strerror or error
                raise DataError(f"{path}: the file cannot be read ({reason}); check its permissions") from error
        yield _decompressed(_buffered(stream, shown, "the file cannot be read", opened), path, shown, opened)


def _buffered(stream: _Stream, shown: str, message: str, opened: ExitStack) -> io.BufferedReader:
    return opened.enter_context(io.BufferedReader(_CheckedStream(stream, shown, message), 1 << 16))


class _StandardInput:
    """Standard input, which is never closed.

    It is unbuffered where possible: the buffered stream is locked while a thread waits for a pipe, and the interpreter
    aborts if it finds it locked at exit.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = getattr(stream, "raw", stream)

    def read(self, size: int) -> bytes:
        # a program at the other end may have made it non-blocking: then there is None instead of a wait
        while (data := self._stream.read(size)) is None:
            select.select([self._stream], [], [])
        return bytes(data)

    def close(self) -> None:
        pass


def _decompressed(reader: io.BufferedReader, path: SourceFile, shown: str, opened: ExitStack) -> io.BufferedReader:
    name = path.name.lower()
    start = reader.peek(4)[:4]
    if start.startswith(_GZIP):
        plain = gzip.GzipFile(fileobj=reader, mode="rb")
        return _buffered(plain, shown, "incomplete or damaged gzip file; compress it again", opened)
    if start.startswith(_ZSTD):
        import pyarrow

        plain = pyarrow.CompressedInputStream(pyarrow.PythonFile(reader, mode="r"), "zstd")
        return _buffered(plain, shown, "incomplete or damaged Zstandard file; compress it again", opened)
    for end, kind in ((".gz", "gzip"), (".zst", "Zstandard")):
        if name.endswith(end) and start:
            message = f"{shown}: not a {kind} file, despite its name"
            raise DataError(f"{message}; rename it to {path.name[: -len(end)]} if it is plain text")
    return reader


def open_text(stream: io.BufferedReader, shown: str, encoding: str | None, newline: str | None) -> io.TextIOWrapper:
    """The stream as text; bytes that are not UTF-8 become characters that `bad_byte` detects.

    Raises:
        ConfigError: an unknown encoding.
        DataError: the text is evidently UTF-16 without a byte order mark.
    """
    start = stream.peek(64)[:64]
    if encoding is not None:
        try:
            encoding = codecs.lookup(encoding).name
            "".encode(encoding)
        except (LookupError, ValueError) as error:
            message = f"--data.encoding: {encoding!r} is not a text encoding of Python"
            raise ConfigError(f"{message}; use a name like utf-8, cp1252, latin-1, utf-16, shift_jis") from error
    if encoding is None or encoding in _UTF8:
        mark = next((mark for mark in _BOMS if start.startswith(mark)), None)
        encoding = "utf-8-sig" if mark is None else _BOMS[mark]
        if mark is None and len(start) >= 4 and (start[1::2].count(0), start[0::2].count(0)) != (0, 0):
            order = "le" if start[1::2].count(0) > start[0::2].count(0) else "be"
            if max(start[1::2].count(0), start[0::2].count(0)) * 4 >= len(start):
                raise DataError(
                    f"{shown}: looks like UTF-16 without a byte order mark; use --data.encoding utf-16-{order}"
                )
    errors = "surrogateescape" if encoding in _UTF8 else "strict"
    return io.TextIOWrapper(stream, encoding, errors, newline)


def bad_byte(text: str) -> str | None:
    """The error message for a line or cell with bytes that are not UTF-8; None if it has none."""
    match = None if text.isascii() else _BAD.search(text)
    if match is None:
        return None
    start, stop = max(0, match.start() - 20), match.start() + 20
    near = " ".join(text[start:stop].encode("utf-8", "surrogateescape").decode("cp1252", "replace").split())
    return (
        f"not UTF-8 (byte 0x{ord(match.group()) - 0xDC00:02x}); set the file's encoding: with --data.encoding cp1252"
        f" (Western European) this reads {near!r}; or save the file as UTF-8"
    )


def undecodable(error: UnicodeError, shown: str) -> DataError:
    """The error for a file in another encoding than the configured one."""
    encoding = getattr(error, "encoding", "its encoding")
    reason = getattr(error, "reason", error)
    return DataError(f"{shown}: not text in {encoding} ({reason}); set its encoding with --data.encoding")
