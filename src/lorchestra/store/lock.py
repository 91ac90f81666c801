"""One process at a time in an output directory.

The lock is the operating system's, on a file beside the directory: `PARENT/.NAME.lorchestra.lock`. Beside it, because
the directory may not be there yet, appears by a rename, and is refused where it holds what nobody knows. The system
lets go of the lock when its process ends, however it ends; a file that a killed process left locks nobody out.
"""

from __future__ import annotations

import inspect
import logging
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from filelock import lock_descriptor, unlock_descriptor

from lorchestra.errors import CheckpointError

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

# A link is not followed: the file is overwritten, and in a directory of many people anyone could have put it there.
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
_LONGEST_NOTE = 200


class DirectoryBusyError(CheckpointError):
    """Another process, or another call in this one, is at work in the directory."""


@contextmanager
def directory_lock(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a directory, which need not be there yet, for the time of the block; never waits.

    Where no lock can be had (a parent that cannot be written, a file system without locks), the block runs without one.

    Args:
        directory: the directory; all its names (relative, through links) stand for the same lock.

    Raises:
        DirectoryBusyError: the directory is held already, by another process or in this one.
    """
    descriptor, made = None, []
    try:
        try:
            place = Path(os.path.realpath(directory))  # which names a circle of links, where `resolve` raises
            made = _make_parents(place)
            file = place.parent / f".{place.name}.lorchestra.lock"
            descriptor = _acquire(file, directory)
        except (OSError, ValueError) as error:  # a ValueError: a name that no file can have
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            logger.info(
                f"{directory} cannot be locked ({reason}): see to it that no other process works in it meanwhile"
            )
        else:
            _note_holder(descriptor)
        yield
    finally:
        if descriptor is not None:
            _release(descriptor, file)
        _remove_empty(made)


def holding_out(command: Callable[P, R]) -> Callable[P, R]:
    """Make a function hold the directory of its argument `out` while it runs.

    It raises `DirectoryBusyError` then where the directory is held already.
    """
    signature = inspect.signature(command)

    @wraps(command)
    def held(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        with directory_lock(given.arguments["out"]):
            return command(*args, **kwargs)

    return held


def _acquire(file: Path, directory: str | os.PathLike[str]) -> int:
    """The descriptor of the locked file."""
    while True:
        descriptor = os.open(file, _FLAGS, 0o666)
        try:
            if not lock_descriptor(descriptor, blocking=False):
                raise DirectoryBusyError(
                    f"--out {directory}: {_holder(descriptor)} is at work in it; wait until it is done, or choose"
                    " another --out"
                )
            if _is_at(descriptor, file):
                return descriptor
            # Else the holder before us removed the file between our two calls: who comes next would lock a new one.
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _release(descriptor: int, file: Path) -> None:
    # While it is still held: afterwards it may be another's. A holder that finds its file gone takes the next one.
    if os.name != "nt":
        with suppress(OSError):
            if _is_at(descriptor, file):
                file.unlink()
    # Not by closing alone: a child that was forked meanwhile has the descriptor too, and would go on holding the lock.
    with suppress(OSError):
        unlock_descriptor(descriptor)
    os.close(descriptor)
    if os.name == "nt":  # which removes no open file: neither ours before, nor one that another has opened since
        with suppress(OSError):
            file.unlink()


def _is_at(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.lstat())
    except FileNotFoundError:
        return False


def _note_holder(descriptor: int) -> None:
    """Write who we are, for the message of those who come meanwhile; a full disk is no reason to stop here."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        # Behind the first byte: that is the one that Windows locks, against reading too.
        os.write(descriptor, f"\n{_note()}\n".encode())


def _note() -> str:
    return f"pid {os.getpid()} on {platform.node()}"


def _holder(descriptor: int) -> str:
    try:
        os.lseek(descriptor, 1, os.SEEK_SET)
        note = os.read(descriptor, _LONGEST_NOTE).decode(errors="replace").strip()
    except OSError:
        note = ""
    if note == _note():
        return "this process, in another call,"
    return f"another process ({note})" if note else "another process"


def _make_parents(place: Path) -> list[Path]:
    """Make what is missing above; returns that, innermost first."""
    missing = []
    for parent in place.parents:
        if parent.exists():
            break
        missing.append(parent)
    place.parent.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(made: list[Path]) -> None:
    """Remove the parents that were made for the lock and hold nothing: a refused call leaves nothing behind."""
    with suppress(OSError):
        for parent in made:
            parent.rmdir()
