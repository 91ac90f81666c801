"""Distill an ensemble into one member that also predicts the ensemble's uncertainty: a run like any other.

The member learns the calibrated mixture on the ensemble's training rows and on further rows, whose answers are not
needed; a head on its hidden state learns the members' mutual information.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from lorchestra.config.adapt import AdaptConfig
from lorchestra.config.data import DataConfig
from lorchestra.config.distill import DistillConfig, check_distill, student_config
from lorchestra.config.mappings import differences
from lorchestra.config.run import RegularizeConfig, RunConfig, TrainConfig, check_run
from lorchestra.data.splits import content_digest, split_digest
from lorchestra.errors import CheckpointError, ConfigError, DataError
from lorchestra.inference.answer_states import predict_with_states
from lorchestra.inference.pipeline import Pipeline
from lorchestra.inference.predict import member_passes
from lorchestra.metrics.calibrator import Calibration
from lorchestra.metrics.information import InformationRows, fit_information
from lorchestra.metrics.predictive import FloatArray
from lorchestra.nn.seeding import derive_seed, permutation
from lorchestra.runs import arguments
from lorchestra.runs.build import describe, torch_threads
from lorchestra.runs.calibrate import rows_to_compare
from lorchestra.runs.calibration import finishing_progress
from lorchestra.runs.evaluate import FILES, with_files
from lorchestra.runs.loading import FinishedRun
from lorchestra.runs.rows import RunRows, absolute_settings, read_like, with_directory
from lorchestra.runs.teacher import Taught, teach
from lorchestra.runs.train import TrainingJob, saved_config, train_and_finish
from lorchestra.runs.training import prepare_training
from lorchestra.store.distill_record import DistillRecord, DistillResult, UnlabeledRecord
from lorchestra.store.information import write_information
from lorchestra.store.run import Run
from lorchestra.store.workspace import RUN, IfExists, Workspace
from lorchestra.training.callbacks import Callback, CallbackList
from lorchestra.training.objective import kl_divergence
from lorchestra.training.precompute import SoftTargets, TrainingRows
from lorchestra.types import Example, Task

logger = logging.getLogger(__name__)

MAX_HEAD_ROWS = 10_000
"""Most rows that the head is fitted on; of more, a random part."""


def distill_run(
    source: str | Path,
    out: str | Path,
    *,
    data: str | Path | None = None,
    distill: DistillConfig = DistillConfig(),  # noqa: B008 (immutable)
    adapt: AdaptConfig | None = None,
    train: TrainConfig | None = None,
    regularize: RegularizeConfig | None = None,
    if_exists: IfExists = "fail",
    rows: Task | None = None,
    files: Mapping[str, str | Path | None] = MappingProxyType({}),
    data_dir: str | None = None,
    base: str | Path | None = None,
    given: Collection[str] = (),
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Train one member on the calibrated mixture of a finished run, into the run directory `out`; returns the run.

    Args:
        source: the directory of the ensemble's run, on texts with labels or questions with choices.
        out: the run directory to make; `Ensemble.load` and all commands take it.
        data: a file with further rows of the same kind, which need no answers; those among the run's are left out.
        distill: what the member learns.
        adapt, train, regularize: the member's settings; by default those of `student_config`.
        if_exists: as in `Ensemble.train`; with "resume", everything must be as when the run was started.
        rows: the splits of a run that was trained on rows from Python.
        files: by "train", "val" and "test", where the training's files are now; their rows must be the same.
        data_dir: the directory with data sets, instead of the one the run was trained with.
        base: where the base is now, if it has moved.
        given: dotted settings that are compared with "resume" even if they have the default's value.
        callbacks: report progress; when one asks to stop, what is done so far is kept and `Interrupted` raised.

    Raises:
        ConfigError, DataError, CheckpointError: bad input, or another process is working in `out`.
        TrainingError: the member failed.
        Interrupted: a callback asked to stop.

    Source: Hinton et al., arXiv 1503.02531; for the uncertainty, Malinin et al., arXiv 1905.00076.
    """
    _check_arguments(source, out, data, rows, files, callbacks)
    ensemble = _ensemble(source)
    default = student_config(ensemble.config)
    default = dataclasses.replace(default, data=with_directory(with_files(default.data, files), data_dir))
    sections = {"adapt": adapt, "train": train, "regularize": regularize}
    config = _student(default, {name: one for name, one in sections.items() if one is not None})
    check_distill(distill)
    task = _task(ensemble, default.data, rows)
    more = () if data is None else _further_rows(ensemble, task, data)
    with Workspace.open(out, RUN, if_exists) as workspace:
        run, record = Run(workspace.root), _record(ensemble, task, data, more, distill)
        if workspace.resuming:
            record = _saved_record(run, record, given)
            config = saved_config(run, config, given, default)
        if run.is_finished:
            logger.info(f"{run.root} is finished already; nothing to train")
            return run
        with torch_threads(config.base.threads):
            job = _Distillation(run, ensemble, config, task, more, record, base, callbacks)
            return job.finish(workspace, finish=if_exists == "finish")


