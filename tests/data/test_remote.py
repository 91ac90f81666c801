"""Files at URLs are read as files on disk are: same rows, ids and faults; their errors name the URL."""

from __future__ import annotations

import gzip
import json

import fsspec
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from lorchestra.config.data import DataConfig
from lorchestra.data.formats import row_files
from lorchestra.data.in_memory import is_file
from lorchestra.data.input_rows import read_input_rows
from lorchestra.data.readers.remote import RemoteFile, is_url
from lorchestra.data.readers.streams import ReadOptions
from lorchestra.errors import DataError

ROWS = [{"text": "a film", "label": "yes"}, {"text": "a play, long", "label": "no"}, {"text": "", "label": None}]
LABELS = ("no", "yes")


def as_jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_all(folder):
    table = pyarrow.Table.from_pylist(ROWS)
    (folder / "rows.jsonl").write_bytes(as_jsonl(ROWS) + b'{"text"\n')
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(as_jsonl(ROWS)))
    (folder / "rows.csv").write_text('text,label\na film,yes\n"a play, long",no\n,\n1,2,3\n')
    pyarrow.parquet.write_table(table, folder / "rows.parquet")
    pyarrow.feather.write_feather(table, str(folder / "rows.arrow"), compression="uncompressed")


@pytest.fixture
def memory():
    """fsspec's file system in memory, empty."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def rows(path):
    """What is read, with messages about the files of a folder as about `X/`."""
    return list(read_input_rows(path, DataConfig(), LABELS))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.parquet", "rows.arrow"])
def test_a_file_at_a_url_has_the_rows_of_the_file_on_disk(memory, tmp_path, name):
    write_all(tmp_path)
    memory.pipe(f"/data/{name}", (tmp_path / name).read_bytes())
    local, remote = rows(tmp_path / name), rows(f"memory://data/{name}")
    assert len(remote) == len(local) >= 3
    for there, here in zip(remote, local, strict=True):
        assert (there.id, there.number, there.cells, there.kept) == (here.id, here.number, here.cells, here.kept)
        assert (there.fault or "").replace("memory://data", str(tmp_path)) == (here.fault or "")
        assert (there.example is None) == (here.example is None)


def test_patterns_and_directories_are_sorted(memory):
    for name in ("b", "a", "c"):
        memory.pipe(f"/data/{name}.jsonl", as_jsonl([{"text": name}]))
    memory.pipe("/data/notes.txt", b"not rows")
    memory.pipe("/data/deeper/d.jsonl", as_jsonl([{"text": "d"}]))
    for url in ("memory://data/*.jsonl", "memory://data", "memory://data/"):
        assert [row.example.question for row in rows(url)] == ["a", "b", "c"]
        files = [file for file, _ in row_files(url, ReadOptions())]
        assert [file.name for file in files] == ["a.jsonl", "b.jsonl", "c.jsonl"]
        assert all(file.num_bytes == len(as_jsonl([{"text": "a"}])) for file in files)
        assert all(is_url(str(file)) and isinstance(file, RemoteFile) for file in files)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://data/none.jsonl", "memory://data/none.jsonl: no such file"),
        ("memory://data/*.csv", "this directory or pattern has no files with rows"),
        ("memory://data/rows.xyz", "rows.xyz: the suffix is none of"),
        ("nowhere://data/rows.jsonl", "nowhere://data/rows.jsonl: Protocol not known: nowhere"),
    ],
)
def test_errors_name_the_url(memory, url, message):
    memory.pipe("/data/rows.jsonl", as_jsonl(ROWS))
    memory.pipe("/data/rows.xyz", b"x")
    with pytest.raises(DataError) as caught:
        rows(url)
    assert message in str(caught.value)


def test_a_missing_package_is_named(memory, monkeypatch):
    def missing(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(DataError, match="s3:// needs another package: Install s3fs"):
        rows("s3://bucket/rows.jsonl")


def test_what_a_url_is():
    assert is_file("memory://data")
    assert not any(map(is_url, ("a.jsonl", "/a://b", "C:\\a", "-", "a:b")))
