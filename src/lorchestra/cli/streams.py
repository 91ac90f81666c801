"""The standard streams, made safe for any text and any failure.

Whatever the locale: stdout is UTF-8 unless it is a terminal, and characters that a stream cannot encode are escaped.
An error of stdout ends the command with a message, or silently if its reader has closed the pipe; errors of stderr are
ignored.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO, cast

from lorchestra.errors import visible

_STDOUT, _STDERR = 1, 2


class Stdout:
    """The process's stdout, which remembers its first error.

    Args:
        stream: receives the text; None if stdout is closed: then only commands that print results fail.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.fault: OSError | None = None

    def write(self, text: str) -> int:
        """Write text."""
        with self._watched():
            if self._stream is None:
                raise OSError(errno.EBADF, "it is closed")
            return self._stream.write(text)

    def flush(self) -> None:
        """Flush the buffer."""
        with self._watched():
            if self._stream is not None:
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether stdout is a terminal."""
        return self._stream is not None and self._stream.isatty()

    @property
    def encoding(self) -> str | None:
        """The stream's encoding; None if it has none."""
        return getattr(self._stream, "encoding", None)

    def __getattr__(self, name: str) -> object:
        """Everything else is the stream's."""
        return getattr(self._stream, name)

    @property
    def is_broken_pipe(self) -> bool:
        """Whether the reader has closed the pipe, as in `| head`."""
        # Windows reports EINVAL
        return isinstance(self.fault, BrokenPipeError) or (os.name == "nt" and _number(self.fault) == errno.EINVAL)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.fault = self.fault or error
            # the interpreter flushes at exit: what is still buffered must not fail again
            _redirect_to_devnull(self._stream, _STDOUT)
            raise


@contextmanager
def prepared_streams() -> Iterator[Stdout]:
    """Within the block, the streams accept every character; closed ones are replaced."""
    before = sys.stdout
    if sys.stdout is None or sys.stderr is None:
        _occupy_standard_descriptors()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        encoding = sys.stdout.encoding if sys.stdout.isatty() else "utf-8"
        sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")
    guarded = Stdout(before)
    sys.stdout = cast(TextIO, guarded)
    try:
        yield guarded
    finally:
        sys.stdout = before


def print_stderr(text: str) -> None:
    """Print one line to stderr; errors of stderr are ignored."""
    stderr = UnfailingStderr()
    stderr.write(f"{visible(text)}\n")
    stderr.flush()


class UnfailingStderr(io.TextIOBase):
    """The current stderr; text that it cannot write is dropped."""

    def write(self, text: str) -> int:
        """Write text if possible."""
        try:
            _stderr().write(text)
        except OSError:
            _redirect_to_devnull(_stderr(), _STDERR)
        return len(text)

    def flush(self) -> None:
        """Flush if possible."""
        try:
            _stderr().flush()
        except OSError:
            _redirect_to_devnull(_stderr(), _STDERR)

    def isatty(self) -> bool:
        """Whether stderr is a terminal."""
        return _stderr().isatty()

    def fileno(self) -> int:
        """The descriptor, for the terminal's size."""
        return _stderr().fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Stderr's encoding: rich draws boxes with lines or with ASCII accordingly."""
        return getattr(_stderr(), "encoding", None) or "utf-8"


def _stderr() -> TextIO:
    """`sys.stderr`; while a live view is shown, the stream below rich's proxy, which itself prints to our console."""
    return getattr(sys.stderr, "rich_proxied_file", sys.stderr)


def _occupy_standard_descriptors() -> None:
    """Open /dev/null on closed standard descriptors, or the next opened file would receive stray output."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(descriptor)


def _redirect_to_devnull(stream: TextIO | None, descriptor: int) -> None:
    """Send the process's stream, buffer included, to /dev/null; a replacement stream (in tests) is not touched."""
    with suppress(OSError, ValueError):
        if stream is not None and stream.fileno() == descriptor:
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, descriptor)
            os.close(devnull)


def _number(error: OSError | None) -> int | None:
    return None if error is None else error.errno
