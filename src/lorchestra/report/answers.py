"""Answers as a file: lines of JSON, or a table (CSV, TSV) with the most important columns; both also gzipped."""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from lorchestra.errors import ConfigError
from lorchestra.store.atomic import json_line
from lorchestra.types import Json

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_OTHERS = (".parquet", ".arrow", ".feather", ".xlsx", ".xls", ".ods", ".zst", ".bz2", ".xz", ".zip")
_FIRST = ("id", "row", "prediction", "confidence")
_TYPED = ("question", "score")
_LAST = (
    "entropy",
    "mutual_information",
    "disagreement",
    "calibrated",
    "abstain",
    "decision",
    "prediction_set",
    "error",
)

# What a spreadsheet treats as a formula, except for numbers.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class AnswerFormat:
    """How answers become bytes.

    `delimiter` is None for lines of JSON. A table has one column per label if there is a label set, or two per rank
    with `top`, which is below the number of labels; the question and its score if the rows are `typed`; and the
    `input_columns` of the rows: those of the first rows, since a table's columns are fixed.
    """

    name: str
    delimiter: str | None = None
    zipped: bool = False
    labels: tuple[str, ...] | None = None
    early_exit: bool = False
    top: int | None = None
    input_columns: tuple[str, ...] | None = None
    typed: bool = False

    @classmethod
    def of_file(
        cls, path: str, labels: Sequence[str] | None, early_exit: bool, top: int | None = None, *, typed: bool = False
    ) -> AnswerFormat:
        """The format by a file's name; an unknown suffix is lines of JSON.

        Raises:
            ConfigError: a known format that cannot be written.
        """
        name = PurePath(path).name.lower()
        zipped = name.endswith(".gz")
        suffix = PurePath(name.removesuffix(".gz")).suffix
        if suffix in _OTHERS:
            raise ConfigError(
                f"--out {path}: {suffix} cannot be written; give a .jsonl, .csv or .tsv file, or one with .gz"
            )
        kind = suffix[1:] if suffix in _DELIMITERS else "jsonl"
        known = None if labels is None else tuple(labels)
        ranks = top if known is not None and top is not None and top < len(known) else None
        name = f"{kind}{'.gz' if zipped else ''}"
        return cls(name, _DELIMITERS.get(suffix), zipped, known, early_exit, ranks, typed=typed)

    def with_columns(self, records: Sequence[Json]) -> AnswerFormat:
        """The format with the columns of the first rows."""
        columns = dict.fromkeys(column for record in records for column in record["input"])
        return replace(self, input_columns=tuple(columns))

    def encode(self, records: Sequence[Json], *, first: bool) -> bytes:
        """Records as bytes; a table starts with its header before the `first` ones."""
        text = self._table(records, first) if self.delimiter else "".join(f"{json_line(r)}\n" for r in records)
        data = text.encode("utf-8", "backslashreplace")
        # without a timestamp, so that the same answers are the same bytes
        return gzip.compress(data, mtime=0) if self.zipped else data

    def left_out(self, records: Sequence[Json]) -> int:
        """How many records have input columns that the table does not have."""
        if self.delimiter is None:
            return 0
        known = set(self.input_columns or ())
        return sum(not record["input"].keys() <= known for record in records)

    def _table(self, records: Sequence[Json], first: bool) -> str:
        text = io.StringIO()
        writer = csv.writer(text, delimiter=self.delimiter or ",", lineterminator="\n")
        if first:
            writer.writerow([_safe(name) for name in self._header()])
        for record in records:
            cells = [record[name] for name in self._first()]
            if self.labels is None:
                cells += _choices_and_probs(record)
            elif self.top is not None:
                pairs = [cell for one in record.get("top", ()) for cell in (one["choice"], one["prob"])]
                cells += pairs or [None] * 2 * self.top
            else:
                cells += record["probs"] or [None] * len(self.labels)
            cells += [record[name] for name in (*(["members_used"] if self.early_exit else []), *_LAST)]
            cells += [record["input"].get(name) for name in self.input_columns or ()]
            writer.writerow([_cell(cell) for cell in cells])
        return text.getvalue()

    def _first(self) -> tuple[str, ...]:
        return (*_FIRST, *_TYPED) if self.typed else _FIRST

    def _header(self) -> list[str]:
        probs = ["choices", "probs"] if self.labels is None else [f"prob_{label}" for label in self.labels]
        if self.top is not None:
            probs = [f"{what}_{rank}" for rank in range(1, self.top + 1) for what in ("choice", "prob")]
        used = ["members_used"] if self.early_exit else []
        header = [*self._first(), *probs, *used, *_LAST]
        taken = set(header)
        return [*header, *(f"input.{name}" if name in taken else name for name in self.input_columns or ())]


def _choices_and_probs(record: Json) -> list[object]:
    """The cells of a row with separate choices; the most probable ones where only these are in the record."""
    if "top" not in record:
        return [record["choices"], record["probs"]]
    return [[one[name] for one in record["top"]] or None for name in ("choice", "prob")]


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple | dict):
        return json_line(value)
    return _safe(value) if isinstance(value, str) else str(value)


def _safe(text: str) -> str:
    """Text, with an apostrophe before what a spreadsheet would run as a formula."""
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text
