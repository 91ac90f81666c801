"""The command line in processes that start in a tenth of a second: forked from a server that has imported everything.

A new process would import torch and transformers for about four seconds. Forked ones are separate processes all the
same, with their process ids, streams, signals and exit codes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import MappingProxyType

_PRELOAD = (
    "lorchestra.cli.main",
    "lorchestra.cli.train",
    "lorchestra.cli.predict",
    "lorchestra.cli.progress",
    "lorchestra.runs.train",
    "lorchestra.runs.evaluate",
    "lorchestra.models.gguf",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llama.tokenization_llama",
    "peft",
)


_OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate")


def context() -> ForkServerContext:
    """The context whose processes are forked from the server."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(list(_PRELOAD))
    return server


class Command:
    """A running `lorchestra` command; a context manager that kills it at the end."""

    def __init__(
        self,
        *arguments: object,
        directory: Path,
        last_operation: tuple[Path, int] | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Start it, with its output in files in `directory`, and with more variables in its `environment`.

        With `last_operation`, a directory and a number n, it is killed before the n-th file operation there.
        """
        streams = [directory / name for name in ("stdout.txt", "stderr.txt")]
        self._out, self._err = streams
        self._process: ForkServerProcess = context().Process(
            target=_run, args=([*map(str, arguments)], streams, last_operation, dict(environment))
        )
        self._process.start()

    def __enter__(self) -> Command:
        """The command itself."""
        return self

    def __exit__(self, *unused: object) -> None:
        """Kill it if it still runs."""
        self.kill()
        self._process.join()

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; minus the signal's number if a signal ended it."""
        return self._process.exitcode

    @property
    def out(self) -> str:
        """Its stdout so far."""
        return self._out.read_text(encoding="utf-8") if self._out.exists() else ""

    @property
    def err(self) -> str:
        """Its stderr so far."""
        return self._err.read_text(encoding="utf-8") if self._err.exists() else ""

    def wait(self, timeout: float = 300) -> int:
        """Wait for its end; returns the exit code.

        Raises:
            TimeoutError: it is still running after `timeout` seconds.
        """
        self._process.join(timeout)
        if self.exit_code is None:
            raise TimeoutError(f"still running after {timeout} s; stderr so far: {self.err}")
        return self.exit_code

    def send_signal(self, number: int) -> None:
        """Send a signal if it still runs."""
        if self.exit_code is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()


def _run(
    arguments: list[str],
    streams: list[Path],
    last_operation: tuple[Path, int] | None,
    environment: dict[str, str],
) -> None:
    os.environ.update(environment)
    for number, path in enumerate(streams, 1):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    if last_operation is not None:
        sys.addaudithook(_killer(*last_operation))
    import torch

    torch.set_num_threads(1)
    from lorchestra.cli.main import main

    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    sys.stdout.flush()
    sys.exit(code)


def _killer(directory: Path, number: int) -> Callable[[str, tuple[object, ...]], None]:
    left = number

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in _OPERATIONS and str(directory) in str(arguments[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return audit
