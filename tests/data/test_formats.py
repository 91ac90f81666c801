"""Rows of files of every format: streamed, with faults per row and notes about assumptions."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from lorchestra.config.data import FieldsConfig
from lorchestra.data.formats import FileRow, read_rows, stem
from lorchestra.data.readers import delimited
from lorchestra.data.readers.streams import ReadOptions
from lorchestra.errors import ConfigError, DataError

ROWS = [{"text": "a, b", "label": "x"}, {"text": "c, d", "label": "y"}]


def cells(path: Path | str, notes: list[str] | None = None, **options: Any) -> list[dict[str, Any]]:
    note = (lambda text: None) if notes is None else notes.append
    return [row.cells for row in read_rows(path, FieldsConfig(), ReadOptions(**options), note=note)]


def message(path: Path | str, **options: Any) -> str:
    with pytest.raises((DataError, ConfigError)) as caught:
        cells(path, **options)
    return str(caught.value)


def delimited_text(mark: str, end: str = "\n") -> str:
    return end.join([mark.join(("text", "label")), *(mark.join(row.values()) for row in ROWS)]) + end


def packed(data: bytes, kind: str) -> bytes:
    if kind == "gz":
        return gzip.compress(data)
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


JSON_LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
COLUMNS = {"text": [row["text"] for row in ROWS], "label": [row["label"] for row in ROWS]}
CONTENTS = {
    "t.jsonl": JSON_LINES,
    "t.ndjson": JSON_LINES,
    "lines.json": JSON_LINES,
    "array.json": json.dumps(ROWS, indent=1),
    "short-array.json": json.dumps(ROWS),
    "array.jsonl": json.dumps(ROWS),
    "wrapped.json": json.dumps({"version": 1, "data": ROWS}, indent=2),
    "wrapped-line.json": json.dumps({"version": 1, "data": ROWS}),
    "columns.json": json.dumps(COLUMNS),
    "pandas.json": json.dumps({name: dict(enumerate(column)) for name, column in COLUMNS.items()}),
    "tab.csv": delimited_text("\t"),
    "t.tsv": delimited_text("\t"),
    "semicolon.csv": delimited_text(";"),
    "bar.csv": delimited_text("|"),
    "crlf.csv": delimited_text(";", "\r\n"),
    "cr.csv": delimited_text(";", "\r"),
    "cr.jsonl": JSON_LINES.replace("\n", "\r"),
    "sep.csv": "sep=;\n" + delimited_text(";"),
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("pack", ["", ".gz", ".zst"])
def test_every_text_format_gives_the_same_rows(tmp_path: Path, name: str, pack: str) -> None:
    data = CONTENTS[name].encode()
    (tmp_path / (name + pack)).write_bytes(packed(data, pack[1:]) if pack else data)
    assert cells(tmp_path / (name + pack)) == ROWS


def test_tables_give_the_same_rows(tmp_path: Path) -> None:
    table = pa.table(COLUMNS)
    pq.write_table(table, tmp_path / "t.parquet")
    pyarrow.feather.write_feather(table, tmp_path / "t.feather")
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for name in ("t.parquet", "t.feather", "t.arrow"):
        assert cells(tmp_path / name) == ROWS
        assert [row.line for row in read_rows(tmp_path / name, FieldsConfig())] == [1, 2]


def endless(name: str, size: int) -> bytes:
    row = {"text": "word " * 100, "label": "x"}
    if name.endswith(".jsonl"):
        return (json.dumps(row) + "\n").encode() * size
    if name.endswith(".json"):
        return b"[" + b",\n".join([json.dumps(row).encode()] * size) + b"]"
    return b"text,label\n" + (",".join(row.values()) + "\n").encode() * size


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.csv", "t.jsonl.gz", "t.csv.zst"])
def test_rows_are_read_lazily(tmp_path: Path, name: str) -> None:
    plain, _, pack = name.partition(".gz") if name.endswith("gz") else name.partition(".zst")
    data = endless(plain, 40_000)
    (tmp_path / name).write_bytes(packed(data, name.rpartition(".")[2]) if pack or plain != name else data)
    next(read_rows(tmp_path / name, FieldsConfig()))  # imports and caches
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_rows(tmp_path / name, FieldsConfig()))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 40_000
    assert peak < len(data) / 2


def test_a_fault_comes_after_the_rows_before_it(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(JSON_LINES + "{broken\n")
    rows = read_rows(tmp_path / "t.jsonl", FieldsConfig())
    assert [row.cells for row in itertools.islice(rows, 2)] == ROWS
    with pytest.raises(DataError, match=r"t\.jsonl:3"):
        next(rows)


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("t.jsonl", b'{"text": "a"}\n{broken\n{"text": "caf\xe9"}\n[1]\n\n{"text": "b"}\n', [2, 3, 4]),
        ("t.csv", b'text,label\na,x\n"b"c,y\nd,e,f\ncaf\xe9,y\nb,x\n', [3, 4, 5]),
        ("t.json", b'[{"text": "a"},\n3,\n{"text": "b"}]', [2]),
    ],
)
def test_faults_of_rows_as_values(tmp_path: Path, name: str, content: bytes, lines: list[int]) -> None:
    (tmp_path / name).write_bytes(content)
    rows = list(read_rows(tmp_path / name, FieldsConfig(), faults=True))
    assert [row.cells["text"] for row in rows if row.fault is None] == ["a", "b"]
    faulty = [row for row in rows if row.fault is not None]
    assert [row.line for row in faulty] == lines
    assert all(str(row.fault).startswith(f"{tmp_path / name}:{row.line}: ") for row in faulty)
    assert all(isinstance(row, FileRow) and row.cells == {} for row in faulty)


def test_lines_of_array_elements(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('\n[\n{"text":\n"a"},\n\n{"text": "b"}\n]\n')
    assert [row.line for row in read_rows(tmp_path / "t.json", FieldsConfig())] == [3, 6]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[{"text": "a"}', "does not end"),
        ('[{"text": "a"}\n{"text" "b"}]', ":2: invalid JSON"),
        ('[{"text": "a"}] x', "text after the end"),
        ('{"text": "a",', "invalid JSON"),
        ('{"a": [{"b": 1}], "c": [{"d": 1}]}', "several lists"),
        ("[" + " " * 70_000 + '{"text": tru', "invalid JSON"),
    ],
)
def test_broken_json_files(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "t.json").write_text(content)
    assert expected in message(tmp_path / "t.json")


def test_array_elements_longer_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorchestra.data.readers.json_files._CHUNK", 7)
    rows = [{"text": "word " * 50, "label": i, "more": [True, None, "\u00e9\u2028"]} for i in range(20)]
    for indent in (None, 2):
        (tmp_path / "t.json").write_text(json.dumps(rows, indent=indent))
        assert cells(tmp_path / "t.json") == rows


# --- what was assumed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("semicolon.csv", "read as semicolon-separated"),
        ("tab.csv", "read as tab-separated"),
        ("sep.csv", "semicolon-separated, as the first line says"),
        ("wrapped.json", "the rows are those under 'data'"),
        ("columns.json", "one list per column"),
    ],
)
def test_assumptions_are_noted(tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / name).write_text(CONTENTS[name])
    notes: list[str] = []
    cells(tmp_path / name, notes)
    assert len(notes) == 1
    assert expected in notes[0]


@pytest.mark.parametrize(
    ("lines", "delimiter"),
    [
        (["text,label\n", "a;b;c,d\n"], ","),
        (["text\n", "a, b\n"], ","),
        (["text;label\n", "a, b;c\n"], ";"),
        (["name, or so;text;label\n", "a;b;c\n"], ";"),
        (["a,b;c\n", "1,2;3\n"], ","),
        (["a|b|c\n", "1|2|3\n"], "|"),
        ([], ","),
    ],
)
def test_sniffed_delimiters(lines: list[str], delimiter: str) -> None:
    assert delimited.sniffed(lines, frozenset({"text", "label"})) == delimiter


def test_a_given_delimiter_wins(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text:label\na:x\n")
    assert cells(tmp_path / "t.csv", delimiter=":") == [{"text": "a", "label": "x"}]


def test_blanks_around_the_names_of_used_columns(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text, label, other\na,x,1\n")
    assert cells(tmp_path / "t.csv") == [{"text": "a", "label": "x", " other": "1"}]


# --- encodings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.json"])
def test_marked_encodings_are_read(tmp_path: Path, encoding: str, name: str) -> None:
    row = {"text": "caf\u00e9", "label": "x"}
    text = {"t.csv": "text,label\ncaf\u00e9,x\n", "t.jsonl": json.dumps(row, ensure_ascii=False)}
    content = text.get(name, json.dumps([row], ensure_ascii=False))
    (tmp_path / name).write_bytes(content.encode(encoding))
    assert cells(tmp_path / name) == [row]


def test_other_encodings_by_name(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("text,label\ncaf\u00e9 \u20ac,x\n".encode("cp1252"))
    assert cells(tmp_path / "t.csv", encoding="cp1252") == [{"text": "caf\u00e9 \u20ac", "label": "x"}]
    text = message(tmp_path / "t.csv")
    assert "t.csv:2: not UTF-8 (byte 0xe9)" in text
    assert "--data.encoding cp1252" in text
    assert "caf\u00e9" in text
    assert "not a text encoding" in message(tmp_path / "t.csv", encoding="klingon")
    assert "not a text encoding" in message(tmp_path / "t.csv", encoding="base64")
    (tmp_path / "t.csv").write_bytes("text,label\ncaf\u00e9,x\n".encode("utf-16-le"))
    assert "--data.encoding utf-16-le" in message(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes(b"text,label\n\x81,x\n")
    assert "--data.encoding" in message(tmp_path / "t.csv", encoding="cp1252")


# --- several files and standard input ---------------------------------------------------------------------------------


def test_directories_and_patterns(tmp_path: Path) -> None:
    for name, row in zip(("b.csv", "a.csv.gz"), ROWS, strict=True):
        data = f'text,label\n"{row["text"]}",{row["label"]}\n'.encode()
        (tmp_path / name).write_bytes(packed(data, "gz") if name.endswith("gz") else data)
    (tmp_path / "README.md").write_text("about")
    (tmp_path / ".hidden.csv").write_text("x")
    rows = list(read_rows(tmp_path, FieldsConfig()))
    assert [row.cells for row in rows] == ROWS[::-1]
    assert [row.where for row in rows] == [f"{tmp_path / 'a.csv.gz'}:2", f"{tmp_path / 'b.csv'}:2"]
    notes: list[str] = []
    assert cells(f"{tmp_path}/*.csv*", notes) == ROWS[::-1]
    assert any("2 files, a.csv.gz to b.csv" in note for note in notes)
    assert cells(f"{tmp_path}/b*") == ROWS[:1]
    assert "no files with rows" in message(f"{tmp_path}/c*")
    (tmp_path / "more.jsonl").write_text(JSON_LINES)
    assert "2 csv, 1 jsonl" in message(tmp_path)
    assert cells(tmp_path, format="jsonl") == ROWS


def test_a_directory_with_several_splits_is_not_one_file(tmp_path: Path) -> None:
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text(delimited_text(";"))
    assert f"--data.test {tmp_path / 'test.csv'} --data.train {tmp_path / 'train.csv'}" in message(tmp_path)


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "t.jsonl").write_text(JSON_LINES)
    assert cells("~/t.jsonl") == ROWS


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (JSON_LINES.encode(), {}),
        (json.dumps(ROWS).encode(), {}),
        (delimited_text(";").encode(), {}),
        (gzip.compress(JSON_LINES.encode()), {}),
        (delimited_text("\t").encode(), {"format": "tsv"}),
    ],
    ids=["JSON lines", "JSON", "CSV", "gzip", "TSV"],
)
def test_standard_input(monkeypatch: pytest.MonkeyPatch, data: bytes, options: dict[str, Any]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert cells("-", **options) == ROWS
    assert not sys.stdin.buffer.closed


def test_a_parquet_file_as_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table(COLUMNS), sink)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(sink.getvalue())))
    assert cells("-") == ROWS


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (b'{"text": "a, b", "label": "x"}\n', {}),
        (b'\xef\xbb\xbf{"text": "a, b", "label": "x"}\r\n', {}),
        (b'text,label\n"a, b",x\n', {"delimiter": ","}),
        (b"text\tlabel\na, b\tx\n", {"format": "tsv"}),
    ],
    ids=["JSON lines", "with a mark and CRLF", "CSV with a known delimiter", "TSV"],
)
def test_the_first_row_of_a_pipe_does_not_wait_for_others(
    monkeypatch: pytest.MonkeyPatch, data: bytes, options: dict[str, Any]
) -> None:
    reading, writing = os.pipe()
    with open(reading) as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        os.write(writing, data)
        rows = read_rows("-", FieldsConfig(), ReadOptions(**options))
        closing = threading.Timer(60, os.close, [writing])  # so that a reader that waits fails, and does not hang
        closing.start()
        assert next(rows).cells == ROWS[0]
        assert closing.is_alive()
        closing.cancel()
        os.close(writing)
        assert list(rows) == []


# --- class names in metadata ------------------------------------------------------------------------------------------


def test_class_names_of_a_schema_are_the_labels(tmp_path: Path) -> None:
    features = {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}, "text": {"dtype": "string"}}
    table = pa.table({"text": ["a", "b", "c"], "label": [1, 0, -1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "t.parquet")
    notes: list[str] = []
    assert [row["label"] for row in cells(tmp_path / "t.parquet", notes)] == ["pos", "neg", None]
    assert "class names" in notes[0]
    assert [row["label"] for row in cells(tmp_path / "t.parquet", label_names=False)] == [1, 0, -1]


@pytest.mark.parametrize("metadata", ["", "{}", "[1]", '{"info": {"features": {"label": {"_type": "ClassLabel"}}}}'])
def test_other_metadata_is_ignored(tmp_path: Path, metadata: str) -> None:
    table = pa.table({"text": ["a"], "label": [1]}).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "t.parquet")
    assert cells(tmp_path / "t.parquet")[0]["label"] == 1


def test_stems() -> None:
    assert [stem(name) for name in ("a.csv", "b/a.jsonl.gz", "a.b.tsv.zst", ".csv", "data")] == [
        "a",
        "a",
        "a.b",
        ".csv",
        "data",
    ]
