"""Output directories: locked while a job works in them; started, resumed or refused in one way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal

from lorchestra.errors import CheckpointError
from lorchestra.store.atomic import atomic_directory
from lorchestra.store.lock import DirectoryBusyError, directory_lock
from lorchestra.store.safe_paths import inside, typed_path

IfExists = Literal["fail", "resume", "finish", "new"]


@dataclass(frozen=True)
class Kind:
    """A kind of output directory: the file that marks one, and what messages call it."""

    marker: str
    name: str


RUN = Kind("config.yaml", "a run directory (no config.yaml)")
SWEEP = Kind("sweep.json", "the directory of a sweep")
ANSWERS = Kind("answers.json", "a directory of answers (no answers.json)")
COMPARISON = Kind("compare.json", "the directory of a comparison")


@dataclass(frozen=True)
class Workspace:
    """An output directory that this job has locked.

    `resuming` says whether it holds earlier work of such a job; else it is empty or does not exist.
    """

    root: Path
    marker: str | None
    resuming: bool = False

    @classmethod
    @contextmanager
    def open(cls, out: str | Path, kind: Kind, if_exists: IfExists = "resume") -> Iterator[Workspace]:
        """Lock a directory of some kind for the time of the block; for "finish" it must hold work.

        "new" leaves existing work alone and takes the first free name of `OUT`, `OUT-2`, `OUT-3`, ...; a name is not
        free while another process works there, even if the directory does not exist yet.

        Raises:
            CheckpointError: something exists there and `if_exists` is "fail", it is of another kind, or another process
                is working in it.
        """
        root = typed_path(out)
        if if_exists != "new":
            with directory_lock(root):
                yield cls(root, kind.marker, _holds_work(root, kind, if_exists))
            return
        for number in count(1):
            path = root if number == 1 else root.with_name(f"{root.name}-{number}")
            if _is_occupied(path):
                continue
            with ExitStack() as held:
                try:
                    held.enter_context(directory_lock(path))
                except DirectoryBusyError:
                    continue
                if not _is_occupied(path):  # by a process that finished after the first check
                    yield cls(path, kind.marker)
                    return

    @classmethod
    @contextmanager
    def new(cls, out: str | Path) -> Iterator[Workspace]:
        """Lock a directory that must not exist yet, for commands that only copy.

        Raises:
            CheckpointError: something exists there, or another process is working in it.
        """
        root = typed_path(out)
        with directory_lock(root):
            if root.exists() or root.is_symlink():
                raise CheckpointError(f"--out {root}: exists already and is left as it is; choose another name")
            yield cls(root, None)

    @contextmanager
    def create(self, num_bytes: int | None = None) -> Iterator[Path]:
        """Yield a temporary directory; it gets its name with all its files when the block ends.

        A job that is killed before that leaves nothing; one that is killed later can be resumed.

        Args:
            num_bytes: the size of its files if known (see `atomic_directory`).

        Raises:
            CheckpointError: it cannot be written, or another process has made it meanwhile.
        """
        with suppress(OSError):
            self.root.rmdir()  # an empty directory may exist
        with atomic_directory(self.root, num_bytes=num_bytes) as directory:
            yield directory
            marker = None if self.marker is None else (directory / self.marker).read_bytes()
        # only without working locks: `atomic_directory` keeps a directory that appeared first
        if self.marker is not None and not _has_content(inside(self.root, self.marker), marker):
            raise CheckpointError(f"--out {self.root}: another process has just made it; choose another --out")


def _holds_work(root: Path, kind: Kind, if_exists: Literal["fail", "resume", "finish"]) -> bool:
    """Whether the directory has work to resume."""
    if not _is_occupied(root):
        if if_exists == "finish":
            raise CheckpointError(f"--out {root}: there is nothing to finish; check the path, or train without it")
        return False
    if not inside(root, kind.marker).is_file():
        raise CheckpointError(f"--out {root}: exists and is not {kind.name}; choose another name")
    if if_exists == "fail":
        raise CheckpointError(
            f"--out {root}: a run is already there; continue it with --if-exists resume, keep it and take a new name"
            " with --if-exists new, or choose another --out"
        )
    return True


def _is_occupied(root: Path) -> bool:
    return root.exists() and (not root.is_dir() or any(root.iterdir()))


def _has_content(path: Path, content: bytes | None) -> bool:
    return path.is_file() and path.read_bytes() == content
