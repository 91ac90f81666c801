"""A file of answers that grows by chunks, survives a kill, and gets its name when it is complete.

Lines go to `NAME.partial`; after each chunk, `NAME.partial.json` records the position and what the answers are made
with. A killed command leaves both; the next one truncates the file to the last complete chunk and continues. The record
of a complete file can be kept as `NAME.resume.json`, so that later rows can be appended to it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Literal

from lorchestra.errors import CheckpointError
from lorchestra.store.atomic import atomic_write_json
from lorchestra.store.disk import explained, free_bytes, readable_bytes
from lorchestra.store.lock import directory_lock
from lorchestra.store.safe_paths import typed_path
from lorchestra.store.schema import Shape, read_json
from lorchestra.types import Json, plain_values

FORMAT_VERSION = 1
_RECORD: Shape = {"format_version": int, "of": {}, "num_rows": int, "num_bytes": int, "state": {}}

IfExists = Literal["overwrite", "resume", "fail"]


class AnswerFile:
    """A file that answers are appended to.

    Args:
        path: its name when it is complete.
        of: what the answers are made with, JSON values by name; a file of other answers is not continued.
        keep_record: whether the complete file can be resumed.
    """

    def __init__(self, path: Path, of: Mapping[str, object], keep_record: bool) -> None:
        self.path = path
        self.partial = path.with_name(f"{path.name}.partial")
        self.num_rows = 0
        self.state: Json = {}
        """The state saved with the last chunk."""
        self._record = path.with_name(f"{path.name}.partial.json")
        self._kept_record = path.with_name(f"{path.name}.resume.json")
        self._keep_record = keep_record
        self._num_bytes = 0
        self._of = dict(plain_values(of))
        self._file: IO[bytes] | None = None

    def append(self, data: bytes, num_rows: int, state: Mapping[str, object]) -> None:
        """Write a chunk to the disk.

        Args:
            data: its lines.
            num_rows: the number of rows that were read for it.
            state: JSON values that the next chunk needs.

        Raises:
            CheckpointError: it cannot be written.
        """
        with self._named_faults():
            file = self._file or self._reopened()
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            self._num_bytes = file.tell()
        self.num_rows += num_rows
        self.state = dict(state)
        self._save_record(self._record)

    def finish(self) -> None:
        """Give the file its name, unless it is a complete one to which nothing was appended.

        Raises:
            CheckpointError: it cannot be renamed.
        """
        if self._file is None:
            return
        self._file.close()
        if self._keep_record:  # before the file has its name: a kill in between leaves it partial, with both records
            self._save_record(self._kept_record)
        with self._named_faults():
            if not self._keep_record:
                self._kept_record.unlink(missing_ok=True)
            self.partial.replace(self.path)
        with suppress(OSError):
            self._record.unlink(missing_ok=True)

    def _save_record(self, path: Path) -> None:
        record = {"format_version": FORMAT_VERSION, "of": self._of, "num_rows": self.num_rows}
        atomic_write_json(path, record | {"num_bytes": self._num_bytes, "state": self.state})

    def _begin(self) -> None:
        with explained(self.path, None):
            self._record.unlink(missing_ok=True)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.partial.open("wb")

    def _resume(self) -> None:
        """Continue the rows of an interrupted command."""
        record = self._read_record(self._record, self.partial)
        with explained(self.path, None):
            size = self.partial.stat().st_size
            if not 0 <= record["num_bytes"] <= size or record["num_rows"] < 0:
                raise CheckpointError(
                    f"{self.partial}: has {size} bytes, but {record['num_bytes']} were written for {record['num_rows']}"
                    f" rows; the file was truncated; {_start_over(self.partial)}"
                )
            self._file = self.partial.open("r+b")
            self._file.truncate(record["num_bytes"])
            self._file.seek(record["num_bytes"])
        self.num_rows, self.state, self._num_bytes = record["num_rows"], record["state"], record["num_bytes"]

    def _resume_complete(self) -> None:
        """Continue a complete file, which keeps its name until something is appended."""
        if not os.path.isfile(self._kept_record) or os.path.islink(self.path):
            raise CheckpointError(
                f"{self.path}: is complete, and without {self._kept_record.name} its rows cannot be compared with new"
                f" ones; {_start_over(self.path)}"
            )
        record = self._read_record(self._kept_record, self.path)
        with explained(self.path, None):
            size = self.path.stat().st_size
        if size != record["num_bytes"] or record["num_rows"] < 0:
            raise CheckpointError(
                f"{self.path}: has {size} bytes, but {record['num_bytes']} were written for {record['num_rows']} rows;"
                f" the file was changed; {_start_over(self.path)}"
            )
        self.num_rows, self.state, self._num_bytes = record["num_rows"], record["state"], size

    def _reopened(self) -> IO[bytes]:
        """A complete file as a partial one: first its record, so that a kill in between leaves it complete."""
        self._save_record(self._record)
        self.path.replace(self.partial)
        self._file = self.partial.open("r+b")
        self._file.seek(self._num_bytes)
        return self._file

    def _read_record(self, path: Path, of: Path) -> Json:
        """The record of a file, made with the same as this one.

        Raises:
            CheckpointError: names the difference.
        """
        record = read_json(path, _RECORD)
        if record["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: format_version is {record['format_version']}, this is {FORMAT_VERSION}; {_start_over(of)}"
            )
        for name in {**record["of"], **self._of}:
            before, now = record["of"].get(name), self._of.get(name)
            if before != now:
                raise CheckpointError(
                    f"{of}: was started with {name} {before!r}, not {now!r}; give that, or {_start_over(of)}"
                )
        return record

    def _holds_rows(self) -> bool:
        """Whether an interrupted command left rows."""
        return os.path.isfile(self.partial) and os.path.isfile(self._record)

    def _close(self) -> None:
        """Close the file, and remove it if it has no rows yet."""
        if self._file is not None:
            self._file.close()
            if self.num_rows == 0:
                with suppress(OSError):
                    self.partial.unlink(missing_ok=True)
                    self._record.unlink(missing_ok=True)

    @contextmanager
    def _named_faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise CheckpointError(f"{self.path}: cannot be written ({error.strerror})") from error
            free = free_bytes(self.path)
            space = "" if free is None else f" ({readable_bytes(free)} free in {self.path.parent})"
            raise CheckpointError(f"{self.path}: the disk is full{space}; free some space") from error


def _start_over(file: Path) -> str:
    return f"start over with --if-exists overwrite, or remove {file}"


@contextmanager
def answer_file(
    path: str | Path, of: Mapping[str, object], if_exists: IfExists | None = None, *, keep_record: bool = False
) -> Iterator[AnswerFile]:
    """A file to append answers to, held for the time of the block; `num_rows` of it are done already.

    Without `finish`, its content stays for another call with `if_exists` "resume".

    Args:
        path: its name when it is complete.
        of: see `AnswerFile`.
        if_exists: "resume" continues the rows of an interrupted command, or a complete file whose record was kept;
            "overwrite" starts over, "fail" refuses both; by default a complete file is replaced, and an interrupted
            one refused.
        keep_record: see `AnswerFile`.

    Raises:
        CheckpointError: it is refused, another process is writing it, or it cannot be written.
    """
    file = AnswerFile(typed_path(path), of, keep_record)
    with directory_lock(file.path):
        if os.path.isdir(file.path):
            raise CheckpointError(f"--out {path}: is a directory; give a file")
        if os.path.islink(file.partial):  # its name is not the user's choice, unlike that of the complete file
            raise CheckpointError(f"{file.partial}: is a link, and answers are not written through it; remove it")
        if if_exists == "fail" and os.path.exists(file.path):
            raise CheckpointError(f"--out {path}: exists already; choose another name, or --if-exists overwrite")
        if if_exists == "resume" and file._holds_rows():
            file._resume()
        elif if_exists == "resume" and os.path.exists(file.path):
            file._resume_complete()
        elif if_exists in (None, "fail") and file._holds_rows():
            raise CheckpointError(
                f"--out {path}: {file.partial.name} has the rows of an interrupted command; continue with --resume,"
                " or start over with --if-exists overwrite"
            )
        else:
            file._begin()
        try:
            yield file
        finally:
            file._close()
