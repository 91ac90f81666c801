"""The rows of a run: its task files read, split and described."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorchestra.data.config import DataConfig
from lorchestra.data.files import read_task_file
from lorchestra.data.splits import make_splits, split_digest
from lorchestra.errors import ConfigError, DataError
from lorchestra.store.run_dir import read_json
from lorchestra.types import Example, Task


@dataclass(frozen=True)
class RunRows:
    """A task's splits, and what the user should hear about how they came about."""

    task: Task
    notes: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """What `splits.json` holds: ids and digest of each split."""
        return {
            split: {"digest": split_digest(rows), "num_examples": len(rows), "ids": [row.id for row in rows]}
            for split, rows in self.task.splits.items()
        }


def read_rows(config: DataConfig, seed: int) -> RunRows:
    """Read the configured files and make the splits.

    Raises:
        ConfigError: no training file is configured.
        DataError: a file or a row cannot be used.
    """
    if config.train is None:
        raise ConfigError("data.train: no training rows; give a file with --data.train FILE")
    train = read_task_file(config.train, config.fields, require_answer=True, labels=None)
    notes = list(train.warnings)
    others: dict[str, Sequence[Example] | None] = {}
    for split, path in (("val", config.val), ("test", config.test)):
        if path is None:
            others[split] = None
            continue
        file = read_task_file(path, config.fields, require_answer=True, labels=train.labels)
        check_same_kind(train.labels, file.labels, path)
        notes += file.warnings
        others[split] = file.examples
    splits, report = make_splits(train.examples, others["val"], others["test"], seed)
    task = Task(Path(config.train).name.split(".")[0], splits, train.labels)
    return RunRows(task, (*notes, *report.sentences()))


def absolute_paths(config: DataConfig) -> DataConfig:
    """The same files by their absolute paths: a saved configuration must not depend on where it is read."""
    paths: dict[str, Any] = {
        name: str(Path(path).absolute()) for name in ("train", "val", "test") if (path := getattr(config, name))
    }
    return dataclasses.replace(config, **paths)


def check_same_kind(trained: tuple[str, ...] | None, found: tuple[str, ...] | None, path: str | Path) -> None:
    """Refuse questions where the task is texts with labels, and the other way round."""
    if (trained is None) != (found is None):
        kinds = {True: "questions with choices", False: "texts with labels"}
        raise DataError(
            f"{path}: has {kinds[found is None]}, but the training rows are {kinds[trained is None]}; give rows of one"
            " kind"
        )


def check_unchanged(rows: RunRows, splits_path: Path) -> None:
    """Refuse rows other than those the run was made with.

    Raises:
        DataError: a split's digest differs from the one in `splits.json`.
    """
    saved = read_json(splits_path)
    for split, examples in rows.task.splits.items():
        if saved.get(split, {}).get("digest") != split_digest(examples):
            raise DataError(
                f"the {split} rows are not those this run was made with (digest differs from {splits_path}): the data"
                " files have changed since; give the changed file as new data with --data, or restore the files"
            )
