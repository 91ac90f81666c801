"""The run directory: where each part lies, and the record that makes it an ensemble."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

from lorchestra.errors import CheckpointError
from lorchestra.store.atomic import atomic_write_json
from lorchestra.store.lock import DirectoryBusyError, directory_lock
from lorchestra.store.safe_paths import inside, name_fault, read_plain, typed_path
from lorchestra.store.schema import COUNT, FILE_NAME, NUMBER_OR_NULL, Each, Number, check_shape

FORMAT_VERSION = 2
_READ = (1, 2)

COST = (Each(NUMBER_OR_NULL), None)
"""What a training took, by name."""
_LONGEST_STEM = 220
"""Bytes of a predictions file's name without its suffix: file systems end at 255, and its temporary name is longer."""

# What is read again; other fields are for people.
_RECORD: dict[str, Any] = {
    "base": {"digest": str, "revision": (str, None), "id": str, "path": str},
    "tokenizer_digest": str,
    "num_members?": COUNT,
    "members": [
        {
            "path": str,
            "state": str,
            "sha256": str,
            "seed?": (int, None),
            "best_step?": (COUNT, None),
            "val_nll?": NUMBER_OR_NULL,
            "r?": Number(1, 2 * 10_000, whole=True),
            "scaling?": Number(-1e30, 1e30),
        }
    ],
    "task": FILE_NAME,
    "labels": ([str], None),
    "scoring": {"letter", "text"},
    "prompt_template": str,
    "chat_template": bool,
    "system_prompt": (str, None),
    "normalize": {"sum", "token", "byte"},
    "max_length?": COUNT,
    "cost?": COST,
}
_FRAME = {"trim": {"", "strip", "lstrip", "rstrip"}, "alone": [str], "shots": [str]}
_SINCE_2: dict[str, Any] = {
    "choice_end": {"where_needed", "never"},
    "chat_frame?": (_FRAME, None),
    "answer_prefix?": str,
}
_FOLDER = re.compile(r"members/member_[0-9]{2,5}")


@dataclass(frozen=True)
class RunDir:
    """Names within a run directory; nothing is read or made until asked for.

    Every path below the root comes from here, so that none leads out of it: asking for one raises CheckpointError where
    a part of it is a link.
    """

    root: Path

    def inside(self, *names: str) -> Path:
        """A path below the root.

        Raises:
            CheckpointError: it would lead out of the directory, or a part of it is a link (see `inside.inside`).
        """
        return inside(self.root, *names)

    def prediction(self, *parts: str) -> Path:
        """The tensor file of saved predictions: of a task, a split and, for baselines, a name."""
        return tensors_path(self.predictions, ".".join(parts))

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.inside("config.yaml")

    @property
    def environment(self) -> Path:
        """Versions and machine the run was made with."""
        return self.inside("environment.json")

    @property
    def events(self) -> Path:
        """One JSON line a step, evaluation and checkpoint."""
        return self.inside("events.jsonl")

    @property
    def ensemble(self) -> Path:
        """The record of the finished ensemble."""
        return self.inside("ensemble.json")

    @property
    def splits(self) -> Path:
        """Ids and digest of each split."""
        return self.inside("splits.json")

    @property
    def members(self) -> Path:
        """The PEFT folders."""
        return self.inside("members")

    @property
    def resume(self) -> Path:
        """Checkpoints."""
        return self.inside("resume")

    @property
    def metrics(self) -> Path:
        """Evaluations and cost."""
        return self.inside("metrics.json")

    @property
    def predictions(self) -> Path:
        """Saved predictions by task and split."""
        return self.inside("predictions")


@contextmanager
def claim_run(out: str | Path, if_exists: Literal["fail", "resume", "new"]) -> Iterator[tuple[RunDir, bool]]:
    """Hold the directory to train in, for the time of the block; yields it, and whether it holds a run to resume.

    `new` leaves an existing run alone and takes the first free name of `OUT`, `OUT-2`, `OUT-3`, ...; a name is not free
    while another process is at work there, even if nothing is there yet.

    Raises:
        CheckpointError: something is there and `fail` was asked for, what is there is no run, or another process is at
            work in it.
    """
    root = typed_path(out)
    if if_exists != "new":
        with directory_lock(root):
            yield RunDir(root), _holds_run(root, if_exists)
        return
    for number in count(1):
        place = root if number == 1 else root.with_name(f"{root.name}-{number}")
        if _occupied(place):
            continue
        with ExitStack() as held:
            try:
                held.enter_context(directory_lock(place))
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


def tensors_path(directory: Path, stem: str) -> Path:
    """The tensor file of some predictions; their words stand in a JSON file of the same name.

    Raises:
        CheckpointError: the stem, which is made of a task's and a split's name, can be no file's name.
    """
    fault = name_fault(stem, _LONGEST_STEM)
    if fault is not None:
        raise CheckpointError(
            f"{directory}: predictions named {stem[:300]!r} cannot be kept, since the name {fault}; give the task's or"
            " the rows' file another name"
        )
    return inside(directory, f"{stem}.safetensors")


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
    if version not in _READ or isinstance(version, bool):
        raise CheckpointError(
            f"{run.ensemble}: format_version is {version!r}, this version of lorchestra reads 1 and 2; use the"
            " version that wrote it, or train again"
        )
    shape = _RECORD if version == 1 else _RECORD | _SINCE_2
    missing = {name for name in shape if not name.endswith("?")} - record.keys()
    if missing:
        raise CheckpointError(f"{run.ensemble}: lacks {', '.join(sorted(missing))}; the file was changed or damaged")
    check_shape(record, shape, run.ensemble)
    labels = record["labels"]
    if labels is not None and len(set(labels)) < max(2, len(labels)):
        raise CheckpointError(f"{run.ensemble}: labels are not two or more different ones; the file was changed")
    if any("\ud800" <= character <= "\udfff" for label in labels or () for character in label):
        raise CheckpointError(f"{run.ensemble}: a label holds half of a surrogate pair; the file was changed")
    if record.get("chat_frame") is not None and len(record["chat_frame"]["alone"]) != 3:
        raise CheckpointError(f"{run.ensemble}: chat_frame.alone has not three texts; the file was changed")
    _check_members(run, record)
    return run, record


def _check_members(run: RunDir, record: Mapping[str, Any]) -> None:
    """A copied run must not read another one's files, nor any file that its record was made to name."""
    paths = [member["path"] for member in record["members"]]
    for index, path in enumerate(paths):
        if _FOLDER.fullmatch(path) is None:
            raise CheckpointError(
                f"{run.ensemble}: members[{index}].path is {path!r}, which is no place within the run directory"
                " that a member has (members/member_00, members/member_01, ...); the file was changed"
            )
    read = [member["path"] for member in record["members"] if member["state"] != "failed"]
    if len(set(read)) < len(read):
        raise CheckpointError(f"{run.ensemble}: two members have the same path; the file was changed")
    if paths and record.get("num_members", len(paths)) != len(paths):
        raise CheckpointError(
            f"{run.ensemble}: num_members is {record['num_members']}, and there are {len(paths)}; the file was changed"
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a run directory.

    Raises:
        CheckpointError: the file is missing, truncated or no JSON object.
    """
    try:
        value = json.loads(read_plain(path).decode("utf-8"), parse_constant=_no_number)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); the file is missing, truncated or damaged") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, not a JSON object; the file is damaged")
    return value


def _no_number(text: str) -> None:
    """What Python's reader takes for a number and JSON does not know."""
    raise ValueError(f"{text} is no number")
