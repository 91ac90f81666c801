"""Rows of Parquet and Arrow files, read in batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lorchestra.data.readers.streams import FileRow, ReadContext
from lorchestra.errors import DataError

if TYPE_CHECKING:
    import pyarrow

_ROWS_PER_BATCH = 1024
_ARROW_FILE = b"ARROW1"


def parquet_rows(source: Path | IO[bytes], context: ReadContext) -> Iterator[FileRow]:
    """The rows of a Parquet file, numbered from 1."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(source) as file:
            schema = file.schema_arrow
            chosen = _chosen(schema.names, context)
            batches = file.iter_batches(_ROWS_PER_BATCH, columns=chosen)
            yield from _batch_rows(batches, schema, chosen, context)
    except (pyarrow.ArrowException, OSError, ValueError, ArithmeticError, LookupError) as error:
        # Arrow's errors, and Python's for dates and decimals without a Python value
        raise DataError(f"{context.shown}: cannot be read as a Parquet file ({error}); write it again") from error


def arrow_rows(source: Path | IO[bytes], context: ReadContext) -> Iterator[FileRow]:
    """The rows of an Arrow or Feather file or stream, numbered from 1."""
    import pyarrow
    import pyarrow.ipc

    try:
        with closing(pyarrow.memory_map(str(source)) if isinstance(source, Path) else source) as file:
            start = file.read(len(_ARROW_FILE))
            file.seek(0)
            if start == _ARROW_FILE:
                reader = pyarrow.ipc.open_file(file)
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
            else:
                reader = pyarrow.ipc.open_stream(file)
                batches = iter(reader)
            chosen = _chosen(reader.schema.names, context)
            small = (
                batch.slice(start, _ROWS_PER_BATCH).select(chosen)
                for batch in batches
                for start in range(0, batch.num_rows, _ROWS_PER_BATCH)
            )
            yield from _batch_rows(small, reader.schema, chosen, context)
    except (pyarrow.ArrowException, OSError, ValueError, ArithmeticError, LookupError) as error:
        raise DataError(f"{context.shown}: cannot be read as an Arrow file ({error}); write it again") from error


def _chosen(names: list[str], context: ReadContext) -> list[str]:
    context.check_names(names)
    chosen = set(context.columns(names))
    # of two columns with the same name, neither can be selected
    return [name for name in names if name in chosen and names.count(name) == 1]


def _batch_rows(
    batches: Iterator[pyarrow.RecordBatch], schema: pyarrow.Schema, chosen: list[str], context: ReadContext
) -> Iterator[FileRow]:
    classes = _class_names(schema, chosen) if context.options.label_names else {}
    for column in classes:
        context.note(f"{context.shown}: the numbers in {column!r} are read as the class names in the file's metadata")
    number = 0
    # skipped columns are kept as names, for hints in error messages
    empty = dict.fromkeys(schema.names)
    for batch in batches:
        for cells in batch.to_pylist():
            number += 1
            for column, names in classes.items():
                cells[column] = _class_name(cells[column], names)
            yield FileRow(number, {**empty, **cells}, context.shown)


def _class_names(schema: pyarrow.Schema, chosen: list[str]) -> dict[str, list[str]]:
    """Class names per column, which the `datasets` library writes into a schema's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names_by_column = {
            name: feature["names"]
            for name, feature in features.items()
            if name in chosen and isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return {
        name: names
        for name, names in names_by_column.items()
        if isinstance(names, list) and names and all(isinstance(item, str) for item in names)
    }


def _class_name(value: object, names: list[str]) -> object:
    """The name of a class number; None for -1 (no class), and other values unchanged."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value == -1:
            return None
        if 0 <= value < len(names):
            return names[value]
    return value
