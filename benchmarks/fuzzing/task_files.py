"""Damaged and hostile task files, through reading, splitting and encoding."""

from __future__ import annotations

import csv
import datetime
import decimal
import functools
import gzip
import io
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow
import pyarrow.parquet
from tiny_base import WORDS, tiny_tokenizer

from fuzzing.damage import STRANGE_TEXTS, damage_bytes, dumps, other_encoding, strange_value
from fuzzing.harness import ViolationError, Work
from lorchestra.config.data import DataConfig, FieldsConfig
from lorchestra.data.encode import can_use_letters, class_weights, encode
from lorchestra.data.prompts import PromptTemplate
from lorchestra.data.splits import split_digest
from lorchestra.errors import LorchestraError
from lorchestra.runs.rows import RunRows, read_rows

FORMATS = ("jsonl", "jsonl.gz", "csv", "parquet")
tokenizer = functools.cache(tiny_tokenizer)


class TaskFiles:
    """A training file, sometimes with validation and test files; read, split and encoded."""

    name = "task files"
    kinds: ClassVar[Sequence[str]] = (
        "valid",
        "damaged bytes",
        "random bytes",
        "encodings",
        "strange cells",
        "strange rows",
        "strange CSV cells",
        "Parquet types",
        "damaged Parquet",
        "damaged gzip",
        "deep nesting",
        "very many choices",
        "very long texts",
        "repeated keys and columns",
        "names and paths",
        "several files",
    )

    def prepare(self, kind: str, draw: random.Random, folder: Path) -> Work:
        """Write the files of one case; the work reads, splits and encodes them."""
        config = _WRITERS[kind](draw, folder)
        return _Work(config, draw.randrange(4), draw, must_work=kind == "valid")


class _Work:
    def __init__(self, config: DataConfig, seed: int, draw: random.Random, must_work: bool) -> None:
        self.config, self.seed, self.must_work = config, seed, must_work
        self.max_length = draw.choice((None, None, None, 30, 3))
        self.too_long = draw.choice(("error", "drop", "truncate"))

    def __call__(self) -> object:
        try:
            rows = read_rows(self.config, self.seed)
        except LorchestraError as error:
            if self.must_work:
                raise ViolationError(f"a valid file was refused: {error}") from error
            raise
        check_rows(rows)
        task = rows.task
        template = PromptTemplate(kind="question" if task.labels is None else "label")
        train = task.splits["train"]
        scoring = "letter" if can_use_letters(train, template, tokenizer())[0] else "text"
        for split in task.splits.values():
            encoded_rows = encode(
                split,
                template,
                tokenizer(),
                scoring=scoring,
                normalize="byte" if scoring == "text" else "sum",
                max_length=self.max_length,
                too_long=self.too_long,
            )
            for index, row in zip(encoded_rows.kept, encoded_rows.rows, strict=True):
                check_that(len(row.choices) == len(split[index].choices), "a choice was lost in encoding")
                check_that(bool(row.prefix) and all(row.choices), "a row without a prefix or tokens of a choice")
        if task.labels is not None:
            class_weights(train, len(task.labels))
        return rows


def check_that(holds: bool, what: str) -> None:
    """Raise a violation unless a property holds."""
    if not holds:
        raise ViolationError(what)


def check_rows(rows: RunRows) -> None:
    """Check what the rest of the program assumes about rows."""
    splits = rows.task.splits
    check_that(set(splits) == {"train", "val", "test"} and all(splits.values()), "a split is missing or empty")
    for split in splits.values():
        check_that(len({row.id for row in split}) == len(split), "two rows of a split have one id")
        split_digest(split)
        for row in split:
            for text in (row.id, row.question, *row.choices[:1000]):
                text.encode()
                check_that(bool(text.strip()), "an empty id, question or choice")
            check_that(len(row.choices) >= 2, "a row with one choice")
            check_that(row.answer is None or 0 <= row.answer < len(row.choices), "an answer out of range")
    json.dumps(rows.record()).encode()
    for note in rows.notes:
        check_that(note.isprintable(), f"a note with control characters: {note[:200]!r}")