@dataclass(frozen=True)
class _Distillation:
    """A distillation that is ready to start.

    Attributes:
        run: the run to make.
        ensemble: the run that teaches.
        config: settings of the member.
        task: the ensemble's rows, which are also those of the run.
        more: further rows to learn from.
        record: where the run comes from.
        base: where the base is now, if it has moved.
        callbacks: report progress.
    """

    run: Run
    ensemble: FinishedRun
    config: RunConfig
    task: Task
    more: tuple[Example, ...]
    record: DistillRecord
    base: str | Path | None
    callbacks: Sequence[Callback]

    @property
    def learned(self) -> tuple[Example, ...]:
        """All rows that the member learns from."""
        return (*self.task.splits["train"], *self.more)

    def finish(self, workspace: Workspace, *, finish: bool) -> Run:
        """Start or resume the run, ask the ensemble, train the member, fit the head."""
        if not workspace.resuming:
            pipeline, resolved, _ = self._prepare()  # settings that do not fit the base are refused before any work
            with workspace.create() as directory:
                run = Run(directory)
                run.write_distillation(self.record)
                describe(run, resolved, RunRows(self.task, ()), pipeline)
            del pipeline  # frees the base: the ensemble is loaded on another
        val = self.task.splits["val"]
        taught = teach(
            self.run.resume,
            (*self.learned, *val),
            self.record.ensemble + self.record.calibration,
            self._load_ensemble,
            CallbackList(self.callbacks),
        )
        pipeline, resolved, training = self._prepare()
        log_probs_EC, _ = taught.of(_kept(pipeline, self.learned))
        targets = SoftTargets(
            torch.from_numpy(log_probs_EC), self.record.distill.direction, self.record.distill.answers_weight
        )
        training = dataclasses.replace(training, targets=targets)
        job = TrainingJob(
            self.run,
            pipeline,
            resolved,
            RunRows(self.task, ()),
            training,
            self.callbacks,
            predicts=lambda: self._fit_head(pipeline, taught),
        )
        return train_and_finish(job, resuming=workspace.resuming, finish=finish).run

    def _prepare(self) -> tuple[Pipeline, RunConfig, TrainingRows]:
        config, base = self.config, self.config.base
        if self.base is not None:
            base = dataclasses.replace(base, name=str(self.base), revision=None)
        config = absolute_settings(dataclasses.replace(config, base=base))
        task = dataclasses.replace(self.task, splits={"train": self.learned, "val": self.task.splits["val"]})
        return prepare_training(config, RunRows(task, ()))

    def _load_ensemble(self) -> tuple[Pipeline, Calibration | None]:
        pipeline = self.ensemble.load(self.base)
        return pipeline, _calibration(self.ensemble)

    def _fit_head(self, pipeline: Pipeline, taught: Taught) -> str:
        """Fit the head that predicts mutual information, and write it with the result; returns its checksum."""
        callback = CallbackList(self.callbacks)
        order = permutation(len(self.learned), derive_seed(self.config.train.seed, "information"))[:MAX_HEAD_ROWS]
        learned = [self.learned[index] for index in sorted(order)]
        fitted = _information_rows(pipeline, learned, taught, callback)[0]
        val, val_log_probs_EC = _information_rows(pipeline, self.task.splits["val"], taught, callback)
        try:
            fit = fit_information(fitted, val)
        except ValueError as error:
            raise DataError(f"the head that predicts mutual information cannot be fitted: {error}") from error
        divergence = kl_divergence(torch.from_numpy(val_log_probs_EC), torch.from_numpy(val.log_probs_EC)).mean()
        result = DistillResult(float(divergence), fit.strength, fit.num_rows, fit.correlation, fit.r_squared)
        self.run.write_distillation(dataclasses.replace(self.record, result=result))
        logger.info(result.sentence())
        return write_information(self.run.information, fit.head)


