"""Evaluate a finished run: the ensemble and the baselines that one would use without it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from lorchestra.config.data import DataConfig
from lorchestra.data.splits import split_digest
from lorchestra.errors import CheckpointError, ConfigError, DataError, did_you_mean
from lorchestra.inference.option_orders import OrderFlips
from lorchestra.inference.pipeline import Pipeline
from lorchestra.inference.predict import MemberPass, member_passes
from lorchestra.metrics.by_question import RowCalibration
from lorchestra.metrics.calibrator import RAW, Calibration
from lorchestra.metrics.early_exit import ExitRule, evaluate_early_exit
from lorchestra.metrics.evaluation import ood_scores
from lorchestra.metrics.predictive import FloatArray
from lorchestra.nn.packing import BASE
from lorchestra.runs.baselines import (
    Baseline,
    Candidates,
    comparable,
    earlier_baseline,
    few_shot_base,
    left_out_lines,
    linear_baselines,
    mc_dropout_of,
    save_all,
    score,
)
from lorchestra.runs.distance import distances_to_training
from lorchestra.runs.evaluation_cost import CostLimit, num_tokens, top_share
from lorchestra.runs.loading import FinishedRun
from lorchestra.runs.rows import RunRows, check_unchanged, name_of_file, read_named, read_ood, read_rows, with_directory
from lorchestra.store.evaluations import Entry
from lorchestra.store.run import Run
from lorchestra.store.splits import read_digests, read_ids
from lorchestra.training.callbacks import Callback, CallbackList, progress
from lorchestra.types import Example, Json, Predictions

if TYPE_CHECKING:
    from lorchestra.runs.ensemble import Ensemble

logger = logging.getLogger(__name__)

FILES = ("train", "val", "test")


class UnsavedEvaluationError(CheckpointError):
    """An evaluation that was computed but cannot be written; `entry` is its result."""

    def __init__(self, reason: str, entry: Entry) -> None:
        super().__init__(f"{reason} The evaluation was not saved.")
        self.entry = entry


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
    full: bool = False,
    raw: bool = False,
    save: bool = True,
    callbacks: Sequence[Callback] = (),
) -> Entry:
    """What `Ensemble.evaluate` does; returns the entry of `metrics.json`."""
    callback = CallbackList(callbacks)
    if early_exit is not None and not raw:
        for one in (trained.calibration, *trained.calibrations.values()):
            early_exit.check_calibration(one)
    before = trained.run.read_named_evaluations()  # a damaged file is reported before anything is computed
    read_only = trained.run.why_read_only() if save else None
    if read_only is not None:
        logger.warning(f"{read_only} The evaluation will be shown, and not saved.")
    config = with_directory(with_files(trained.config.data, files), data_dir)
    rows, reason = _rows_if_available(trained, config, required=data is None and (task is None or task == config.task))
    ood_rows = read_ood(ood, config, trained.labels, trained.record.questions)
    pipeline, split, examples = _rows_to_evaluate(trained, rows, config, data, task, split)
    for name in (f"{split}.base_zero_shot", *(f"ood_{name}" for name in ood_rows)):
        trained.run.prediction(pipeline.task, name)  # refuses names that are too long, and links, before any work
    if rows is None:
        logger.info(f"evaluating without the run's training rows, and so without the majority answer ({reason})")
    limit = CostLimit.of(pipeline, trained.record.cost, full=full or trained.config.evaluate.full)
    pipeline.order_flips = OrderFlips()
    predictions, zero_shot = _members_and_base(pipeline, examples, split, callback, limit)
    flips = pipeline.order_flips.sentence()
    calibration = _calibration(trained, predictions, raw)
    is_validation = pipeline is trained.pipeline and data is None and split == "val"
    validation = predictions if is_validation else _validation(trained, rows, callback)
    work = _Work(trained, pipeline, rows, examples, before, limit, callback, calibration)
    entry, baselines = _score(work, predictions, zero_shot, validation)
    entry["notes"] += [] if flips is None else [f"{flips}."]
    if early_exit is not None:
        log_probs_MEC = predictions.log_probs_MEC
        entry["early_exit"] = evaluate_early_exit(log_probs_MEC, predictions.labels, early_exit, calibration)
    ood_predictions = {name: _predict(pipeline, some, f"ood_{name}", callback) for name, some in ood_rows.items()}
    distances = work.distances(ood_rows)
    entry["ood"] = {
        name: ood_scores(predictions, some, calibration, distances.get(name), _calibration(trained, some, raw))
        for name, some in ood_predictions.items()
    }
    if read_only is not None:
        raise UnsavedEvaluationError(read_only, entry)
    if save:
        every = [predictions, *ood_predictions.values(), *(() if validation is None else (validation,))]
        _save(trained, before, entry, every, baselines)
    return entry


def _calibration(trained: Ensemble, predictions: Predictions, raw: bool) -> Calibration | RowCalibration:
    """The calibration of the rows' mixture: the run's, or by typed question."""
    if raw:
        return RAW
    return RowCalibration(trained.calibrations, predictions.questions) if predictions.questions else trained.calibration


@dataclass(frozen=True)
class _Work:
    """What the baselines and the scores of an evaluation need."""

    trained: Ensemble
    pipeline: Pipeline
    rows: RunRows | None
    examples: Sequence[Example]
    before: Sequence[Entry]
    limit: CostLimit
    callback: Callback
    calibration: Calibration | RowCalibration

    def baselines(self, predictions: Predictions) -> Candidates:
        """All baselines but the zero-shot base, or why they are missing."""
        pipeline, config, examples = self.pipeline, self.trained.config, self.examples
        split, callback, task = predictions.split, self.callback, None if self.rows is None else self.rows.task
        train = None if task is None else task.splits["train"]
        few = few_shot_base(pipeline, config, examples, split, train, callback, self.limit)
        linear = linear_baselines(
            pipeline,
            config,
            task,
            examples,
            split,
            callback,
            has_labels=self.trained.labels is not None or bool(self.trained.record.questions),
            earlier=lambda name: earlier_baseline(self.trained.run, self.before, predictions, name),
        )
        dropout = mc_dropout_of(pipeline, config, examples, split, callback, passes=pipeline.model.num_members)
        return {**few, **linear, **dropout}

    def distances(self, ood: Mapping[str, Sequence[Example]]) -> dict[str, tuple[FloatArray, FloatArray]]:
        """Distances from the training rows, where these are available; see `distances_to_training`."""
        if self.rows is None:
            return {}
        seed = self.trained.config.train.seed
        train = self.rows.task.splits["train"]
        return distances_to_training(self.pipeline, train, self.examples, ood, seed, self.callback)


def _score(
    work: _Work, predictions: Predictions, zero_shot: Baseline | str, validation: Predictions | None
) -> tuple[Entry, dict[str, Baseline]]:
    """The entry without early exit and OOD rows, and its baselines."""
    candidates: Candidates = {"base_zero_shot": zero_shot, **work.baselines(predictions)}
    baselines, left_out = comparable(candidates, predictions, work.pipeline)
    for line in left_out_lines(left_out):
        logger.info(line)
    splits = {} if work.rows is None else work.rows.task.splits
    config, calibration = work.trained.config, work.calibration
    questions = work.trained.record.questions
    entry = score(predictions, validation, baselines, left_out, work.examples, splits, config, calibration, questions)
    return entry, baselines


def _save(
    trained: Ensemble,
    before: Sequence[Entry],
    entry: Entry,
    predictions: Sequence[Predictions],
    baselines: Mapping[str, Baseline],
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


def _rows_if_available(trained: Ensemble, config: DataConfig, *, required: bool) -> tuple[RunRows | None, str]:
    """The rows of the run's training; None and the reason if they cannot be read and are not required."""
    try:
        return rows_of_run(trained, config), ""
    except (ConfigError, DataError) as error:
        if required:
            raise
        return None, str(error)


