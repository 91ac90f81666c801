"""Stop requests by Ctrl-C and termination signals."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Self

from lorchestra.training.callbacks import Callback

_STDERR = 2


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Within the block, a termination signal raises KeyboardInterrupt, as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class GracefulStop(Callback):
    """The first Ctrl-C asks a job to stop after a whole step; the last one interrupts it at once.

    Args:
        can_finish: whether there is one between them, which asks to end the training with the best adapters so far.
        quiet: whether nothing is printed: torchrun reports the signals that it sends.
    """

    def __init__(self, *, can_finish: bool = False, quiet: bool = False) -> None:
        self.requested = False
        self._can_finish, self._quiet = can_finish, quiet
        self._finish = False

    def should_stop(self) -> bool:
        """Whether a stop was requested."""
        return self.requested

    def should_finish(self) -> bool:
        """Whether the training is to end with the best adapters so far."""
        return self._finish

    def __enter__(self) -> Self:
        """Install the handlers of interrupt and termination signals."""
        self._before = {number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *unused: object) -> None:
        """Restore the previous handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested and (self._finish or not self._can_finish or number != signal.SIGINT):
            raise KeyboardInterrupt
        text = b"stopping after this micro-batch; a second Ctrl-C stops at once"
        if self.requested:
            self._finish, text = True, b"ending with the best adapters so far; a third Ctrl-C stops at once"
        elif self._can_finish:
            text = b"stopping after this micro-batch; a second Ctrl-C ends the training with the best adapters so far"
        self.requested = True
        if self._quiet:
            return
        # not through the console: a signal may arrive while it prints, or while one of its modules is being imported
        with suppress(OSError):
            os.write(_STDERR, b"\n" + text + b"\n")
