"""Lines appended to a file: whole, flushed, within its limit, and by many at once."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from lorchestra.errors import CheckpointError
from lorchestra.store import appending
from lorchestra.store.appending import FileFullError, append_line

PROGRAM = """
import sys
from lorchestra.store.appending import append_line

for number in range(40):
    append_line(sys.argv[1], f"{sys.argv[2]}-{number} " + "x" * 5000, max_bytes=2**24)
"""


def append_many(path, name):
    for number in range(40):
        append_line(path, f"{name}-{number} " + "x" * 5000, max_bytes=2**24)


def test_threads_and_processes_append_whole_lines(tmp_path):
    path = tmp_path / "lines"
    processes = [subprocess.Popen([sys.executable, "-c", PROGRAM, path, f"p{i}"]) for i in range(2)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: append_many(path, f"t{i}"), range(4)))
    for process in processes:
        assert process.wait(120) == 0
    lines = path.read_text().splitlines()
    names = {f"{who}-{number}" for who in ("p0", "p1", "t0", "t1", "t2", "t3") for number in range(40)}
    assert {line.split()[0] for line in lines} == names
    assert len(lines) == len(names)
    assert all(line.endswith(" " + "x" * 5000) for line in lines)


def test_a_new_file_is_for_its_owner(tmp_path):
    append_line(tmp_path / "lines", "ä", max_bytes=100)
    assert (tmp_path / "lines").read_bytes() == "ä\n".encode()
    assert (tmp_path / "lines").stat().st_mode & 0o077 == 0


def test_a_torn_last_line_is_ended_first(tmp_path):
    path = tmp_path / "lines"
    path.write_text("one\ntw")
    append_line(path, "three", max_bytes=100)
    assert path.read_text() == "one\ntw\nthree\n"


def test_a_full_file_is_unchanged(tmp_path):
    path = tmp_path / "lines"
    append_line(path, "x" * 9, max_bytes=10)
    with pytest.raises(FileFullError, match="larger than 10 bytes"):
        append_line(path, "", max_bytes=10)
    assert path.read_text() == "x" * 9 + "\n"


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    append_line(path, "one", max_bytes=100)

    def write(descriptor, data):
        if len(data) < 3:
            raise OSError(errno.ENOSPC, "no space")
        return os_write(descriptor, data[:2])

    os_write = os.write
    monkeypatch.setattr(appending.os, "write", write)
    with pytest.raises(CheckpointError, match="disk is full"):
        append_line(path, "three", max_bytes=100)
    assert path.read_text() == "one\n"