def _validation(trained: Ensemble, rows: RunRows | None, callback: Callback) -> Predictions | None:
    """The members' predictions of validation rows: made now, or saved earlier."""
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
    """The pipeline with the rows' task, the name of their split, and the rows."""
    if data is not None:
        if task is not None:
            raise ConfigError(f"--task {task} and --data {data}: give the name of a task or a file, not both")
        stem = name_of_file(data)
        # a file called test.csv is not the run's test split
        name = f"file_{stem}" if stem in FILES else stem
        return trained.pipeline, name, trained.read(data, require_answer=True)
    if task is not None and task != config.task:
        examples = read_named(task, split, config, trained.labels, trained.record.questions)
        if task == trained.record.task:
            raise ConfigError(
                f"--task {task}: results on the run's rows, from a file, have that name; rename the file and train"
                " again, or give the task's rows with --data"
            )
        return dataclasses.replace(trained.pipeline, task=task), split, examples
    assert rows is not None  # they were required
    if split not in rows.task.splits:
        raise ConfigError(f"--split {split}: no such split; {did_you_mean(split, rows.task.splits)}")
    return trained.pipeline, split, rows.task.splits[split]


def _predict(pipeline: Pipeline, examples: Sequence[Example], split: str, callback: Callback) -> Predictions:
    return pipeline.predict_members(examples, split, progress(callback, f"ensemble on {split}", len(examples)))