def _information_rows(
    pipeline: Pipeline, rows: Sequence[Example], taught: Taught, callback: Callback
) -> tuple[InformationRows, FloatArray]:
    """The member's outputs for rows with the ensemble's mutual information, and the ensemble's log-probabilities."""
    kept = _kept(pipeline, rows)
    encoded = pipeline.encode(kept).rows
    report = finishing_progress(callback, "states for mutual information", len(encoded))
    (log_probs_EC,), (states_ED,) = predict_with_states(
        pipeline.model, encoded, member_passes([0]), pipeline.token_budget, report
    )
    ensemble_EC, information_E = taught.of(kept)
    return InformationRows(states_ED, log_probs_EC, information_E), ensemble_EC[:, : log_probs_EC.shape[1]]


def _kept(pipeline: Pipeline, rows: Sequence[Example]) -> list[Example]:
    """The rows that are not dropped for their length."""
    return [rows[index] for index in pipeline.kept(rows)]


def _calibration(ensemble: FinishedRun) -> Calibration | None:
    record = ensemble.run.read_calibration(ensemble.record)
    return None if record is None else record.calibration


def _check_arguments(
    source: object,
    out: object,
    data: object,
    rows: Task | None,
    files: Mapping[str, str | Path | None],
    callbacks: Sequence[Callback],
) -> None:
    arguments.check_path("source", source)
    arguments.check_path("out", out)
    if data is not None:
        arguments.check_path("data", data)
    if rows is not None:
        arguments.check_task("rows", rows)
    arguments.check_files("files", files, FILES)
    arguments.check_callbacks(callbacks)


def _ensemble(source: str | Path) -> FinishedRun:
    """The run to learn from.

    Raises:
        ConfigError: one member cannot stand for it: it has typed questions, or fewer than two members.
    """
    ensemble = FinishedRun.read(source)
    record, root = ensemble.record, ensemble.run.root
    if record.questions:
        raise ConfigError(
            f"{root}: answers typed questions, whose mutual information differs between questions, and a head for each"
            " is not available; distill a run on texts with labels or on questions with choices"
        )
    if len(record.good_members) < 2:
        raise ConfigError(f"{root}: has one member; there is no ensemble to distill: use the run as it is")
    return ensemble


def _student(default: RunConfig, sections: Mapping[str, AdaptConfig | TrainConfig | RegularizeConfig]) -> RunConfig:
    """The settings of the member, with the given sections.

    Raises:
        ConfigError: a setting that a member which learns from an ensemble cannot have: names the field and its value.
    """
    config = dataclasses.replace(default, **sections)  # type: ignore[arg-type]
    check_run(config)
    if config.adapt.members != 1:
        raise ConfigError(
            f"adapt.members: {config.adapt.members}, but an ensemble is distilled into one member; give 1"
        )
    if config.adapt.order not in ("own", "same"):
        raise ConfigError(f"adapt.order: {config.adapt.order} makes members differ, and there is one; leave it out")
    if config.train.is_auto:
        name = "lr" if config.train.lr == "auto" else "epochs"
        example = "1e-3" if name == "lr" else "4"
        raise ConfigError(f"train.{name}: auto is not searched here; give a number: --train.{name} {example}")
    if config.train.seed != default.train.seed:
        raise ConfigError(
            f"train.seed: {config.train.seed}, but the ensemble's, {default.train.seed}, decides which rows are held"
            " out; leave it out"
        )
    if config.regularize.label_smoothing:
        raise ConfigError(
            f"regularize.label_smoothing: {config.regularize.label_smoothing:g} smooths answers, and the member learns"
            " the ensemble's probabilities; leave it out"
        )
    return config


