"""Rows in chunks: full ones of a file, and of a pipe what has arrived after a short wait."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from time import monotonic
from typing import TypeVar

from lorchestra.data.readers.streams import STANDARD_INPUT

T = TypeVar("T")

_WAIT_S = 0.1
"""How long an incomplete chunk waits for more rows: no one notices, and a program fills a chunk in that time."""


def may_pause(path: str | Path) -> bool:
    """Whether rows may be long in coming: standard input that is a pipe, a socket or a terminal."""
    if str(path) != STANDARD_INPUT or sys.stdin is None:
        return False
    try:
        return not stat.S_ISREG(os.fstat(sys.stdin.fileno()).st_mode)
    except (OSError, ValueError):  # closed, or replaced by an object in memory
        return False


def full_chunks(rows: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """Chunks of `size` rows; the last one may have fewer."""
    iterator = iter(rows)
    while chunk := tuple(islice(iterator, size)):
        yield chunk


def arriving_chunks(rows: Iterator[T], size: int, wait_s: float = _WAIT_S) -> Iterator[tuple[T, ...]]:
    """Chunks of at most `size` rows, of those that have arrived `wait_s` seconds after the chunk's first.

    A thread reads up to `size` rows ahead, and then waits, so that whoever writes the rows has to wait too. Rows before
    an error are in a chunk before it is raised.
    """
    arrived: Queue[T | _End] = Queue(size)
    # a daemon, since it may be waiting for a row when the command ends
    Thread(target=_read_ahead, args=(rows, arrived), daemon=True).start()
    end: _End | None = None
    while end is None:
        chunk, end = _next_chunk(arrived, size, wait_s)
        if chunk:
            yield chunk
    if end.error is not None:
        raise end.error


@dataclass(frozen=True)
class _End:
    """Follows the last row."""

    error: Exception | None


def _read_ahead(rows: Iterator[T], arrived: Queue[T | _End]) -> None:
    error = None
    try:
        for row in rows:
            arrived.put(row)
    except Exception as raised:
        error = raised
    arrived.put(_End(error))


def _next_chunk(arrived: Queue[T | _End], size: int, wait_s: float) -> tuple[tuple[T, ...], _End | None]:
    """The next rows, and the end if it is reached."""
    chunk: list[T] = []
    item = arrived.get()
    latest = monotonic() + wait_s
    while not isinstance(item, _End):
        chunk.append(item)
        if len(chunk) == size:
            return tuple(chunk), None
        try:
            # without time left, this still takes what is in the queue
            item = arrived.get(timeout=max(0.0, latest - monotonic()))
        except Empty:
            return tuple(chunk), None
    return tuple(chunk), item