def _members_and_base(
    pipeline: Pipeline, examples: Sequence[Example], split: str, callback: Callback, limit: CostLimit
) -> tuple[Predictions, Baseline | str]:
    """Predictions of the members, and of the base, which shares their pass through the layers below the adapters.

    The base is left out, with the reason, where its part of the pass would cost more than `limit` admits.
    """
    passes, reason = member_passes(range(pipeline.model.num_members)), None
    if limit.train_s is not None:
        reason = limit.reason("base_zero_shot", top_share(pipeline) * num_tokens(pipeline.encode(examples).rows))
    if reason is not None:
        return _predict(pipeline, examples, split, callback), reason
    report = progress(callback, f"ensemble and base on {split}", len(examples))
    every = pipeline.predict(examples, [*passes, MemberPass(BASE)], split, progress=report)
    members, base = (every.log_probs_MEC[part] for part in (slice(-1), slice(-1, None)))
    return (
        dataclasses.replace(every, log_probs_MEC=members),
        Baseline(dataclasses.replace(every, log_probs_MEC=base, predicted_information=None)),
    )


def with_files(config: DataConfig, files: Mapping[str, str | Path | None]) -> DataConfig:
    """A saved configuration with other paths of the training's files.

    Raises:
        ConfigError: the run was trained on a task by name.
    """
    given: Json = {split: str(path) for split, path in files.items() if path is not None}
    if given and config.task is not None:
        raise ConfigError(
            f"--data.{next(iter(given))}: the run was trained on the task {config.task}, which is read by its name; if"
            " its rows have moved, give --data-dir"
        )
    return dataclasses.replace(config, **given)


_WITHOUT_ROWS = "; to evaluate on other labelled rows without it, --data FILE"


def rows_of_run(trained: Ensemble | FinishedRun, config: DataConfig, otherwise: str = _WITHOUT_ROWS) -> RunRows:
    """The rows of the run's training, verified to be unchanged.

    Args:
        trained: the run.
        config: its data settings, with the paths of now (see `with_files`).
        otherwise: the end of the message about a missing file: what can be done without it.

    Raises:
        ConfigError: the rows came from Python and were not saved.
        DataError: the rows cannot be read, or have changed; the message names a remedy.
    """
    if config.train is None and config.task is None:
        raise ConfigError(
            f"{trained.run.root}: trained on rows that came from Python and were not saved; give labelled rows with"
            " --data, or evaluate it in Python, by the classifier's score or from its predictions"
        )
    try:
        rows = read_rows(config, trained.config.train.seed, trained.record.questions)
    except DataError as error:
        if config.task is not None:
            raise
        missing = [split for split in FILES if (path := getattr(config, split)) and not Path(path).exists()]
        if not missing:
            raise
        options = " ".join(f"--data.{split} FILE" for split in missing)
        raise DataError(f"{error}; if it was moved or renamed, give it with {options}{otherwise}") from error
    if config.task is None:
        rows = _with_saved_ids(rows, trained.run)
    check_unchanged(rows, trained.run.splits)
    return rows


def _with_saved_ids(rows: RunRows, run: Run) -> RunRows:
    """The rows with the ids of the training: ids made from the file's name change when it is renamed."""
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
