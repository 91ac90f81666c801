"""Evaluate a finished run: the ensemble beside what one would use without it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lorchestra.config.data import DataConfig
from lorchestra.data.splits import split_digest
from lorchestra.errors import CheckpointError, ConfigError, DataError, did_you_mean
from lorchestra.inference.pipeline import Pipeline
from lorchestra.inference.predict import MemberPass, member_passes
from lorchestra.metrics.early_exit import ExitRule, evaluate_early_exit
from lorchestra.metrics.evaluation import ood_scores
from lorchestra.nn.packing import BASE
from lorchestra.runs.baselines import comparable, few_shot_base, mc_dropout_of, save_all, score
from lorchestra.runs.ensemble import Ensemble
from lorchestra.runs.rows import RunRows, check_unchanged, name_of_file, read_named, read_ood, read_rows, with_directory
from lorchestra.store.run import Run
from lorchestra.store.splits import read_digests, read_ids
from lorchestra.training.callbacks import Callback, CallbackList, progress
from lorchestra.types import Example, Predictions

logger = logging.getLogger(__name__)


def evaluate_run(
    trained: Ensemble,
    *,
    data: str | Path | None = None,
    task: str | None = None,
    split: str = "test",
    ood: Sequence[str | Path] = (),
    data_dir: str | None = None,
    files: Mapping[str, str | Path | None] = MappingProxyType({}),
    early_exit: ExitRule | None = None,
    save: bool = True,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Evaluate on the run's own rows, another file or another task; saves predictions and `metrics.json`.

    With `data` or `task` the run's own rows need not be at hand: the few-shot base and the majority answer are then
    left out, and the best member and temperatures rest on the predictions of validation rows that an earlier evaluation
    has saved, or are left out, too.

    An entry is filed under the task of its rows: the run's own, also for a file with rows of it, or the one named.

    Args:
        trained: the run.
        data: a file with labelled rows; without it, the rows of `split`.
        task: a task by name; without it, the run's own.
        split: train, val or test; with `data`, without meaning.
        ood: files or tasks by name with rows unlike the training rows; their labels are ignored.
        data_dir: the directory with data sets, in place of the one the run was trained with.
        files: by "train", "val" and "test", where files of the training are now; their rows must be the same.
        early_exit: also under "early_exit", what stopping by this rule would save and change.
        save: without it nothing is written.
        callbacks: report progress; where one asks to stop, `Interrupted` is raised.

    Returns:
        The entry written into `metrics.json`.

    Raises:
        ConfigError: an unknown split or task, a task and a file, or the run's own rows, which came from Python.
        DataError: the rows cannot be used, or have changed since the run.
        UnsavedEvaluationError: all was computed, but cannot be written; it holds the entry.
    """
    callback = CallbackList(callbacks)
    before = trained.run.read_named_evaluations()  # before anything is computed, since a damaged file ends it all
    closed = trained.run.why_read_only() if save else None
    if closed is not None:
        logger.warning(f"{closed} The evaluation will be shown, and not saved.")
    config = with_directory(with_files(trained.config.data, files), data_dir)
    rows, why = _own_rows(trained, config, needed=data is None and (task is None or task == config.task))
    far = read_ood(ood, config, trained.labels)
    pipeline, split, examples = _rows_to_evaluate(trained, rows, config, data, task, split)
    for kept in (f"{split}.base_few_shot", *(f"ood_{name}" for name in far)):
        trained.run.prediction(pipeline.task, kept)  # refuses names that are too long, and links, before any work
    is_validation = pipeline is trained.pipeline and data is None and split == "val"
    if rows is None:
        logger.info(f"evaluating without the run's training rows, and so without the majority answer ({why})")
    predictions, zero_shot = _members_and_base(pipeline, examples, split, callback)
    validation = predictions if is_validation else _validation(trained, rows, callback)
    splits, own = {} if rows is None else rows.task.splits, trained.config
    candidates: dict[str, Predictions | str] = {
        "base_zero_shot": zero_shot,
        **few_shot_base(pipeline, own, examples, split, splits.get("train"), callback),
        **mc_dropout_of(pipeline, own, examples, split, callback, passes=pipeline.model.num_members),
    }
    baselines, left_out = comparable(candidates, predictions, pipeline)
    for name, reason in left_out.items():
        logger.info(f"{name} is left out: {reason}")
    entry = score(predictions, validation, baselines, left_out, examples, splits, own.evaluate, own.train.seed)
    if early_exit is not None:
        entry["early_exit"] = evaluate_early_exit(predictions.log_probs_MEC, predictions.labels, early_exit)
    unlike = {name: _predict(pipeline, found, f"ood_{name}", callback) for name, found in far.items()}
    entry["ood"] = {name: ood_scores(predictions, found) for name, found in unlike.items()}
    if closed is not None:
        raise UnsavedEvaluationError(closed, entry)
    if save:
        made = [predictions, *unlike.values(), *(() if validation is None else (validation,))]
        _save(trained, before, entry, made, baselines)
    return entry


class UnsavedEvaluationError(CheckpointError):
    """An evaluation that was computed and cannot be written; `entry` is what would have been."""

    def __init__(self, reason: str, entry: dict[str, Any]) -> None:
        super().__init__(f"{reason} The evaluation was not saved.")
        self.entry = entry


