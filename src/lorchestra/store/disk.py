"""Errors of the file system (a full disk, a missing permission, a name that is too long) as messages with a remedy."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lorchestra.errors import CheckpointError, LorchestraError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM}
_OF_THE_PATH = {
    errno.ENAMETOOLONG: "a name in this path is longer than the file system allows; give a shorter one",
    errno.ELOOP: "the symbolic links in this path lead in a circle; give the path of the file itself",
}
"""Faults of the path itself, whether it is read or written."""
_INSTALLED = Path(__file__).resolve().parents[1]
_RUST_ERRNO = re.compile(r"\(os error (\d+)\)")


def require_space(path: str | os.PathLike[str], num_bytes: int) -> None:
    """Refuse early if fewer than `num_bytes` bytes are free for `path`.

    Raises:
        CheckpointError: the disk has too little space.
    """
    free = free_bytes(Path(path))
    if free is not None and free < num_bytes:
        raise _disk_full(Path(path), num_bytes)


@contextmanager
def explained(target: Path, num_bytes: int | None, *, inside: Path | None = None) -> Iterator[None]:
    """Turn an error of the system into a CheckpointError about `target`.

    `inside` is the temporary path, around the caller's block: an error there is explained only if it is about the disk
    or that path, not if the caller failed to read something else.
    """
    try:
        yield
    except OSError as error:
        number = error.errno
        if inside is not None and number not in _FULL | {errno.EROFS, errno.EFBIG}:
            about_ours = error.filename is None or str(inside) in str(error.filename)
            if number not in _DENIED or not about_ours:
                raise
        raise _as_checkpoint_error(target, number, error.strerror, num_bytes) from error
    except Exception as error:
        # writers in Rust (safetensors, tokenizers) raise other classes, with the system's number in the text
        match = _RUST_ERRNO.search(str(error))
        if match is None or isinstance(error, LorchestraError):
            raise
        number = int(match.group(1))
        if number not in _FULL | _DENIED | {errno.EROFS, errno.EFBIG}:
            raise
        raise _as_checkpoint_error(target, number, os.strerror(number), num_bytes) from error


@contextmanager
def explained_paths() -> Iterator[None]:
    """Turn an error of the system about some path (no permission, too long, a circle of links) into one with a remedy.

    For the outermost call only: code that reads or writes a certain file has a better message. Errors without a path,
    or about a file that is installed with lorchestra, pass.

    Raises:
        CheckpointError: names the path, the system's reason, and what to do.
    """
    try:
        yield
    except OSError as error:
        path = error.filename
        if error.errno is None or not isinstance(path, str | bytes | os.PathLike):
            raise
        path = Path(os.fsdecode(path))
        if path.is_relative_to(_INSTALLED):
            raise
        raise CheckpointError(f"{path}: {_path_fault(error.errno, error.strerror)}") from error


def require_path(path: Path) -> None:
    """Refuse a path that the system cannot look up; it need not exist.

    Raises:
        CheckpointError: no permission, a file where a directory is needed, a name that is too long, ...
    """
    with explained_paths(), suppress(FileNotFoundError):
        os.lstat(path)


def _path_fault(number: int, reason: str | None) -> str:
    if number in _DENIED:
        return (
            "no permission to read or write it; change the permissions of it or of the directories above it, or choose"
            " another path"
        )
    if number == errno.ENOENT:
        return "no such file or directory; check the path"
    if number == errno.ENOTDIR:
        return "a part of this path is a file, not a directory; check the path"
    if number in _FULL:
        return "the disk is full; free some space or choose a directory on another disk"
    return _OF_THE_PATH.get(number, f"cannot be read or written ({reason}); check the path and the disk")


def _as_checkpoint_error(
    target: Path, number: int | None, reason: str | None, num_bytes: int | None
) -> CheckpointError:
    if number in _FULL:
        return _disk_full(target, num_bytes)
    if number in _DENIED:
        return CheckpointError(
            f"{target}: no permission to write there. Change the permissions of {target.parent} or choose another path."
        )
    if number == errno.EFBIG:
        return CheckpointError(
            f"{target}: larger than the file system or a limit of this process (ulimit -f) allows a file to be."
            " Raise the limit or choose another path."
        )
    if number == errno.EROFS:
        return CheckpointError(f"{target}: the file system is read-only. Choose a path on another one.")
    if number in {errno.ENOTDIR, errno.EEXIST}:
        return CheckpointError(f"{target}: a file is where a directory is needed. Remove it or choose another path.")
    if number == errno.EISDIR:
        return CheckpointError(f"{target}: is a directory, not a file. Choose another name.")
    if number in _OF_THE_PATH:
        return CheckpointError(f"{target}: cannot be written ({reason}): {_OF_THE_PATH[number]}")
    return CheckpointError(f"{target}: cannot be written ({reason}). Choose another path.")


def _disk_full(target: Path, num_bytes: int | None) -> CheckpointError:
    facts = [] if num_bytes is None else [f"{readable_bytes(num_bytes)} needed"]
    free = free_bytes(target)
    if free is not None:
        facts.append(f"{readable_bytes(free)} free in {target.parent}")
    details = f" ({', '.join(facts)})" if facts else ""
    return CheckpointError(
        f"{target}: the disk is full{details}. Free some space or choose a directory on another disk. "
        "Nothing half-written was left, and what existed before is unchanged."
    )


def readable_bytes(num_bytes: int) -> str:
    """`538.1 MB`, in powers of 1,000."""
    if num_bytes < 1000:
        return f"{num_bytes} bytes"
    power = min(int(math.log10(num_bytes)) // 3, 6)
    return f"{num_bytes / 1000**power:.1f} {' kMGTPE'[power]}B"


def free_bytes(path: Path) -> int | None:
    """Free bytes on the disk of `path`, which need not exist; None if unknown."""
    existing = path.absolute()
    try:
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        return shutil.disk_usage(existing).free
    except OSError:
        return None
