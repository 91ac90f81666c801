"""Evaluate a finished run: the ensemble beside what one would use without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorchestra.core.early_exit import ExitRule, evaluate_early_exit
from lorchestra.core.evaluation import ood_scores
from lorchestra.core.layout import BASE
from lorchestra.data.config import DataConfig
from lorchestra.engine.predict import Pass, member_passes
from lorchestra.engine.session import Session
from lorchestra.errors import ConfigError, did_you_mean
from lorchestra.experiments.beside import Progress, comparable, few_shot_base, mc_dropout_of, save_all, score
from lorchestra.experiments.load import TrainedEnsemble
from lorchestra.experiments.rows import (
    RunRows,
    check_unchanged,
    name_of_file,
    read_named,
    read_ood,
    read_rows,
    with_directory,
)
from lorchestra.store.atomic import atomic_write_json
from lorchestra.store.evaluations import read_names
from lorchestra.store.predictions import save_predictions
from lorchestra.types import Example, Predictions


def evaluate_run(
    trained: TrainedEnsemble,
    *,
    data: str | Path | None = None,
    task: str | None = None,
    split: str = "test",
    ood: Sequence[str | Path] = (),
    data_dir: str | None = None,
    early_exit: ExitRule | None = None,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Evaluate on the run's own rows, another file or another task; saves predictions and `metrics.json`.

    An entry is filed under the task of its rows: the run's own, also for a file with rows of it, or the one named.

    Args:
        trained: the run.
        data: a file with labelled rows; without it, the rows of `split`.
        task: a task by name; without it, the run's own.
        split: train, val or test; with `data`, without meaning.
        ood: files or tasks by name with rows unlike the training rows; their labels are ignored.
        data_dir: the directory with data sets, in place of the one the run was trained with.
        early_exit: also say, under "early_exit", what stopping by this rule would save and change.
        progress: called with what is being computed, rows done and rows in all.

    Returns:
        The entry written into `metrics.json`.

    Raises:
        ConfigError: an unknown split or task, a task and a file, or a run of rows that came from Python.
        DataError: the rows cannot be used, or have changed since the run.
    """
    before = read_names(trained.run)  # before anything is computed, since a damaged file ends it all
    config = with_directory(trained.config.data, data_dir)
    if config.train is None and config.task is None:
        raise ConfigError(
            f"{trained.run.root}: trained on rows that came from Python and were not kept; evaluate it there, by the"
            " classifier's score or from its predictions"
        )
    rows = read_rows(config, trained.config.train.seed)
    check_unchanged(rows, trained.run.splits)
    far = read_ood(ood, config, trained.labels)
    session, split, examples = _rows_to_evaluate(trained, rows, config, data, task, split)
    for kept in (f"{split}.base_few_shot", *(f"ood_{name}" for name in far)):
        trained.run.prediction(session.task, kept)  # refuses names that are too long, and links, before any work
    is_validation = session is trained.session and data is None and split == "val"
    predictions, zero_shot = _members_and_base(session, examples, split, progress)
    validation = predictions if is_validation else _predict(trained.session, rows.task.splits["val"], "val", progress)
    splits, own = rows.task.splits, trained.config
    candidates: dict[str, Predictions | str] = {
        "base_zero_shot": zero_shot,
        **few_shot_base(session, own, examples, split, splits["train"], progress),
        **mc_dropout_of(session, own, examples, split, progress, passes=session.model.num_members),
    }
    baselines, left_out = comparable(candidates, predictions, session)
    for name, reason in left_out.items():
        session.say(f"{name} is left out: {reason}")
    entry = score(predictions, validation, baselines, left_out, examples, splits, own.evaluate, own.train.seed)
    if early_exit is not None:
        entry["early_exit"] = evaluate_early_exit(predictions.log_probs_MEC, predictions.labels, early_exit)
    folder = trained.run.predictions
    save_all(folder, (predictions, validation), baselines)
    entry["ood"] = {}
    for name, unlike in far.items():
        found = _predict(session, unlike, f"ood_{name}", progress)
        save_predictions(folder, found)
        entry["ood"][name] = ood_scores(predictions, found)
    others = [e for e in before if (e["task"], e["split"]) != (entry["task"], entry["split"])]
    metrics = {"evaluations": [*others, entry], "cost": trained.record.get("cost")}
    atomic_write_json(trained.run.metrics, metrics)
    return entry


def _rows_to_evaluate(
    trained: TrainedEnsemble, rows: RunRows, config: DataConfig, data: str | Path | None, task: str | None, split: str
) -> tuple[Session, str, Sequence[Example]]:
    """The session whose task the rows are of, the name of their split, and the rows."""
    if data is not None:
        if task is not None:
            raise ConfigError(f"--task {task} and --data {data}: give the name of a task or a file, not both")
        stem = name_of_file(data)
        # A file called test.csv is not the run's test split.
        name = f"file_{stem}" if stem in rows.task.splits else stem
        return trained.session, name, trained.read(data, require_answer=True)
    if task is not None and task != config.task:
        examples = read_named(task, split, config, trained.labels)
        if task == rows.task.name:
            message = f"--task {task}: the run's own rows, from a file, are filed under that name"
            raise ConfigError(f"{message}; rename the file and train again, or give the task's rows with --data")
        return dataclasses.replace(trained.session, task=task), split, examples
    if split not in rows.task.splits:
        raise ConfigError(f"--split {split}: no such split; {did_you_mean(split, rows.task.splits)}")
    return trained.session, split, rows.task.splits[split]


def _predict(session: Session, examples: Sequence[Example], split: str, progress: Progress) -> Predictions:
    def tell(done: int) -> None:
        progress(f"ensemble on {split}", done, len(examples))

    return session.predict_members(examples, split, tell)


def _members_and_base(
    session: Session, examples: Sequence[Example], split: str, progress: Progress
) -> tuple[Predictions, Predictions]:
    """Predictions of the members and of the base, which shares the members' pass over the layers below them."""
    passes = [*member_passes(range(session.model.num_members)), Pass(BASE)]
    found = session.predict(
        examples, passes, split, progress=lambda done: progress(f"ensemble and base on {split}", done, len(examples))
    )
    members, base = (found.log_probs_MEC[part] for part in (slice(-1), slice(-1, None)))
    return dataclasses.replace(found, log_probs_MEC=members), dataclasses.replace(found, log_probs_MEC=base)