def _task(ensemble: FinishedRun, config: DataConfig, rows: Task | None) -> Task:
    """The ensemble's rows, verified to be unchanged.

    Raises:
        ConfigError: they came from Python and are not given.
        DataError: they cannot be read, or have changed.
    """
    if rows is None and config.train is None and config.task is None:
        raise ConfigError(
            f"{ensemble.run.root}: trained on rows that came from Python and were not saved; distill it in Python:"
            " distill_run(..., rows=TASK)"
        )
    return rows_to_compare(ensemble, config, rows).task


def _further_rows(ensemble: FinishedRun, task: Task, data: str | Path) -> tuple[Example, ...]:
    """The rows of a file that are not among the run's, each once.

    Rows of the run's other splits must not be learned from: they choose the kept adapters, and measure them.

    Raises:
        DataError: the rows cannot be read, have other labels, or are all among the run's.
    """
    examples = read_like(data, ensemble.config.data, ensemble.record.labels, require_answer=False).examples
    known = {content_digest(row) for split in task.splits.values() for row in split}
    new: dict[str, Example] = {}
    for row in examples:
        new.setdefault(content_digest(row), row)
    repeated = len(examples) - len(new)
    new = {digest: row for digest, row in new.items() if digest not in known}
    if not new:
        raise DataError(f"{data}: all {len(examples)} rows are among those of {ensemble.run.root}; give other rows")
    if left_out := len(examples) - len(new):
        logger.info(
            f"{data}: {left_out} of {len(examples)} rows are left out: {left_out - repeated} are among the run's rows,"
            f" {repeated} repeat another"
        )
    return tuple(new.values())


def _record(
    ensemble: FinishedRun, task: Task, data: str | Path | None, more: Sequence[Example], distill: DistillConfig
) -> DistillRecord:
    calibration = _calibration(ensemble)
    parameters = json.dumps(None if calibration is None else calibration.to_dict(), sort_keys=True)
    unlabeled = None
    if data is not None:
        unlabeled = UnlabeledRecord(Path(data).name, split_digest(more), tuple(map(content_digest, more)))
    return DistillRecord(
        source=str(ensemble.run.root.absolute()),
        ensemble=ensemble.record.digest,
        calibration=hashlib.sha256(parameters.encode("ascii")).hexdigest(),
        num_members=len(ensemble.record.good_members),
        distill=distill,
        num_train=len(task.splits["train"]),
        unlabeled=unlabeled,
    )


def _saved_record(run: Run, requested: DistillRecord, given: Collection[str]) -> DistillRecord:
    """The record of the run to resume; refuses another ensemble, other rows, or other settings.

    Raises:
        ConfigError, CheckpointError: names what differs.
    """
    saved = run.read_distillation()
    if saved is None:
        raise CheckpointError(f"--out {run.root}: is a run that was not distilled; choose another name")
    again = "a resumed run keeps what it was started with, or start another one with --if-exists new"
    for name, what in (("ensemble", "ensemble"), ("calibration", "calibration of the ensemble")):
        if getattr(saved, name) != getattr(requested, name):
            raise ConfigError(f"{run.root}: was started with another {what} than {requested.source} has now; {again}")
    digests = [None if one.unlabeled is None else one.unlabeled.digest for one in (saved, requested)]
    if digests[0] != digests[1]:
        started = "no further rows" if saved.unlabeled is None else f"the rows of {saved.unlabeled.source}"
        raise ConfigError(f"--data: {run.root} was started with {started}, and the file has others; {again}")
    explicit = {*given, *(f"distill.{name}" for name in differences(requested.distill, DistillConfig()))}
    for name, (value, before) in differences(requested.distill, saved.distill).items():
        if f"distill.{name}" in explicit:
            raise ConfigError(f"distill.{name}: the run in {run.root} has {before!r}, not {value!r}; {again}")
    return dataclasses.replace(saved, source=requested.source)
