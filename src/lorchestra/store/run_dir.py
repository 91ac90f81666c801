"""The run directory: where each part lies, and the record that makes it an ensemble."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

from lorchestra.errors import CheckpointError
from lorchestra.store.atomic import atomic_write_json
from lorchestra.store.lock import DirectoryBusyError, directory_lock
from lorchestra.store.paths import typed_path
from lorchestra.store.schema import check_shape

FORMAT_VERSION = 1

# What is read again; other fields are for people.
_RECORD: dict[str, Any] = {
    "base": {"digest": str, "revision": (str, None)},
    "tokenizer_digest": str,
    "members": [{"path": str, "state": str, "sha256": str}],
    "task": str,
    "labels": ([str], None),
    "scoring": {"letter", "text"},
    "prompt_template": str,
}


@dataclass(frozen=True)
class RunDir:
    """Names within a run directory; nothing is read or made until asked for."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions and machine the run was made with."""
        return self.root / "environment.json"

    @property
    def events(self) -> Path:
        """One JSON line a step, evaluation and checkpoint."""
        return self.root / "events.jsonl"

    @property
    def ensemble(self) -> Path:
        """The record of the finished ensemble."""
        return self.root / "ensemble.json"

    @property
    def splits(self) -> Path:
        """Ids and digest of each split."""
        return self.root / "splits.json"

    @property
    def members(self) -> Path:
        """The PEFT folders."""
        return self.root / "members"

    @property
    def resume(self) -> Path:
        """Checkpoints."""
        return self.root / "resume"

    @property
    def metrics(self) -> Path:
        """Evaluations and cost."""
        return self.root / "metrics.json"

    @property
    def predictions(self) -> Path:
        """Saved predictions by task and split."""
        return self.root / "predictions"


@contextmanager
def claim_run(
    out: str | Path, if_exists: Literal["fail", "resume", "new"], say: Callable[[str], None] = lambda text: None
) -> Iterator[tuple[RunDir, bool]]:
    """Hold the directory to train in, for the time of the block; yields it, and whether it holds a run to resume.

    `new` leaves an existing run alone and takes the first free name of `OUT`, `OUT-2`, `OUT-3`, ...; a name is not free
    while another process is at work there, even if nothing is there yet.

    Raises:
        CheckpointError: something is there and `fail` was asked for, what is there is no run, or another process is at
            work in it.
    """
    root = typed_path(out)
    if if_exists != "new":
        with directory_lock(root, say):
            yield RunDir(root), _holds_run(root, if_exists)
        return
    for number in count(1):
        place = root if number == 1 else root.with_name(f"{root.name}-{number}")
        if _occupied(place):
            continue
        with ExitStack() as held:
            try:
                held.enter_context(directory_lock(place, say))
            except DirectoryBusyError:
                continue
            if not _occupied(place):  # by a process that was done between our two looks
                yield RunDir(place), False
                return


def _holds_run(root: Path, if_exists: Literal["fail", "resume"]) -> bool:
    """Whether a run is there to resume."""
    if not _occupied(root):
        return False
    if not RunDir(root).config.is_file():
        raise CheckpointError(f"--out {root}: exists and is not a run directory (no config.yaml); choose another name")
    if if_exists == "fail":
        raise CheckpointError(
            f"--out {root}: a run is already there; go on with it by --if-exists resume, keep it and take a new name by"
            " --if-exists new, or choose another --out"
        )
    return True


def _occupied(root: Path) -> bool:
    return root.exists() and (not root.is_dir() or any(root.iterdir()))


def require_free(out: str | Path) -> Path:
    """The path of a directory to be made; commands that only copy never write into one that is there.

    Raises:
        CheckpointError: something is there.
    """
    root = typed_path(out)
    if root.exists() or root.is_symlink():
        raise CheckpointError(f"--out {root}: exists already and is left as it is; choose another name")
    return root


def write_ensemble(run: RunDir, record: Mapping[str, Any]) -> None:
    """Write `ensemble.json`, the last file of a training: with it the run is finished."""
    atomic_write_json(run.ensemble, {"format_version": FORMAT_VERSION, **record})


def read_ensemble(root: str | Path) -> tuple[RunDir, dict[str, Any]]:
    """A finished run and its record.

    Raises:
        CheckpointError: no run, an unfinished one, another format version, or a damaged record.
    """
    run = RunDir(typed_path(root))
    if not run.root.is_dir():
        raise CheckpointError(f"{root}: no such run directory")
    if not run.ensemble.is_file():
        if run.config.is_file():
            raise CheckpointError(
                f"{root}: this run is not finished (no ensemble.json); finish it by: lorchestra train --out {root}"
                " --if-exists resume"
            )
        raise CheckpointError(f"{root}: not a run directory (neither ensemble.json nor config.yaml in it)")
    record = read_json(run.ensemble)
    version = record.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{run.ensemble}: format_version is {version!r}, this version of lorchestra reads {FORMAT_VERSION}; use the"
            " version that wrote it, or train again"
        )
    missing = _RECORD.keys() - record.keys()
    if missing:
        raise CheckpointError(f"{run.ensemble}: lacks {', '.join(sorted(missing))}; the file was changed or damaged")
    check_shape(record, _RECORD, run.ensemble)
    if record["labels"] is not None and len(set(record["labels"])) < max(2, len(record["labels"])):
        raise CheckpointError(f"{run.ensemble}: labels are not two or more different ones; the file was changed")
    for index, member in enumerate(record["members"]):
        _check_inside(run, member["path"], f"members[{index}].path")
    return run, record


def _check_inside(run: RunDir, path: str, field: str) -> None:
    """A copied run must not read another one's files, nor any file that its record was made to name."""
    if not path or "\0" in path or Path(path).is_absolute() or ".." in Path(path).parts:
        raise CheckpointError(f"{run.ensemble}: {field} is {path!r}, which is no place within the run directory")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a run directory.

    Raises:
        CheckpointError: the file is missing, truncated or no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); the file is missing, truncated or damaged") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, not a JSON object; the file is damaged")
    return value
