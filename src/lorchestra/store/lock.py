"""One process at a time in an output directory.

The lock is the operating system's, on a file next to the directory (`PARENT/.NAME.lorchestra.lock`), since the
directory may not exist yet and appears by a rename. The system releases the lock when its process ends, however it
ends: the file of a killed process locks nobody out.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import lock_descriptor, unlock_descriptor

from lorchestra.errors import CheckpointError

logger = logging.getLogger(__name__)

# Links are not followed: the file is overwritten, and in a shared directory anyone could have made a link.
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
_LONGEST_NOTE = 200


class DirectoryBusyError(CheckpointError):
    """Another process, or another call in this one, is working in the directory."""


@contextmanager
def directory_lock(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a directory, which need not exist yet, for the time of the block; never waits.

    If no lock is available (a parent that cannot be written, a file system without locks), the block runs without one.

    Args:
        directory: the directory; all its names (relative, through links) are the same lock.

    Raises:
        DirectoryBusyError: the directory is held already, by another process or in this one.
    """
    descriptor, made = None, []
    try:
        try:
            target = Path(os.path.realpath(directory))  # `resolve` raises for a circle of links
            made = _make_parents(target)
            file = target.parent / f".{target.name}.lorchestra.lock"
            descriptor = _acquire(file, directory)
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            logger.info(
                f"{directory} cannot be locked ({reason}): make sure that no other process works in it meanwhile"
            )
        else:
            _note_holder(descriptor)
        yield
    finally:
        if descriptor is not None:
            _release(descriptor, file)
        _remove_empty(made)


def _acquire(file: Path, directory: str | os.PathLike[str]) -> int:
    """The descriptor of the locked file."""
    while True:
        descriptor = os.open(file, _FLAGS, 0o666)
        try:
            if not lock_descriptor(descriptor, blocking=False):
                raise DirectoryBusyError(
                    f"--out {directory}: {_holder(descriptor)} is working in it; wait until it is done, or choose"
                    " another --out"
                )
            if _is_at(descriptor, file):
                return descriptor
            # else the previous holder removed the file after we opened it: the next process would lock a new one
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _release(descriptor: int, file: Path) -> None:
    # removed while it is held: afterwards it may be another process's
    if os.name != "nt":
        with suppress(OSError):
            if _is_at(descriptor, file):
                file.unlink()
    # closing is not enough: a child that was forked meanwhile has the descriptor too, and would keep the lock
    with suppress(OSError):
        unlock_descriptor(descriptor)
    os.close(descriptor)
    if os.name == "nt":  # removes no open file: neither ours earlier, nor one that another process has opened since
        with suppress(OSError):
            file.unlink()


def _is_at(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.lstat())
    except FileNotFoundError:
        return False


def _note_holder(descriptor: int) -> None:
    """Write who holds the lock, for the message to other processes; a full disk is not an error here."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        # after the first byte, which Windows locks against reading too
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


def _make_parents(path: Path) -> list[Path]:
    """Make missing parents; returns them, innermost first."""
    missing = []
    for parent in path.parents:
        if parent.exists():
            break
        missing.append(parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(made: list[Path]) -> None:
    """Remove the parents that were made for the lock and are empty: a refused call leaves nothing behind."""
    with suppress(OSError):
        for parent in made:
            parent.rmdir()