def _save(
    trained: Ensemble,
    before: Sequence[dict[str, Any]],
    entry: dict[str, Any],
    predictions: Sequence[Predictions],
    baselines: Mapping[str, Predictions],
) -> None:
    """Write predictions and `metrics.json`.

    Raises:
        UnsavedEvaluationError: they cannot be written.
    """
    others = [e for e in before if (e["task"], e["split"]) != (entry["task"], entry["split"])]
    try:
        save_all(trained.run, predictions, baselines)
        trained.run.write_evaluations([*others, entry], trained.record.cost)
    except CheckpointError as error:
        raise UnsavedEvaluationError(str(error), entry) from error


def _own_rows(trained: Ensemble, config: DataConfig, *, needed: bool) -> tuple[RunRows | None, str]:
    """The run's own rows, or None and why they are not at hand, where they can be done without."""
    try:
        return own_rows(trained, config), ""
    except (ConfigError, DataError) as error:
        if needed:
            raise
        return None, str(error)


def _validation(trained: Ensemble, rows: RunRows | None, callback: Callback) -> Predictions | None:
    """The members' predictions of validation rows: made now, or those that the run has saved."""
    if rows is not None:
        return _predict(trained.pipeline, rows.task.splits["val"], "val", callback)
    saved = saved_validation(trained)
    if saved is None:
        text = "best member and temperatures are left out: the run has no saved predictions of validation rows"
    else:
        text = "best member and temperatures are chosen on the predictions of validation rows that the run has saved"
    logger.info(text)
    return saved


def _rows_to_evaluate(
    trained: Ensemble,
    rows: RunRows | None,
    config: DataConfig,
    data: str | Path | None,
    task: str | None,
    split: str,
) -> tuple[Pipeline, str, Sequence[Example]]:
    """The session whose task the rows are of, the name of their split, and the rows."""
    if data is not None:
        if task is not None:
            raise ConfigError(f"--task {task} and --data {data}: give the name of a task or a file, not both")
        stem = name_of_file(data)
        # A file called test.csv is not the run's test split.
        name = f"file_{stem}" if stem in FILES else stem
        return trained.pipeline, name, trained.read(data, require_answer=True)
    if task is not None and task != config.task:
        examples = read_named(task, split, config, trained.labels)
        if task == trained.record.task:
            message = f"--task {task}: the run's own rows, from a file, are filed under that name"
            raise ConfigError(f"{message}; rename the file and train again, or give the task's rows with --data")
        return dataclasses.replace(trained.pipeline, task=task), split, examples
    assert rows is not None  # the run's own were needed
    if split not in rows.task.splits:
        raise ConfigError(f"--split {split}: no such split; {did_you_mean(split, rows.task.splits)}")
    return trained.pipeline, split, rows.task.splits[split]


def _predict(pipeline: Pipeline, examples: Sequence[Example], split: str, callback: Callback) -> Predictions:
    return pipeline.predict_members(examples, split, progress(callback, f"ensemble on {split}", len(examples)))


def _members_and_base(
    pipeline: Pipeline, examples: Sequence[Example], split: str, callback: Callback
) -> tuple[Predictions, Predictions]:
    """Predictions of the members and of the base, which shares the members' pass over the layers below them."""
    passes = [*member_passes(range(pipeline.model.num_members)), MemberPass(BASE)]
    found = pipeline.predict(
        examples, passes, split, progress=progress(callback, f"ensemble and base on {split}", len(examples))
    )
    members, base = (found.log_probs_MEC[part] for part in (slice(-1), slice(-1, None)))
    return dataclasses.replace(found, log_probs_MEC=members), dataclasses.replace(found, log_probs_MEC=base)


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


def own_rows(trained: Ensemble, config: DataConfig) -> RunRows:
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
        rows = _with_saved_ids(rows, trained.run)
    check_unchanged(rows, trained.run.splits)
    return rows


def _with_saved_ids(rows: RunRows, run: Run) -> RunRows:
    """The rows with the ids of the training: ids that are made of the file's name change with it."""
    saved_ids, splits = read_ids(run.splits), dict(rows.task.splits)
    for split, examples in rows.task.splits.items():
        ids = saved_ids.get(split, [])
        if len(ids) == len(examples) and [row.id for row in examples] != ids:
            renamed = tuple(dataclasses.replace(row, id=name) for row, name in zip(examples, ids, strict=True))
            if split_digest(renamed) == read_digests(run.splits, [split])[split]:
                splits[split] = renamed
    return dataclasses.replace(rows, task=dataclasses.replace(rows.task, splits=splits))


def saved_validation(trained: Ensemble) -> Predictions | None:
    """The members' predictions of the run's validation rows, if an earlier evaluation has saved them."""
    try:
        predictions = trained.run.load_predictions(trained.record.task, "val")
        ids = read_ids(trained.run.splits)["val"]
    except (CheckpointError, LookupError):
        return None
    fits = predictions.num_members == len(trained.members) and list(predictions.ids) == ids
    return predictions if fits and (predictions.labels >= 0).all() else None
