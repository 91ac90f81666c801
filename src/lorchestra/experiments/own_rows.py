"""The rows that a run was trained on, for its evaluation: read again, or as far as the run has kept them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorchestra.data.config import DataConfig
from lorchestra.data.splits import split_digest
from lorchestra.errors import CheckpointError, ConfigError, DataError
from lorchestra.experiments.load import TrainedEnsemble
from lorchestra.experiments.rows import RunRows, check_unchanged, read_rows
from lorchestra.store.predictions import load_predictions
from lorchestra.store.run_dir import read_json
from lorchestra.types import Predictions

FILES = ("train", "val", "test")


def with_files(config: DataConfig, files: Mapping[str, str | Path | None]) -> DataConfig:
    """A saved configuration with the files given now in place of those of the training.

    Raises:
        ConfigError: the run was trained on a task by name.
    """
    given: dict[str, Any] = {split: str(path) for split, path in files.items() if path is not None}
    if given and config.task is not None:
        raise ConfigError(
            f"--data.{next(iter(given))}: the run was trained on the task {config.task}, which is read by its name;"
            " where its rows have moved, give --data-dir"
        )
    return dataclasses.replace(config, **given)


def own_rows(trained: TrainedEnsemble, config: DataConfig) -> RunRows:
    """The rows of the run's training, checked to be the same.

    Args:
        trained: the run.
        config: its data settings, with the files and the directory given now (see `with_files`).

    Raises:
        ConfigError: the rows came from Python and were not kept.
        DataError: the rows cannot be read, or are others than those of the training; the message says how to go on.
    """
    if config.train is None and config.task is None:
        raise ConfigError(
            f"{trained.run.root}: trained on rows that came from Python and were not kept; give labelled rows with"
            " --data, or evaluate it there, by the classifier's score or from its predictions"
        )
    try:
        rows = read_rows(config, trained.config.train.seed)
    except DataError as error:
        if config.task is not None:
            raise
        missing = [split for split in FILES if (path := getattr(config, split)) and not Path(path).exists()]
        if not missing:
            raise
        options = " ".join(f"--data.{split} FILE" for split in missing)
        raise DataError(
            f"{error}; where it was moved or renamed, give it with {options}; to evaluate on other labelled rows"
            " without it, --data FILE"
        ) from error
    if config.task is None:
        rows = _with_saved_ids(rows, trained.run.splits)
    check_unchanged(rows, trained.run.splits)
    return rows


def _with_saved_ids(rows: RunRows, splits_path: Path) -> RunRows:
    """The rows under the ids that they had: a file without ids gets them of its name, which may have changed."""
    saved = read_json(splits_path)
    splits = {}
    for split, examples in rows.task.splits.items():
        known: Any = saved.get(split) if isinstance(saved.get(split), dict) else {}
        ids = known.get("ids")
        splits[split] = examples
        if isinstance(ids, list) and len(ids) == len(examples) and [row.id for row in examples] != ids:
            renamed = tuple(dataclasses.replace(row, id=name) for row, name in zip(examples, ids, strict=True))
            if split_digest(renamed) == known.get("digest"):
                splits[split] = renamed
    return dataclasses.replace(rows, task=dataclasses.replace(rows.task, splits=splits))


def saved_validation(trained: TrainedEnsemble) -> Predictions | None:
    """The members' predictions of the run's validation rows, where an earlier evaluation has left them."""
    try:
        found = load_predictions(trained.run.prediction(trained.record["task"], "val"))
        ids = read_json(trained.run.splits)["val"]["ids"]
    except (CheckpointError, LookupError, TypeError):
        return None
    fits = found.num_members == len(trained.members) and list(found.ids) == list(ids)
    return found if fits and (found.labels >= 0).all() else None
