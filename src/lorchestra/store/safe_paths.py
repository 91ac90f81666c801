"""Names within a directory that may come from a stranger, as paths that cannot lead out of it.

A run directory is copied, unpacked and shared. What its records name, and what lies in it, must never make a command
read or write anything elsewhere: no absolute path, no `..`, and no link in any part of a path below the root. The root
itself is the user's choice and may be a link.

Paths as people type them.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from pathlib import Path, PurePath

from lorchestra.errors import CheckpointError

LONGEST_NAME = 200
"""Bytes of a task's, a split's or a method's name; file systems end at 255, and files have more in their names."""

_SEPARATORS = "/\\" + (":" if os.name == "nt" else "")
_REDIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that make a name look like another one."""
_UNFIT = {"Cc", "Zl", "Zp"}
_JUNCTION = getattr(stat, "IO_REPARSE_TAG_MOUNT_POINT", -1)
_READ_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def name_fault(name: str, most_bytes: int = LONGEST_NAME) -> str | None:
    """Why a name cannot be a part of a file's name, as the end of a sentence about it; None where it can."""
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
    """The path of a name below `root`, whether it exists or not; every access to a run's files comes through here.

    Args:
        root: the directory, as the user named it; it may be a link.
        names: a relative path, in parts or whole. Forward slashes separate on every system.

    Raises:
        CheckpointError: the name leads out of the directory, a part of the path below `root` is a link, or something
            there is neither a file nor a directory.
    """
    path = Path(root)
    parts = [part for name in names for part in _parts(path, str(name))]
    for part in parts:
        path = path / part
        _require_plain(path)
    return path


def read_plain(path: Path) -> bytes:
    """The bytes of a regular file whose path came from `inside`; a link that has taken its place since is refused.

    Raises:
        OSError: it is missing, cannot be read, or is no regular file.
    """
    descriptor = os.open(path, _READ_FLAGS)  # without waiting: a pipe would never be opened else
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
        f"{root}: {name[:200]!r} is no name within this directory; the file that names it was changed"
    )


def _require_plain(path: Path) -> None:
    """Refuse what is there and not a regular file or a directory."""
    try:
        info = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CheckpointError(f"{path}: cannot be looked at ({reason}). Check the path and its permissions.") from error
    if stat.S_ISLNK(info.st_mode) or getattr(info, "st_reparse_tag", 0) == _JUNCTION:
        raise CheckpointError(
            f"{path}: is a link, and links in a run directory are not followed, since they could lead to any file."
            " Remove it, or put a copy of what it names in its place."
        )
    if not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
        raise CheckpointError(f"{path}: is neither a file nor a directory (a pipe, socket or device). Remove it.")


def typed_path(path: str | Path) -> Path:
    """A path with `~` (or `~name`) as the home directory it stands for; as it is where there is no such home."""
    # not Path.expanduser, which raises where the home is unknown
    return Path(os.path.expanduser(path))
