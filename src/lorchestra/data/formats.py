"""The file formats of task files: bytes on disk to rows of named cells.

JSONL and CSV are UTF-8 with or without a byte order mark. What the cells mean is decided in `files`; here a CSV cell
is only turned into what the other formats would hold (a list of choices, an integer answer), where it can be.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorchestra.data.config import FieldsConfig
from lorchestra.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".parquet")

_INTEGER = re.compile(r"\s*[+-]?\d{1,18}\s*")
_DECIMAL = re.compile(r"\s*[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?\s*")
# A text in one cell may be longer than the csv module's own bound of 128 KiB.
_LONGEST_CELL = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Row:
    """One row: `line` is its first line in the file from 1 (in Parquet its row number), `cells` its named values."""

    line: int
    cells: dict[str, Any]


def read_rows(path: Path, fields: FieldsConfig) -> list[Row]:
    """All rows of a task file in file order; of a Parquet file only the cells of columns that `fields` names.

    Raises: DataError where the file is missing, of no known format, or broken.
    """
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        message = f"{path}: the suffix is none of {', '.join(SUFFIXES)}; convert the file or rename it"
        raise DataError(message)
    _check_readable(path)
    if name.endswith(".parquet"):
        return list(_parquet_rows(path, set(asdict(fields).values())))
    data = _read_bytes(path, zipped=name.endswith(".gz"))
    text = _decode(path, data)
    return list(_csv_rows(path, text, fields) if name.endswith(".csv") else _jsonl_rows(path, text, fields))


def _check_readable(path: Path) -> None:
    try:
        if path.is_dir():
            raise DataError(f"{path}: this is a directory; name a file in it")
        if not path.exists():
            raise DataError(f"{path}: no such file; check the path")
        if not path.is_file():  # reading a pipe or a device could wait forever
            raise DataError(f"{path}: this is no regular file; write the rows to one first")
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read ({error.strerror}); check the path") from error


def _read_bytes(path: Path, *, zipped: bool) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read ({error.strerror}); check its permissions") from error
    if not zipped:
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        message = f"{path}: no whole gzip file ({error}); compress it again, or name it .jsonl if it is plain text"
        raise DataError(message) from error


def _decode(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        raise DataError(f"{path}:{line}: not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8") from error


class _Object(dict[str, Any]):
    """A JSON object that remembers which of its keys came more than once (it keeps the last value of each)."""

    repeated: frozenset[str] = frozenset()


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    found = _Object(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        found.repeated = frozenset(name for name, count in counts.items() if count > 1)
    return found


def _jsonl_rows(path: Path, text: str, fields: FieldsConfig) -> Iterator[Row]:
    wanted = set(asdict(fields).values())
    # Not `splitlines`: a JSON string may hold U+2028 and other separators as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        shown = line.strip()[:60]
        try:
            cells = json.loads(line, object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            message = f"{path}:{number}: no JSON at column {error.colno} ({error.msg}): {shown}"
            raise DataError(f"{message}; write one JSON object a line") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: JSON that cannot be read ({error}): {shown}; simplify it") from error
        if not isinstance(cells, _Object):
            raise DataError(
                f"{path}:{number}: not a JSON object: {shown}; write one object a line, with a key a column"
            )
        for column in sorted(wanted & cells.repeated):
            raise DataError(f"{path}:{number}: the key {column!r} comes twice; leave one out")
        yield Row(number, cells)


def _csv_rows(path: Path, text: str, fields: FieldsConfig) -> Iterator[Row]:
    header: list[str] | None = None
    for line, cells in _csv_lines(path, text):
        if header is None:
            _check_names(f"{path}:{line}", cells, set(asdict(fields).values()))
            header = cells
            continue
        if len(cells) > len(header):
            message = f"{path}:{line}: {len(cells)} cells under a header of {len(header)}"
            raise DataError(f"{message}; put cells that hold commas in double quotes")
        values: list[Any] = [cell or None for cell in cells] + [None] * (len(header) - len(cells))
        row = dict(zip(header, values, strict=True))
        for part in (fields.choices, fields.answer, fields.label):
            if row.get(part) is not None:
                row[part] = _typed(row[part], integer=part == fields.answer, decimal=part != fields.choices)
        yield Row(line, row)


def _csv_lines(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row that has any, with the number of the row's first line."""
    bound = csv.field_size_limit(_LONGEST_CELL)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                message = f"{path}:{line}: the row that starts here is no CSV ({error}"
                raise DataError(f"{message}, line {reader.line_num}); close and double its quotes") from error
            if any(cells):
                yield line, cells
    finally:
        csv.field_size_limit(bound)


def _typed(cell: str, *, integer: bool, decimal: bool) -> Any:
    """A CSV cell as the list or number it spells, else as it is."""
    if integer and _INTEGER.fullmatch(cell):
        return int(cell)
    if decimal and _DECIMAL.fullmatch(cell):
        return float(cell)
    if cell.lstrip().startswith("["):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return cell


def _parquet_rows(path: Path, wanted: set[str]) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _check_names(str(path), names, wanted)
            values = file.read(columns=[name for name in names if name in wanted]).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, ArithmeticError, LookupError) as error:
        # Arrow's own errors, and those of Python where a date or decimal in a cell has no Python value
        raise DataError(f"{path}: no Parquet file that can be read ({error}); write it again") from error
    for number, cells in enumerate(values, 1):
        # Columns that were not read still show their names, for the hints in messages.
        yield Row(number, {**dict.fromkeys(names), **cells})


def _check_names(where: str, names: list[str], wanted: set[str]) -> None:
    for name in names:
        if name in wanted and names.count(name) > 1:
            raise DataError(f"{where}: two columns are named {name!r}; rename one")
