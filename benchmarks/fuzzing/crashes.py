"""A fork server for crash drills: children train, are killed, and start again within a fraction of a second.

The parent imports everything and computes nothing (thread pools do not survive a fork); a child runs `lorchestra train`
with one prepared crash.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

_HEAVY = (
    "lorchestra.cli.train",
    "lorchestra.cli.progress",
    "lorchestra.runs.train",
    "lorchestra.models.gguf",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llama.tokenization_llama",
    "peft",
)
_OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.utime")


def import_everything() -> None:
    """Import what every child would import otherwise."""
    for name in _HEAVY:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)


@dataclass(frozen=True)
class Crash:
    """How a child is stopped: the kind of crash, and when (in seconds, operations, saves or bytes)."""

    kind: str
    at: float

    kinds: ClassVar[tuple[str, ...]] = (
        "SIGKILL at a random time",
        "SIGKILL before a file operation",
        "SIGKILL in the middle of a checkpoint's file",
        "SIGTERM",
        "SIGINT",
        "file size limit",
        "disk full",
        "disk full (injected)",
    )

    @classmethod
    def draw(cls, draw: random.Random, kind: str, run_s: float, num_operations: int, left: float) -> Crash:
        """Draw a moment in a run of this time and number of file operations; a fraction `left` of it is ahead.

        Loading the base takes about two fifths of the time, in every child.
        """
        if kind in _SIGNALS:
            return cls(kind, draw.uniform(0, run_s * (0.4 + 0.6 * left)))
        if kind == "SIGKILL before a file operation":
            return cls(kind, draw.randrange(max(8, int(left * num_operations))))
        if kind == "file size limit":
            return cls(kind, draw.choice((0, draw.randrange(36_000))))
        if kind == "disk full":
            return cls(kind, draw.choice((0, draw.randrange(120_000))))
        return cls(kind, draw.randrange(max(1, int(left * 16))))


@dataclass(frozen=True)
class Ended:
    """How a child ended: exit code (or minus the signal), output and seconds."""

    code: int
    output: str
    seconds: float


def train(recipe: Path, root: Path, crash: Crash | None, count: Path | None = None) -> Ended:
    """Run `lorchestra train --if-exists resume` in a forked child, with a crash or without.

    Args:
        recipe: the run's recipe.
        root: its directory.
        crash: the child's crash.
        count: a file to which a child without a crash writes its number of file operations.
    """
    read, write = os.pipe()
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        code = 3
        try:
            os.close(read)
            os.dup2(write, 1)
            os.dup2(write, 2)
            operations = _arrange(crash, root)
            from lorchestra.cli.main import main

            code = main(["train", str(recipe), "--out", str(root), "--if-exists", "resume", "--skip-evaluation"])
            sys.stdout.flush()
            if count is not None:
                count.write_text(str(operations[0]))
        except KeyboardInterrupt:  # before the command line was reached
            code = 130
        finally:
            os._exit(code)
    os.close(write)
    if crash is not None and (number := _SIGNALS.get(crash.kind)) is not None:
        output = _read(read, until=started + crash.at)
        os.kill(child, number)
    else:
        output = b""
    output += _read(read)
    os.close(read)
    _, status = os.waitpid(child, 0)
    return Ended(os.waitstatus_to_exitcode(status), output.decode(errors="replace"), time.perf_counter() - started)


_SIGNALS = {"SIGKILL at a random time": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}


def _read(pipe: int, until: float | None = None) -> bytes:
    """Read a child's output until it closes its end, or until a moment."""
    data = b""
    while True:
        left = None if until is None else until - time.perf_counter()
        if left is not None and left <= 0:
            return data
        if not select.select([pipe], [], [], left)[0]:
            return data
        piece = os.read(pipe, 65536)
        if not piece:
            if until is not None:
                time.sleep(max(0.0, until - time.perf_counter()))
            return data
        data += piece


def _arrange(crash: Crash | None, root: Path) -> list[int]:
    """In the child: prepare the crash; returns the running count of file operations."""
    operations = [0]
    last = crash.at if crash is not None and crash.kind == "SIGKILL before a file operation" else None

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _OPERATIONS and str(root) in str(arguments[0]):
            if operations[0] == last:
                os.kill(os.getpid(), signal.SIGKILL)
            operations[0] += 1

    sys.addaudithook(audit)
    if crash is None:
        return operations
    if crash.kind == "file size limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(crash.at), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    elif crash.kind == "SIGKILL in the middle of a checkpoint's file":
        _at_save(int(crash.at), lambda: os.kill(os.getpid(), signal.SIGKILL))
    elif crash.kind == "disk full (injected)":
        _at_save(int(crash.at), _no_space)
    return operations


def _no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _at_save(number: int, crash: Callable[[], None]) -> None:
    """Crash after half of the bytes of the `number`-th tensor file are written."""
    from lorchestra.models import peft_files
    from lorchestra.training import checkpoint

    saves = [0]

    def spoiled(original: Callable[..., None]) -> Callable[..., None]:
        def save_file(tensors: Any, path: Path, **options: Any) -> None:
            original(tensors, path, **options)
            if saves[0] == number:
                os.truncate(path, Path(path).stat().st_size // 2)
                crash()
            saves[0] += 1

        return save_file

    for module in (checkpoint, peft_files):
        module.save_file = spoiled(module.save_file)  # type: ignore[attr-defined]


@contextmanager
def small_disk(directory: Path, num_bytes: int) -> Any:
    """Mount an in-memory file system of `num_bytes` at `directory`; yields whether that is possible."""
    directory.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(directory)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(directory)], check=True)


def fill(directory: Path, leave: int) -> Path:
    """Fill the disk at `directory` except for `leave` bytes; returns the file that fills it."""
    ballast = directory / "ballast"
    free = os.statvfs(directory)
    with ballast.open("wb") as file:
        file.write(bytes(max(0, free.f_bavail * free.f_bsize - leave)))
    return ballast


def as_expected(crash: Crash, ended: Ended) -> bool:
    """Whether a child ended as its crash should end it, or finished before."""
    if ended.code == 0:
        return True
    if crash.kind.startswith("SIGKILL"):
        return ended.code == -signal.SIGKILL
    if crash.kind in ("SIGTERM", "SIGINT"):
        # SIGTERM kills the process before the command has installed its handlers
        return ended.code == 130 or (crash.kind == "SIGTERM" and ended.code == -signal.SIGTERM)
    errors = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    return ended.code == 2 and len(errors) == 1 and ("disk is full" in errors[0] or "ulimit" in errors[0])


def logged_steps(root: Path) -> Sequence[int]:
    """The optimizer steps in a run's log, in order, without a truncated last line."""
    events = root / "events.jsonl"
    lines = events.read_bytes().splitlines(keepends=True) if events.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return [event["step"] for event in whole if event["event"] == "step"]
