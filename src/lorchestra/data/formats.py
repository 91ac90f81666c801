"""The files of a path, their formats, and their rows, one at a time.

Text is UTF-8 with or without a byte order mark unless another encoding is given. `files` interprets the cells; here,
CSV cells are only converted to the types that they have in other formats (a list of choices, an integer answer).
"""

from __future__ import annotations

import dataclasses
import glob
import io
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from lorchestra.config.data import FieldsConfig
from lorchestra.data.readers.columnar import arrow_rows, parquet_rows
from lorchestra.data.readers.delimited import delimited_rows
from lorchestra.data.readers.json_files import json_rows
from lorchestra.data.readers.remote import RemoteFile, SourceFile, is_url, remote_files
from lorchestra.data.readers.streams import (
    STANDARD_INPUT,
    FileRow,
    Format,
    ReadContext,
    ReadOptions,
    open_bytes,
    shown_path,
)
from lorchestra.errors import DataError
from lorchestra.store.safe_paths import typed_path

_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".tsv": "tsv",
    ".json": "json",
    ".ndjson": "jsonl",
    ".arrow": "arrow",
    ".feather": "arrow",
}
_FORMATS |= {
    suffix + packed: _FORMATS[suffix]
    for suffix in (".jsonl", ".csv", ".tsv", ".json", ".ndjson")
    for packed in (".gz", ".zst")
}
SUFFIXES = tuple(_FORMATS)
"""File suffixes with a known format."""

F = TypeVar("F", Path, RemoteFile)

# files that the `datasets` library writes next to its Arrow files
_NOT_ROWS = {"dataset_info.json", "state.json", "dataset_dict.json"}
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}

_INTEGER = re.compile(r"\s*[+-]?\d{1,18}\s*")
_DECIMAL = re.compile(r"\s*[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?\s*")


