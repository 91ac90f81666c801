"""Paths in a directory that may come from a stranger, which cannot lead out of it; and paths as users type them.

A run directory is copied, unpacked and shared. Neither the names in its records nor its content may make a command read
or write anything elsewhere: no absolute path, no `..`, and no link in any part of a path below the root. The root
itself is the user's choice and may be a link.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from pathlib import Path, PurePath

from lorchestra.errors import CheckpointError

LONGEST_NAME = 200
"""Bytes of the name of a task, split or method; file systems allow 255, and file names have further parts."""

_SEPARATORS = "/\\" + (":" if os.name == "nt" else "")
_REDIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that make a name look like another."""
_UNFIT = {"Cc", "Zl", "Zp"}
_JUNCTION = getattr(stat, "IO_REPARSE_TAG_MOUNT_POINT", -1)
_READ_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def name_fault(name: str, most_bytes: int = LONGEST_NAME) -> str | None:
    """Why a name cannot be part of a file name, as the end of a sentence about it; None if it can."""
    if not name:
        return "is empty"
    if name.startswith("."):
        return "begins with a dot"
    if any(character in name for character in _SEPARATORS):
        return "holds a path separator"
    if any(unicodedata.category(c) in _UNFIT or c in _REDIRECTIONS for c in name):
        return "holds control characters"
    try:
        num_bytes = len(os.fsencode(name))
    except UnicodeEncodeError:
        return "holds half of a surrogate pair"
    return f"has {num_bytes} bytes, more than {most_bytes}" if num_bytes > most_bytes else None


def inside(root: str | os.PathLike[str], *names: str | PurePath) -> Path:
    """The path of a name below `root`, which need not exist; every access to a run's files uses it.

    Args:
        root: the directory, as the user named it; it may be a link.
        names: a relative path, in parts or whole, with forward slashes on every system.

    Raises:
        CheckpointError: the name leads out of the directory, or a part of the path below `root` is a link, or neither
            a file nor a directory.
    """
    path = Path(root)
    parts = [part for name in names for part in _parts(path, str(name))]
    for part in parts:
        path = path / part
        _require_plain(path)
    return path


def read_plain(path: Path) -> bytes:
    """The bytes of a regular file whose path came from `inside`; a link that has replaced it since is refused.

    Raises:
        OSError: it is missing, cannot be read, or is not a regular file.
    """
    descriptor = os.open(path, _READ_FLAGS)  # non-blocking: opening a pipe would wait for ever
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _parts(root: Path, name: str) -> list[str]:
    parts = name.split("/")
    if not name or "\0" in name or "\\" in name or PurePath(name).is_absolute() or PurePath(name).drive:
        raise _leads_out(root, name)
    if name.startswith("/") or ".." in parts:
        raise _leads_out(root, name)
    return [part for part in parts if part not in ("", ".")]


def _leads_out(root: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"{root}: {name[:200]!r} is not a name within this directory; the file that names it was changed"
    )


def _require_plain(path: Path) -> None:
    """Refuse what exists and is neither a regular file nor a directory."""
    try:
        info = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CheckpointError(f"{path}: cannot be accessed ({reason}). Check the path and its permissions.") from error
    if stat.S_ISLNK(info.st_mode) or getattr(info, "st_reparse_tag", 0) == _JUNCTION:
        raise CheckpointError(
            f"{path}: is a link, and links in a run directory are not followed, since they could lead to any file."
            " Remove it, or replace it by a copy of what it names."
        )
    if not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
        raise CheckpointError(f"{path}: is neither a file nor a directory (a pipe, socket or device). Remove it.")


def typed_path(path: str | Path) -> Path:
    """A path with `~` (or `~name`) expanded, if that home directory is known."""
    # Path.expanduser raises if it is not
    return Path(os.path.expanduser(path))
