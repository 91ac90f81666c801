"""What a full disk, a missing permission or a read-only file system means, in words a user can act on."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorchestra.errors import CheckpointError, LorchestraError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM}
_RUST_ERRNO = re.compile(r"\(os error (\d+)\)")


def require_space(path: str | os.PathLike[str], num_bytes: int) -> None:
    """Refuse early when fewer than `num_bytes` bytes are free where `path` is going to be.

    Raises:
        CheckpointError: the disk has too little room.
    """
    free = free_bytes(Path(path))
    if free is not None and free < num_bytes:
        raise _disk_full(Path(path), num_bytes)


@contextmanager
def explained(target: Path, num_bytes: int | None, *, inside: Path | None = None) -> Iterator[None]:
    """Turn what the system says into a CheckpointError about `target`.

    `inside` is given around the caller's block: an error there is ours to explain only when it is about the disk or
    about the temporary path, not when the caller failed to read something else.
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
        # Writers in Rust (safetensors, tokenizers) raise their own classes and put the system's number in the text.
        found = _RUST_ERRNO.search(str(error))
        if found is None or isinstance(error, LorchestraError):
            raise
        number = int(found.group(1))
        if number not in _FULL | _DENIED | {errno.EROFS, errno.EFBIG}:
            raise
        raise _as_checkpoint_error(target, number, os.strerror(number), num_bytes) from error


def _as_checkpoint_error(
    target: Path, number: int | None, reason: str | None, num_bytes: int | None
) -> CheckpointError:
    if number in _FULL:
        return _disk_full(target, num_bytes)
    if number in _DENIED:
        return CheckpointError(
            f"{target}: no permission to write there. "
            f"Change the permissions of {target.parent} or choose another place."
        )
    if number == errno.EFBIG:
        return CheckpointError(
            f"{target}: larger than the file system or a limit of this process (ulimit -f) allows a file to be."
            " Raise the limit or choose another place."
        )
    if number == errno.EROFS:
        return CheckpointError(f"{target}: the file system is read-only. Choose a place on another one.")
    if number in {errno.ENOTDIR, errno.EEXIST}:
        return CheckpointError(f"{target}: a file is where a directory is needed. Remove it or choose another place.")
    if number == errno.EISDIR:
        return CheckpointError(f"{target}: is a directory, and a file was to be written. Choose another name.")
    return CheckpointError(f"{target}: cannot be written ({reason}). Choose another place.")


def _disk_full(target: Path, num_bytes: int | None) -> CheckpointError:
    facts = [] if num_bytes is None else [f"{readable_bytes(num_bytes)} wanted"]
    free = free_bytes(target)
    if free is not None:
        facts.append(f"{readable_bytes(free)} free in {target.parent}")
    details = f" ({', '.join(facts)})" if facts else ""
    return CheckpointError(
        f"{target}: the disk is full{details}. Free some space or choose a directory on another disk. "
        "Nothing half-written was left, and what was there before is unchanged."
    )


def readable_bytes(num_bytes: int) -> str:
    """`538.1 MB`, in powers of 1,000."""
    if num_bytes < 1000:
        return f"{num_bytes} bytes"
    power = min(int(math.log10(num_bytes)) // 3, 6)
    return f"{num_bytes / 1000**power:.1f} {' kMGTPE'[power]}B"


def free_bytes(path: Path) -> int | None:
    """Free bytes where `path` is or is going to be; None where the system does not say."""
    place = path.absolute()
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        return shutil.disk_usage(place).free
    except OSError:
        return None