def valid_rows(draw: random.Random, number: int = 30, form: str | None = None) -> list[dict[str, Any]]:
    """Valid rows: questions with choices, or texts with labels."""
    form = form or draw.choice(("question", "text"))
    rows: list[dict[str, Any]] = []
    for index in range(number):
        text = " ".join(draw.choices(WORDS, k=draw.randrange(3, 9))) + f" {index}"
        if form == "text":
            rows.append({"text": text, "label": draw.choice(("yes", "no")) if index > 1 else ("yes", "no")[index]})
        else:
            choices = draw.sample(WORDS, draw.randrange(2, 5))
            rows.append({"question": text, "choices": choices, "answer": draw.randrange(len(choices))})
    return rows


def jsonl(rows: Sequence[Any]) -> bytes:
    """One JSON value per line."""
    return "".join(dumps(row) + "\n" for row in rows).encode()


def as_csv(rows: Sequence[dict[str, Any]]) -> bytes:
    """Rows as CSV; lists as JSON in their cells."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(columns)
    for row in rows:
        cells = (row.get(name) for name in columns)
        writer.writerow([dumps(cell) if isinstance(cell, list | dict) else cell for cell in cells])
    return out.getvalue().encode(errors="replace")


def as_parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    """Rows as Parquet."""
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), out)
    return out.getvalue()


def encoded(rows: Sequence[dict[str, Any]], suffix: str) -> bytes:
    """Rows in one of the four formats."""
    if suffix == "parquet":
        return as_parquet(rows)
    data = as_csv(rows) if suffix == "csv" else jsonl(rows)
    return gzip.compress(data, compresslevel=1) if suffix.endswith(".gz") else data


def _write(folder: Path, suffix: str, data: bytes, stem: str = "rows") -> str:
    path = folder / f"{stem}.{suffix}"
    path.write_bytes(data)
    return str(path)


def _valid(draw: random.Random, folder: Path) -> DataConfig:
    suffix = draw.choice(FORMATS)
    return DataConfig(train=_write(folder, suffix, encoded(valid_rows(draw), suffix)))


def _damaged_bytes(draw: random.Random, folder: Path) -> DataConfig:
    suffix = draw.choice(("jsonl", "csv"))
    return DataConfig(train=_write(folder, suffix, damage_bytes(encoded(valid_rows(draw), suffix), draw)))


def _random_bytes(draw: random.Random, folder: Path) -> DataConfig:
    return DataConfig(train=_write(folder, draw.choice(FORMATS), draw.randbytes(draw.choice((0, 1, 7, 300, 4000)))))


def _encodings(draw: random.Random, folder: Path) -> DataConfig:
    suffix = draw.choice(("jsonl", "csv"))
    rows = valid_rows(draw)
    for row in draw.sample(rows, 5):
        row["text" if "text" in row else "question"] += " Überschrift שלום 電影 😀"
    return DataConfig(train=_write(folder, suffix, other_encoding(encoded(rows, suffix).decode(), draw)))


def _strange_cells(draw: random.Random, folder: Path) -> DataConfig:
    """Mostly valid JSONL, with strange values in one to three cells."""
    rows = valid_rows(draw)
    for row in draw.sample(rows, draw.randrange(1, 4)):
        text = draw.random() < 0.5
        row[draw.choice([*row, "id", "other"])] = draw.choice(STRANGE_TEXTS) if text else strange_value(draw)
        if draw.random() < 0.3 and isinstance(row.get("choices"), list):
            row["choices"].append(strange_value(draw))
    return DataConfig(train=_write(folder, "jsonl", jsonl(rows)))


def _strange_rows(draw: random.Random, folder: Path) -> DataConfig:
    """Any cell may be strange, rows may be of any type, columns may be missing."""
    rows: list[Any] = valid_rows(draw, draw.randrange(1, 12))
    for index, row in enumerate(rows):
        if draw.random() < 0.1:
            rows[index] = strange_value(draw)
        elif draw.random() < 0.4:
            row[draw.choice(["question", "choices", "answer", "text", "label", "id"])] = strange_value(draw)
        elif draw.random() < 0.2:
            del row[draw.choice(list(row))]
    names = [draw.choice(STRANGE_TEXTS), "question", "choices", "answer", "text", "label", "id"]
    fields = FieldsConfig(**{draw.choice(("question", "text", "label", "id")): draw.choice(names)})
    return DataConfig(train=_write(folder, "jsonl", jsonl(rows)), fields=draw.choice((FieldsConfig(), fields)))


def _strange_csv(draw: random.Random, folder: Path) -> DataConfig:
    rows = valid_rows(draw, draw.randrange(1, 30))
    for row in draw.sample(rows, draw.randrange(1, len(rows) + 1)):
        row[draw.choice([*row, "id"])] = draw.choice((strange_value(draw), draw.choice(STRANGE_TEXTS)))
    data = as_csv(rows)
    if draw.random() < 0.3:
        data = data.replace(b",", draw.choice((b";", b"\t", b",,")))
    return DataConfig(train=_write(folder, "csv", data))


def _parquet_types(draw: random.Random, folder: Path) -> DataConfig:
    """Columns of any Arrow type under the expected names."""
    number = draw.choice((0, 1, 3, 30))
    columns: dict[str, Any] = {}
    for name in draw.sample(["question", "choices", "answer", "text", "label", "id"], draw.randrange(2, 7)):
        columns[name] = _array(draw, number)
    if draw.random() < 0.5:
        names = {"text": "string", "label": "string"} if draw.random() < 0.5 else {"question": "string"}
        columns |= {name: pyarrow.array([f"{name} {i % 7}" for i in range(number)]) for name in names}
    table = pyarrow.table(columns)
    out = io.BytesIO()
    pyarrow.parquet.write_table(table, out, compression=draw.choice(("snappy", "none", "zstd", "gzip")))
    return DataConfig(train=_write(folder, "parquet", out.getvalue()))


def _array(draw: random.Random, number: int) -> Any:
    samples: tuple[tuple[Any, Any], ...] = (
        ("text", pyarrow.string()),
        ("text", pyarrow.large_string()),
        ("text", pyarrow.dictionary(pyarrow.int8(), pyarrow.string())),
        (b"\xff\x00bytes", pyarrow.binary()),
        (draw.choice((0, 1, 2, 9)), pyarrow.int64()),
        (1, pyarrow.uint8()),
        (1.5, pyarrow.float64()),
        (float("nan"), pyarrow.float32()),
        (decimal.Decimal("1.50"), pyarrow.decimal128(10, 2)),
        (True, pyarrow.bool_()),
        (None, pyarrow.null()),
        (["a", "b"], pyarrow.list_(pyarrow.string())),
        (["a", None], pyarrow.large_list(pyarrow.string())),
        ([1, 2], pyarrow.list_(pyarrow.int32())),
        ([["a"], ["b"]], pyarrow.list_(pyarrow.list_(pyarrow.string()))),
        ({"a": 1, "b": "x"}, pyarrow.struct([("a", pyarrow.int64()), ("b", pyarrow.string())])),
        ([("a", 1)], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
        (datetime.date(2020, 1, 1), pyarrow.date32()),
        (2**31 - 1, pyarrow.date32()),
        (-(2**31), pyarrow.date32()),
        (datetime.datetime(2020, 1, 1), pyarrow.timestamp("ns", tz="Europe/Berlin")),
        (2**50, pyarrow.timestamp("s")),
        (2**62, pyarrow.timestamp("ns")),
        (1, pyarrow.timestamp("us", tz="No/Where")),
        (2**62, pyarrow.duration("us")),
        (86_400_000_000 - 1, pyarrow.time64("us")),
    )
    value, kind = draw.choice(samples)
    nulls = draw.random() < 0.3
    values = [None if nulls and draw.random() < 0.3 else value for _ in range(number)]
    if isinstance(value, int) and (pyarrow.types.is_temporal(kind)):
        width = kind.bit_width
        whole = pyarrow.array(values, pyarrow.int32() if width == 32 else pyarrow.int64())
        return whole.cast(kind) if not pyarrow.types.is_duration(kind) else whole.view(kind)
    return pyarrow.array(values, kind)


def _damaged_parquet(draw: random.Random, folder: Path) -> DataConfig:
    return DataConfig(train=_write(folder, "parquet", damage_bytes(as_parquet(valid_rows(draw)), draw)))


def _damaged_gzip(draw: random.Random, folder: Path) -> DataConfig:
    plain = jsonl(valid_rows(draw))
    half = len(plain) // 2
    data = draw.choice(
        (
            damage_bytes(gzip.compress(plain), draw),
            gzip.compress(plain[:half]) + gzip.compress(plain[half:]),
            gzip.compress(plain) + draw.randbytes(20),
            plain,
            gzip.compress(gzip.compress(plain)),
            gzip.compress(damage_bytes(plain, draw)),
        )
    )
    return DataConfig(train=_write(folder, "jsonl.gz", data))


def _deep(draw: random.Random, folder: Path) -> DataConfig:
    depth = draw.choice((10, 500, 990, 1_000, 5_000, 100_000))
    opening, closing = draw.choice((("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")))
    value = opening * depth + "1" + closing * draw.choice((depth, depth, 0))
    column = draw.choice(("choices", "question", "answer", "other"))
    rows = valid_rows(draw)
    if draw.random() < 0.5:
        cell = '"' + value.replace('"', '""') + '"'
        data = f"question,choices,answer,other\nq,{cell},{cell},{cell}\n".encode()
        return DataConfig(train=_write(folder, "csv", data))
    line = json.dumps(rows[0])[:-1] + f', "{column}": {value}}}\n'
    return DataConfig(train=_write(folder, "jsonl", jsonl(rows[1:]) + line.encode()))


def _many_choices(draw: random.Random, folder: Path) -> DataConfig:
    """Many choices; a million in one of 64 cases, which takes seconds."""
    number = draw.choice((10, 26, 27, 1000, 10_000)) if draw.randrange(64) else 10**6
    rows = valid_rows(draw, 20, "question")
    rows[5]["choices"] = [str(i) for i in range(number)]
    rows[5]["answer"] = draw.choice((0, number - 1, number))
    if draw.random() < 0.3:
        rows[5]["choices"][-1] = draw.choice(STRANGE_TEXTS)
    suffix = draw.choice(("jsonl", "csv", "parquet"))
    if suffix == "parquet" and rows[5]["choices"][-1].encode(errors="replace") != rows[5]["choices"][-1].encode(
        errors="ignore"
    ):
        suffix = "jsonl"
    return DataConfig(train=_write(folder, suffix, encoded(rows, suffix)))


def _long_texts(draw: random.Random, folder: Path) -> DataConfig:
    rows = valid_rows(draw)
    size = draw.choice((1_000, 100_000)) if draw.randrange(16) else 200_000
    text = draw.choice(("x", "word ", "\u202e", "é", "\n", "[", '"', ",", "{question}", "\x00")) * size
    text = text[:300_000]
    row = draw.choice(rows)
    part = draw.choice([*row, "id"])
    row[part] = [text, "b"] if part == "choices" and draw.random() < 0.5 else text
    suffix = draw.choice(("jsonl", "csv", "jsonl.gz"))
    return DataConfig(train=_write(folder, suffix, encoded(rows, suffix)))


def _repeated(draw: random.Random, folder: Path) -> DataConfig:
    rows = valid_rows(draw)
    name = draw.choice([*rows[0], "id", "other"])
    if draw.random() < 0.5:
        lines = [json.dumps(row) for row in rows]
        index = draw.randrange(len(lines))
        lines[index] = lines[index][:-1] + f', "{name}": {dumps(strange_value(draw))}, "{name}": 1}}'
        return DataConfig(train=_write(folder, "jsonl", ("\n".join(lines) + "\n").encode()))
    lines = as_csv(rows).decode().split("\r\n")
    again = draw.choice((name, "", f" {name}", name.upper()))
    lines = [f"{line},{again if index == 0 else 'x'}" for index, line in enumerate(lines) if line]
    return DataConfig(train=_write(folder, "csv", "\n".join(lines).encode()))


def _names(draw: random.Random, folder: Path) -> DataConfig:
    """Files with strange names, and paths that are not files."""
    data = jsonl(valid_rows(draw))
    way = draw.randrange(9)
    if way == 0:
        return DataConfig(train=str(folder / "none.jsonl"))
    if way == 1:
        (folder / "rows.jsonl").mkdir()
        return DataConfig(train=str(folder / "rows.jsonl"))
    if way == 2:
        os.mkfifo(folder / "rows.jsonl")
        return DataConfig(train=str(folder / "rows.jsonl"))
    if way == 3:
        (folder / "rows.jsonl").symlink_to(folder / draw.choice(("rows.jsonl", "none")))
        return DataConfig(train=str(folder / "rows.jsonl"))
    if way == 4:
        return DataConfig(train=str(folder / ("x" * draw.choice((240, 300, 5000)) + ".jsonl")))
    if way == 5:
        bad = draw.choice(("\x00.jsonl", "\ud800.jsonl", "", ".", "..", "/", "rows.csv/rows.jsonl", "\x1b[31m.jsonl"))
        return DataConfig(train=bad)
    if way == 6:
        return DataConfig(
            train=_write(folder, draw.choice(("txt", "JSONL", "json", "", "gz", "csv.gz", "PARQUET")), data)
        )
    stem = draw.choice(
        ("", ".", "a.b.c", "new\nline", "\x1b[31m", "[bold]", "שלום", " ", "{question}", "-rf", "\u202e")
    )
    return DataConfig(train=_write(folder, "jsonl", data, stem))


def _several(draw: random.Random, folder: Path) -> DataConfig:
    """Validation and test files that may have another form, repeat training rows, or have new labels."""
    train = valid_rows(draw)
    files: dict[str, str] = {"train": _write(folder, "jsonl", jsonl(train))}
    for split in draw.choice((("val",), ("test",), ("val", "test"))):
        way = draw.randrange(6)
        form = "text" if "text" in train[0] else "question"
        rows = valid_rows(draw, draw.choice((1, 12)), form if way else None)
        if way == 1:
            rows = list(train)
        elif way == 2 and form == "text":
            rows[0]["label"] = draw.choice(STRANGE_TEXTS)
        elif way == 3:
            rows = train[: draw.randrange(len(train))]
        elif way == 4:
            rows[0][draw.choice(list(rows[0]))] = strange_value(draw)
        files[split] = _write(folder, "jsonl", jsonl(rows), split)
    return DataConfig(**files)


_WRITERS = {
    "valid": _valid,
    "damaged bytes": _damaged_bytes,
    "random bytes": _random_bytes,
    "encodings": _encodings,
    "strange cells": _strange_cells,
    "strange rows": _strange_rows,
    "strange CSV cells": _strange_csv,
    "Parquet types": _parquet_types,
    "damaged Parquet": _damaged_parquet,
    "damaged gzip": _damaged_gzip,
    "deep nesting": _deep,
    "very many choices": _many_choices,
    "very long texts": _long_texts,
    "repeated keys and columns": _repeated,
    "names and paths": _names,
    "several files": _several,
}