def read_rows(
    path: str | Path,
    fields: FieldsConfig,
    options: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
    *,
    verbatim: Collection[str] = (),
    columns: Callable[[list[str]], Iterable[str]] | None = None,
    faults: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[FileRow]:
    """The rows of a file, of all files in a directory or matching a pattern, or of standard input (`-`), in order.

    A text with `://` in it is a URL, which may name a directory or a pattern, too.

    Rows are read lazily: memory holds one row, a batch of 1,024 (Parquet, Arrow), or the whole file if it is one JSON
    object with the rows in it.

    Args:
        path: file, directory, pattern, URL or `-`.
        fields: names of the columns in use.
        options: how to read the files.
        verbatim: names of more columns in use, whose CSV cells stay text.
        columns: selects the columns of a Parquet or Arrow file to read; default: those in `fields`. The cells of the
            others are None.
        faults: yield a row that cannot be read (invalid JSON, too many cells) as a `FileRow` with its `fault`, and
            continue.
        note: called with a sentence about each assumption.

    Raises: DataError if a file is missing, has an unknown format or is damaged; without `faults`, also for bad rows.
    """
    wanted = frozenset({*asdict(fields).values(), *verbatim})
    for file, kind in row_files(path, options, note):
        pick = columns or (lambda names: [name for name in names if name in wanted])
        context = ReadContext(shown_path(file), options, wanted, pick, note, faults)
        typed = {fields.choices, fields.answer, fields.label} - set(verbatim)
        yield from _file_rows(file, kind, context, fields, typed)


def row_files(
    path: str | Path, options: ReadOptions, note: Callable[[str], None] = lambda text: None
) -> list[tuple[SourceFile, Format | None]]:
    """The files of a path, sorted, with their formats; None if the format must be detected from the content.

    Raises: DataError if there are none, or several formats or splits.
    """
    if str(path) == STANDARD_INPUT:
        return [(Path(STANDARD_INPUT), options.format)]
    if is_url(path):
        return _with_note(path, _at_url(str(path), options), note)
    path = typed_path(path)
    try:
        is_directory, exists = path.is_dir(), path.exists()
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read ({error.strerror}); check the path") from error
    if is_directory:
        files = _of_one_format(path, "directory", path.iterdir(), options)
    elif not exists and glob.has_magic(str(path)):
        files = _of_one_format(path, "pattern", map(Path, glob.glob(str(path), recursive=True)), options)
    else:
        return [(_checked(path, exists), options.format or _format(path))]
    return _with_note(path, files, note)


def _with_note(
    path: str | Path, files: list[tuple[SourceFile, Format | None]], note: Callable[[str], None]
) -> list[tuple[SourceFile, Format | None]]:
    if len(files) > 1:
        note(f"{path}: {len(files)} files, {files[0][0].name} to {files[-1][0].name}")
    return files


def _at_url(url: str, options: ReadOptions) -> list[tuple[SourceFile, Format | None]]:
    files, several = remote_files(url)
    if several:
        return _of_one_format(url, "directory or pattern", files, options)
    return [(file, options.format or _format(file)) for file in files]


def stem(path: str | Path) -> str:
    """A file's name without the suffix of its format."""
    name = Path(path).name
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name.rpartition(".")[0] or name


def rows_name(path: str | Path) -> str:
    """The name of rows from a file, directory or pattern: its name up to the first dot."""
    path = Path(path)
    name = re.sub(r"[][*?]+", "", path.name.split(".")[0]).strip("-_")
    return name or path.parent.name or "rows"


def is_file_name(value: str) -> bool:
    """Whether a value must be a file: it exists, or has a slash, a pattern or a known suffix."""
    is_path = value == STANDARD_INPUT or value.lower().endswith(SUFFIXES) or "/" in value or glob.has_magic(value)
    return is_path or typed_path(value).exists()


def _suffix_format(path: SourceFile) -> Format | None:
    name = path.name.lower()
    return next((kind for suffix, kind in _FORMATS.items() if name.endswith(suffix)), None)


def _format(path: SourceFile) -> Format:
    kind = _suffix_format(path)
    if kind is None:
        message = f"{path}: the suffix is none of {', '.join(SUFFIXES)}"
        raise DataError(f"{message}; rename or convert the file, or set its format, e.g. --data.format csv")
    return kind


def _checked(path: Path, exists: bool) -> Path:
    try:
        if not exists:
            raise DataError(f"{path}: no such file; check the path")
        if not path.is_file():  # reading a pipe or device could block forever
            raise DataError(f"{path}: not a regular file; write the rows to one first, or use - and pipe them in")
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read ({error.strerror}); check the path") from error
    return path


def _of_one_format(
    path: str | Path, what: str, candidates: Iterable[F], options: ReadOptions
) -> list[tuple[SourceFile, Format | None]]:
    files: dict[F, Format] = {}
    for file in sorted(candidates):
        kind = _suffix_format(file)
        if kind is not None and file.is_file() and file.name not in _NOT_ROWS and not file.name.startswith("."):
            files[file] = kind
    if options.format is not None:
        files = {file: kind for file, kind in files.items() if kind == options.format}
    kinds = sorted(set(files.values()))
    if not files:
        known = ", ".join(SUFFIXES)
        raise DataError(f"{path}: this {what} has no files with rows ({known}); use a file or another {what}")
    if len(kinds) > 1:
        counts = ", ".join(f"{list(files.values()).count(kind)} {kind}" for kind in kinds)
        raise DataError(f"{path}: this {what} has files of several formats ({counts}); choose with --data.format")
    splits: dict[str, F] = {}
    for file in files:
        split = _SPLITS.get(re.split(r"[-_.]", file.name.lower())[0])
        if split is not None:
            splits.setdefault(split, file)
    if len(splits) > 1:
        give = " ".join(f"--data.{split} {file}" for split, file in sorted(splits.items()))
        raise DataError(f"{path}: this {what} has files of several splits; use one for each: {give}")
    return [(file, kind) for file, kind in files.items()]


def _file_rows(
    path: SourceFile, kind: Format | None, context: ReadContext, fields: FieldsConfig, typed: Collection[str]
) -> Iterator[FileRow]:
    columnar = parquet_rows if kind == "parquet" else arrow_rows
    if isinstance(path, RemoteFile) and kind in ("parquet", "arrow"):
        with path.open() as remote:
            yield from columnar(remote, context)
        return
    if isinstance(path, Path) and str(path) != STANDARD_INPUT and kind in ("parquet", "arrow"):
        yield from columnar(path, context)
        return
    with open_bytes(path) as stream:
        kind = kind or _sniffed(stream)
        if kind in ("parquet", "arrow"):
            yield from (parquet_rows if kind == "parquet" else arrow_rows)(io.BytesIO(stream.read()), context)
        elif kind in ("jsonl", "json"):
            yield from json_rows(stream, context, one_value=kind == "json")
        else:
            delimiter = context.options.delimiter or ("\t" if kind == "tsv" else None)
            rows = delimited_rows(stream, context, delimiter)
            yield from (dataclasses.replace(row, cells=_typed_cells(row.cells, fields, typed)) for row in rows)


def _sniffed(stream: io.BufferedReader) -> Format:
    """The format of standard input, by its first bytes."""
    start = stream.peek(64)[:64]
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    return "json" if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[") else "csv"


def _typed_cells(cells: dict[str, object], fields: FieldsConfig, typed: Collection[str]) -> dict[str, object]:
    for column in typed:
        cell = cells.get(column)
        if isinstance(cell, str):
            cells[column] = _typed(cell, integer=column == fields.answer, decimal=column != fields.choices)
    return cells


def _typed(cell: str, *, integer: bool, decimal: bool) -> object:
    """A CSV cell as a list or number if it is one, else unchanged."""
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
