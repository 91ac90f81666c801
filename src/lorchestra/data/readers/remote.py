"""Files at URLs (`s3://`, `gs://`, `hf://`, `https://`, ...), through fsspec.

fsspec comes with torch; a file system may need a further package, which its error names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, cast

from lorchestra.errors import DataError

if TYPE_CHECKING:
    import fsspec

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True, order=True)
class RemoteFile:
    """A file at a URL: what readers use of a `Path`, and its size where the file system lists it."""

    url: str
    num_bytes: int | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return PurePosixPath(self.url).name

    def is_file(self) -> bool:
        """Whether it is a file: only files are listed."""
        return True

    def open(self, mode: str = "rb") -> IO[bytes]:
        """The file as a seekable stream of bytes.

        Raises:
            OSError: it cannot be read.
        """
        system, path = _system(self.url)
        return cast("IO[bytes]", system.open(path, mode))

    def __str__(self) -> str:
        """The URL."""
        return self.url


SourceFile = Path | RemoteFile


def is_url(path: object) -> bool:
    """Whether a path as typed is a URL."""
    return isinstance(path, str) and _URL.match(path) is not None


def remote_files(url: str) -> tuple[list[RemoteFile], bool]:
    """The files of a URL, which may be a file, a directory or a pattern; and whether it is one of the latter two.

    Raises:
        DataError: it cannot be read.
    """
    try:
        system, path = _system(url)
        is_pattern = bool(set("*?[") & set(path))
        is_directory = not is_pattern and system.isdir(path)
        if not (is_pattern or is_directory):
            if not system.exists(path):
                raise DataError(f"{url}: no such file; check the URL")
            return [RemoteFile(url, system.size(path))], False
        entries = system.glob(path, detail=True).values() if is_pattern else system.ls(path, detail=True)
        files = [entry for entry in entries if entry["type"] == "file"]
        return [RemoteFile(system.unstrip_protocol(file["name"]), file.get("size")) for file in files], True
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{url}: cannot be read ({reason}); check the URL and its credentials") from error


def _system(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL, and the path in it.

    Raises:
        DataError: no file system of that name, or its package is not installed.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise DataError(f"{url}: {url.partition('://')[0]}:// needs another package: {error}") from error
    except ValueError as error:
        raise DataError(f"{url}: {error}; check the URL") from error
