"""Atomic writes: a file or directory exists completely or not at all.

Everything is written under a temporary name next to its target, flushed to the disk and renamed. A killed process
leaves at most a `.tmp` sibling, which nobody reads and a later write of the same name removes. Two processes that write
the same target never mix: the last file wins, the first directory wins.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lorchestra.errors import CheckpointError, visible_json
from lorchestra.store.disk import explained, require_space
from lorchestra.types import plain_values

_LEFTOVER = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp")

_LONGEST_NAME = 210
"""Bytes of a target's name that its temporary siblings repeat: file systems allow 255 in total."""

LEFTOVER_AGE_S = 3600.0
"""Seconds without a write after which a temporary sibling belongs to a process that no longer exists."""


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` atomically.

    Raises:
        CheckpointError: the disk is full, or the path cannot be written.
    """
    with atomic_path(path, num_bytes=len(data)) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    r"""Write `text` to `path` as UTF-8, atomically; line ends stay `\n` on every system.

    Raises:
        CheckpointError: the disk is full, or the path cannot be written.
    """
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: str | os.PathLike[str], value: object, *, indent: int | None = 2) -> None:
    """Write `value` to `path` as JSON, atomically; see `plain_values` for the conversion.

    Raises:
        CheckpointError: the disk is full, or the path cannot be written.
        TypeError: `value` holds something that JSON cannot represent.
    """
    plain = plain_values(value)
    text = json.dumps(plain, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        data = text.encode()
    except UnicodeEncodeError:  # in Python, file names that are not UTF-8 hold halves of surrogate pairs
        data = json.dumps(plain, indent=indent, allow_nan=False).encode()
    atomic_write_bytes(path, data + b"\n")


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, num_bytes: int | None = None) -> Iterator[Path]:
    """Yield a temporary path; when the block ends without an error, the file there replaces `path`.

    Missing parent directories are made. When the block raises, the temporary file is removed and `path` is unchanged.

    Args:
        path: where the file goes.
        num_bytes: its size if known: compared with the free space first, and named in the error.

    Raises:
        CheckpointError: the disk is full, or the path cannot be written.
    """
    target = Path(path)
    temporary = _temporary_sibling(target)
    try:
        with explained(target, num_bytes):
            _prepare(target, num_bytes)
            with temporary.open("xb"):
                pass
            mode = stat.S_IMODE(temporary.stat().st_mode)
        with explained(target, num_bytes, inside=temporary):
            yield temporary
        with explained(target, num_bytes):
            # some writers (safetensors) replace the file by one that only its owner can read
            temporary.chmod(mode)
            _flush(temporary)
            temporary.replace(target)
            _flush_names(target.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: str | os.PathLike[str], *, num_bytes: int | None = None) -> Iterator[Path]:
    """Yield an empty temporary directory; when the block ends without an error, it is renamed to `path`.

    If another process has made `path` meanwhile, that one stays and this one is removed. When the block raises, the
    temporary directory is removed.

    Args:
        path: where the directory goes.
        num_bytes: the size of its files if known: compared with the free space first, and named in the error.

    Raises:
        CheckpointError: the disk is full, the path cannot be written, or a file exists there.
    """
    target = Path(path)
    temporary = _temporary_sibling(target)
    try:
        with explained(target, num_bytes):
            _prepare(target, num_bytes)
            temporary.mkdir()
        with explained(target, num_bytes, inside=temporary):
            yield temporary
        with explained(target, num_bytes):
            _settle(temporary)
            try:
                temporary.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
            _flush_names(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def replacing_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the path of a directory to make; when the block ends without an error, it replaces the one at `path`.

    When the block raises, what it made is removed and `path` is unchanged.

    Raises:
        CheckpointError: the directory cannot be moved out of the way.
    """
    target = Path(path)
    new = _temporary_sibling(target)
    try:
        yield new
        discard_directory(target)
        with explained(target, None):
            new.rename(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def discard_directory(path: str | os.PathLike[str]) -> None:
    """Remove a directory, if it exists, so that nobody sees it half removed.

    Raises:
        CheckpointError: the directory cannot be moved out of the way.
    """
    target = Path(path)
    aside = _temporary_sibling(target)
    with explained(target, None):
        try:
            target.rename(aside)
        except FileNotFoundError:
            return
        if not aside.is_dir():
            aside.rename(target)
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
    shutil.rmtree(aside, ignore_errors=True)


def sweep_leftovers(path: str | os.PathLike[str], *, older_than_s: float = LEFTOVER_AGE_S) -> None:
    """Remove the temporary siblings of `path` that killed processes left behind.

    Args:
        path: the target.
        older_than_s: only those without a write for so many seconds, so that a process that is still writing is left
            alone.
    """
    target = Path(path)
    pattern = re.compile(rf"\.{re.escape(_short_name(target))}\.[0-9a-f]{{16}}\.tmp")
    limit = time.time() - older_than_s
    # an error here must not stop the write
    with suppress(OSError):
        for sibling in target.parent.iterdir():
            if pattern.fullmatch(sibling.name) and _last_written(sibling) < limit:
                if sibling.is_dir():
                    shutil.rmtree(sibling, ignore_errors=True)
                else:
                    sibling.unlink(missing_ok=True)


def sweep_directory(directory: str | os.PathLike[str], *, older_than_s: float = LEFTOVER_AGE_S) -> None:
    """Remove the temporary files and directories that killed processes left in a directory (see `sweep_leftovers`)."""
    with suppress(OSError):
        for entry in list(Path(directory).iterdir()):
            if match := _LEFTOVER.fullmatch(entry.name):
                sweep_leftovers(entry.with_name(match[1]), older_than_s=older_than_s)


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hexadecimal digits.

    Raises:
        CheckpointError: the file is missing or cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}). Check the path and its permissions."
        ) from error


def json_line(value: object) -> str:
    """`value` as one line of JSON, without a line end; characters that control a terminal are escaped.

    Raises:
        TypeError: `value` holds something that JSON cannot represent.
    """
    plain = plain_values(value)
    text = json.dumps(plain, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # halves of surrogate pairs
        return json.dumps(plain, allow_nan=False)
    return visible_json(text)


def _temporary_sibling(target: Path) -> Path:
    return target.with_name(f".{_short_name(target)}.{secrets.token_hex(8)}.tmp")


def _short_name(target: Path) -> str:
    return os.fsdecode(os.fsencode(target.name)[:_LONGEST_NAME])


def _prepare(target: Path, num_bytes: int | None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep_leftovers(target)
    if num_bytes is not None:
        require_space(target, num_bytes)


def _settle(directory: Path) -> None:
    """Give the files in `directory` the default modes, and flush them and their names to the disk."""
    mode = stat.S_IMODE(directory.stat().st_mode) & 0o666
    for parent, _, names in os.walk(directory):
        for name in names:
            file = Path(parent, name)
            file.chmod(mode)
            _flush(file)
        _flush_names(Path(parent))


def _flush(file: Path) -> None:
    with file.open("rb+") as handle:
        os.fsync(handle.fileno())


def _flush_names(directory: Path) -> None:
    """Make a rename survive a power failure, on file systems that can."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _last_written(path: Path) -> float:
    times = [path.stat().st_mtime]
    if path.is_dir():
        times += [entry.stat().st_mtime for entry in path.rglob("*")]
    return max(times)
