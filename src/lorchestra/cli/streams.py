"""The standard streams, made fit for whatever a command writes, and what becomes of their faults.

Whatever the locale: stdout is UTF-8 unless it is a terminal, and a stream that cannot hold a character gets an escape.
A fault of stdout ends the command with an error, or quietly where its reader has gone; one of stderr changes nothing.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from lorchestra.errors import visible

_STDOUT, _STDERR = 1, 2


class Stdout:
    """The process's stdout, which remembers the first fault that it met.

    Args:
        stream: what takes the text; None where stdout is closed: then a command without results runs as ever.
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
        """Hand on what is buffered."""
        with self._watched():
            if self._stream is not None:
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether a person watches."""
        return self._stream is not None and self._stream.isatty()

    @property
    def encoding(self) -> str | None:
        """How text becomes bytes; None where it stays text."""
        return getattr(self._stream, "encoding", None)

    def __getattr__(self, name: str) -> Any:
        """All else is the stream's."""
        return getattr(self._stream, name)

    @property
    def is_broken_pipe(self) -> bool:
        """Whether the reader is gone, as in `| head`."""
        # Windows has EINVAL for it
        return isinstance(self.fault, BrokenPipeError) or (os.name == "nt" and _number(self.fault) == errno.EINVAL)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.fault = self.fault or error
            # what is still buffered must not fail again when the interpreter ends
            _redirect_to_nowhere(self._stream, _STDOUT)
            raise


@contextmanager
def prepared_streams() -> Iterator[Stdout]:
    """For the time of the block, streams that take every character; those that are closed are stood in for."""
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


def complain(text: str) -> None:
    """One line on stderr, if that takes it."""
    stderr = UnfailingStderr()
    stderr.write(f"{visible(text)}\n")
    stderr.flush()


class UnfailingStderr(io.TextIOBase):
    """The stderr of the moment; what it does not take is lost, and the work goes on."""

    def write(self, text: str) -> int:
        """Write, if it can be."""
        try:
            sys.stderr.write(text)
        except OSError:
            _redirect_to_nowhere(sys.stderr, _STDERR)
        return len(text)

    def flush(self) -> None:
        """Flush, if it can be."""
        try:
            sys.stderr.flush()
        except OSError:
            _redirect_to_nowhere(sys.stderr, _STDERR)

    def isatty(self) -> bool:
        """Whether a person watches."""
        return sys.stderr.isatty()

    def fileno(self) -> int:
        """The descriptor, for the terminal's size."""
        return sys.stderr.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Stderr's, which decides whether boxes are drawn with lines or with ASCII."""
        return getattr(sys.stderr, "encoding", None) or "utf-8"


def _occupy_standard_descriptors() -> None:
    """Put /dev/null where a standard stream is closed: the next file opened would get its number, and stray output."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(descriptor)


def _redirect_to_nowhere(stream: TextIO | None, descriptor: int) -> None:
    """Send what the process's stream still holds to /dev/null; another stream in its place is left as it is."""
    with suppress(OSError, ValueError):
        if stream is not None and stream.fileno() == descriptor:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


def _number(error: OSError | None) -> int | None:
    return None if error is None else error.errno
