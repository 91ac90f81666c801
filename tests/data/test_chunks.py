"""Chunks of rows that come when they like."""

from __future__ import annotations

import io
import itertools
import os
import sys
import threading
import time

import pytest

from lorchestra.data.chunks import arriving_chunks, full_chunks, may_pause
from lorchestra.errors import DataError

LONG_S = 600.0
"""Longer than a test may take: a chunk that waits for this never comes."""


def test_chunks_are_full_except_for_the_last():
    assert list(full_chunks(range(7), 3)) == [(0, 1, 2), (3, 4, 5), (6,)]
    assert list(full_chunks([], 3)) == []
    assert list(arriving_chunks(iter(range(7)), 3, LONG_S)) == [(0, 1, 2), (3, 4, 5), (6,)]
    assert list(arriving_chunks(iter([]), 3, LONG_S)) == []


def test_a_chunk_does_not_wait_for_rows_that_do_not_come():
    more = threading.Event()

    def rows():
        yield "first"
        more.wait(LONG_S)
        yield "second"

    chunks = arriving_chunks(rows(), 256)
    assert next(chunks) == ("first",)
    more.set()
    assert list(chunks) == [("second",)]


def test_no_more_than_a_chunk_is_read_ahead():
    taken = []
    rows = (taken.append(number) or number for number in itertools.count())
    assert next(arriving_chunks(rows, 4, LONG_S)) == (0, 1, 2, 3)
    read_ahead = 4 + 4 + 1  # the chunk, the queue, and the row that waits for room in it
    while len(taken) < read_ahead:
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(taken) == read_ahead


def test_rows_before_an_error_come_first():
    def rows():
        yield from range(3)
        raise DataError("the file is damaged")

    chunks = arriving_chunks(rows(), 2, LONG_S)
    assert [next(chunks), next(chunks)] == [(0, 1), (2,)]
    with pytest.raises(DataError, match="damaged"):
        next(chunks)


def test_pipes_may_pause_and_files_do_not(monkeypatch, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("{}")
    assert not may_pause(path)
    with path.open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert not may_pause("-")
    assert not may_pause("-")  # closed
    reading, writing = os.pipe()
    os.close(writing)
    with open(reading) as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        assert may_pause("-")
        assert not may_pause(path)
    for other in (None, io.TextIOWrapper(io.BytesIO())):
        monkeypatch.setattr(sys, "stdin", other)
        assert not may_pause("-")
