"""Appends to a file of lines: a line exists completely or not at all, also when several processes append."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import lock_descriptor, unlock_descriptor

from lorchestra.errors import CheckpointError
from lorchestra.store.disk import explained

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
_MODE = 0o600
"""A new file is for its owner only: its lines may hold texts that were entrusted to a server."""


class FileFullError(CheckpointError):
    """The line would make the file larger than its limit."""


def append_line(path: str | os.PathLike[str], line: str, *, max_bytes: int) -> None:
    """Append a line to a file, which is made if it does not exist, and flush it to the disk.

    Args:
        path: the file.
        line: without the line's end.
        max_bytes: the largest size of the file.

    Raises:
        FileFullError: the file would be larger than that.
        CheckpointError: the disk is full, or the path cannot be written; the file is unchanged.
    """
    target, data = Path(path), line.encode() + b"\n"
    with explained(target, len(data)):
        descriptor = os.open(target, _FLAGS, _MODE)
        try:
            lock_descriptor(descriptor)
            try:
                _append(descriptor, data, target, max_bytes)
            finally:
                unlock_descriptor(descriptor)
        finally:
            os.close(descriptor)


def _append(descriptor: int, data: bytes, target: Path, max_bytes: int) -> None:
    size = os.fstat(descriptor).st_size
    if size and not _ends_with_newline(descriptor, size):  # edited by hand, or torn when a machine lost its power
        data = b"\n" + data
    if size + len(data) > max_bytes:
        raise FileFullError(f"{target}: would be larger than {max_bytes:,} bytes; move it away, a new one is then made")
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def _ends_with_newline(descriptor: int, size: int) -> bool:
    os.lseek(descriptor, size - 1, os.SEEK_SET)
    return os.read(descriptor, 1) == b"\n"
