"""Where the lines of `lorchestra predict` go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol


class Sink(Protocol):
    """Receives lines, chunk by chunk."""

    num_rows: int
    state: dict[str, object]

    def append(self, data: bytes, num_rows: int, state: Mapping[str, object]) -> None:
        """Write a chunk's lines, and save with them what a resumed command needs."""

    def finish(self) -> None:
        """Called after the last chunk."""


class StreamSink:
    """A sink that cannot be resumed: stdout, a pipe, a device."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self.num_rows = 0
        self.state: dict[str, object] = {}

    def append(self, data: bytes, num_rows: int, state: Mapping[str, object]) -> None:
        """Write a chunk."""
        self._write(data)
        self.num_rows += num_rows

    def finish(self) -> None:
        """Nothing to do."""
