"""A command in several processes, as torchrun starts them: which commands may, and which process prints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from lorchestra.errors import ConfigError, ReportedError

_IN_SEVERAL = ("train",)


def num_processes() -> int:
    """Number of processes that torchrun has started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def is_first() -> bool:
    """Whether this is the only process, or the first of several."""
    return num_processes() == 1 or os.environ["RANK"] == "0"


def check_processes(command: str) -> None:
    """Refuse several processes for a command that runs in a single one.

    Raises:
        ConfigError: names the commands that run in several; in the other processes a `ReportedError`.
    """
    if num_processes() == 1 or command in _IN_SEVERAL:
        return
    message = (
        f"{command}: runs in one process, and torchrun has started {num_processes()}; start it without torchrun"
        f" (in several processes: {', '.join(_IN_SEVERAL)})"
    )
    raise ConfigError(message) if is_first() else ReportedError(message, ConfigError.exit_code)


@contextmanager
def only_first_prints() -> Iterator[None]:
    """Within the block, processes but the first print nothing."""
    if is_first():
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
