"""Parquet and Arrow: batches of columns, turned into rows a batch at a time."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from lorchestra.data.readers.streams import FileRow, Reading
from lorchestra.errors import DataError

_ROWS_PER_BATCH = 1024
_ARROW_FILE = b"ARROW1"


def parquet_rows(source: Path | io.BytesIO, reading: Reading) -> Iterator[FileRow]:
    """The rows of a Parquet file, numbered from 1."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(source) as file:
            schema = file.schema_arrow
            chosen = _chosen(schema.names, reading)
            batches = file.iter_batches(_ROWS_PER_BATCH, columns=chosen)
            yield from _batch_rows(batches, schema, chosen, reading)
    except (pyarrow.ArrowException, OSError, ValueError, ArithmeticError, LookupError) as error:
        # Arrow's errors, and those of Python where a date or decimal in a cell has no Python value
        raise DataError(f"{reading.shown}: no Parquet file that can be read ({error}); write it again") from error


def arrow_rows(source: Path | io.BytesIO, reading: Reading) -> Iterator[FileRow]:
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
            chosen = _chosen(reader.schema.names, reading)
            small = (
                batch.slice(start, _ROWS_PER_BATCH).select(chosen)
                for batch in batches
                for start in range(0, batch.num_rows, _ROWS_PER_BATCH)
            )
            yield from _batch_rows(small, reader.schema, chosen, reading)
    except (pyarrow.ArrowException, OSError, ValueError, ArithmeticError, LookupError) as error:
        raise DataError(f"{reading.shown}: no Arrow file that can be read ({error}); write it again") from error


def _chosen(names: list[str], reading: Reading) -> list[str]:
    reading.check_names(names)
    chosen = set(reading.columns(names))
    # of two columns with one name neither can be picked; they are not used
    return [name for name in names if name in chosen and names.count(name) == 1]


def _batch_rows(batches: Iterator[Any], schema: Any, chosen: list[str], reading: Reading) -> Iterator[FileRow]:
    classes = _class_names(schema, chosen) if reading.options.label_names else {}
    for column in classes:
        reading.note(f"{reading.shown}: the numbers in {column!r} are read as the class names in the file's metadata")
    number = 0
    # Columns that are not read still show their names, for the hints in messages.
    empty = dict.fromkeys(schema.names)
    for batch in batches:
        for cells in batch.to_pylist():
            number += 1
            for column, names in classes.items():
                cells[column] = _class_name(cells[column], names)
            yield FileRow(number, {**empty, **cells}, reading.shown)


def _class_names(schema: Any, chosen: list[str]) -> dict[str, list[str]]:
    """Class names by column, as the `datasets` library writes them into a schema's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found = {
            name: feature["names"]
            for name, feature in features.items()
            if name in chosen and isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return {
        name: names
        for name, names in found.items()
        if isinstance(names, list) and names and all(isinstance(item, str) for item in names)
    }


def _class_name(value: Any, names: list[str]) -> Any:
    """A class's name for its number; -1 stands for no class there, and other values stay as they are."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value == -1:
            return None
        if 0 <= value < len(names):
            return names[value]
    return value
