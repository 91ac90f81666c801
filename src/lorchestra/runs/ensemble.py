"""An ensemble in Python: train one or load a finished run, then predict, evaluate, and use its members elsewhere."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Literal, cast

from lorchestra.config.adapt import BaseConfig
from lorchestra.config.data import DataConfig
from lorchestra.config.run import RunConfig, check_run
from lorchestra.data.chunks import full_chunks
from lorchestra.data.in_memory import entries_of, is_file
from lorchestra.data.input_rows import InputRow, input_rows, read_input_rows
from lorchestra.errors import ConfigError, DataError
from lorchestra.inference.option_orders import OrderFlips
from lorchestra.inference.pipeline import Pipeline, TooLong
from lorchestra.metrics.calibrator import Calibration
from lorchestra.metrics.conformal import Method
from lorchestra.metrics.decisions import Decisions, DecisionSettings, ScoreSetting
from lorchestra.metrics.early_exit import ExitRule
from lorchestra.metrics.monitoring import Monitoring
from lorchestra.metrics.result import Evaluation
from lorchestra.questions import Question
from lorchestra.runs import arguments
from lorchestra.runs.answer_options import AnswerOptions, options_of
from lorchestra.runs.ask import Asked, Asker
from lorchestra.runs.calibrate import calibrate_run
from lorchestra.runs.evaluate import FILES, evaluate_run
from lorchestra.runs.import_peft import BASE_OF_THE_FOLDERS, import_run
from lorchestra.runs.loading import load_pipeline
from lorchestra.runs.monitor import monitor_run
from lorchestra.runs.predict import Answer, AnswerCounts, Answers, answer_chunks, chunk_rows
from lorchestra.runs.rows import RunRows, read_like, validation_notes
from lorchestra.runs.train import train_run
from lorchestra.store.ensemble_record import EnsembleRecord
from lorchestra.store.run import Run
from lorchestra.store.workspace import IfExists
from lorchestra.training.callbacks import Callback
from lorchestra.training.module import EnsembleModule
from lorchestra.types import Example, Task

logger = logging.getLogger(__name__)

OnError = Literal["record", "fail"]


@dataclass
class Ensemble:
    """A finished run, ready to predict: base, members and prompt as they were trained.

    Failed members are left out: `pipeline` holds the others, in order, and `members` their indices in the run.
    """

    run: Run
    record: EnsembleRecord
    config: RunConfig
    pipeline: Pipeline
    members: tuple[int, ...]

    @classmethod
    def train(
        cls,
        config: RunConfig,
        out: str | Path,
        *,
        rows: Task | None = None,
        if_exists: IfExists = "fail",
        callbacks: Sequence[Callback] = (),
    ) -> Ensemble:
        """Train an ensemble into a run directory, and load it.

        Messages go to the logger `lorchestra`. `config.base.threads` holds for the training only.

        Args:
            config: the run's configuration; with "resume", settings must be those the run was started with.
            out: the run directory.
            rows: the splits "train" and "val", if they come from Python instead of the files in `config.data`.
            if_exists: what to do if a run exists there: "fail", "resume" it, "finish" it with the best adapters so far,
                or take a "new" name.
            callbacks: report progress; when one asks to stop, a checkpoint is written and `Interrupted` raised.

        Raises:
            ConfigError, DataError, CheckpointError: bad input, or another process is working in `out`; nothing
                half-written is left.
            TrainingError: every member failed.
            Interrupted: a callback asked to stop.
        """
        check_run(config)
        arguments.check_path("out", out)
        arguments.check_choice("if_exists", if_exists, IfExists)
        arguments.check_callbacks(callbacks)
        if rows is not None:
            arguments.check_task("rows", rows)
        run_rows = None if rows is None else RunRows(rows, tuple(validation_notes(rows)))
        outcome = train_run(config, out, rows=run_rows, if_exists=if_exists, callbacks=callbacks)
        return cls.load(outcome.run.root)

    @classmethod
    def load(cls, directory: str | Path, *, base: str | Path | None = None) -> Ensemble:
        """Load a finished run.

        Args:
            directory: the run directory.
            base: where the base is now (hub id, directory, .gguf file), if it has moved; its weights must be the same.

        Raises:
            CheckpointError: no finished run, damaged files, or the base is not the one the run was trained on.
        """
        arguments.check_path("directory", directory)
        run = Run.at(directory)
        record = run.read_ensemble()
        config = run.read_config()
        pipeline = load_pipeline(run, record, config, base)
        return cls(run, record, config, pipeline, record.good_members)

    @classmethod
    def from_peft(
        cls,
        folders: Sequence[str | Path],
        out: str | Path,
        *,
        data: DataConfig,
        base: BaseConfig = BASE_OF_THE_FOLDERS,
        same_base: bool = False,
        seed: int = 0,
    ) -> Ensemble:
        """Make a run directory of PEFT LoRA folders, which appears complete, and load it.

        Members may differ in rank, scaling and adapted modules.

        Args:
            folders: one per member; their weights are copied unchanged.
            out: the run directory to make.
            data: how questions are put to the model; its training rows give the labels and few-shot examples.
            base: the base; without a name, the one that the folders name.
            same_base: accept `base` although the folders name another.
            seed: decides which rows are held out for validation and test if no files are given.

        Raises:
            ConfigError, DataError, CheckpointError: a folder, a row or a setting cannot be used.
        """
        arguments.check_paths("folders", folders)
        arguments.check_path("out", out)
        run = import_run(folders, out, data=data, base=base, same_base=same_base, seed=seed)
        return cls.load(run.root)

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The label set in order; None if every question has its choices."""
        return self.record.labels

    @cached_property
    def calibration(self) -> Calibration:
        """How the mixture's probabilities are calibrated; of kind "none" in runs of earlier versions.

        A run on typed questions has one for each (`calibrations`).

        Raises:
            CheckpointError: `calibration.json` is damaged or was changed, or belongs to another ensemble.
        """
        record = self.run.read_calibration(self.record)
        return Calibration("none", "the run has no calibration.json") if record is None else record.calibration

    @cached_property
    def calibrations(self) -> dict[str, Calibration]:
        """How the probabilities of each typed question are calibrated, by its name; empty for other runs.

        Raises:
            CheckpointError: as `calibration`.
        """
        record = self.run.read_calibration(self.record) if self.record.questions else None
        return {} if record is None else record.calibrations

    @cached_property
    def decisions_by_question(self) -> dict[str, Decisions | None]:
        """`decisions` of each typed question, by its name; empty for other runs.

        Raises:
            CheckpointError: as `calibration`.
        """
        record = self.run.read_calibration(self.record) if self.record.questions else None
        saved = {} if record is None else {name: one.saved_decisions for name, one in record.questions.items()}
        return {name: None if one is None else one.decisions for name, one in saved.items()}

    @cached_property
    def decisions(self) -> Decisions | None:
        """How answers are decided: thresholds with their certificates, and prediction sets; None before `calibrate`.

        A run on typed questions has them by question (`decisions_by_question`).

        Raises:
            CheckpointError: as `calibration`.
        """
        record = self.run.read_calibration(self.record)
        saved = None if record is None else record.saved_decisions
        return None if saved is None else saved.decisions

    def predict(
        self,
        rows: object,
        abstain_below: float | None = None,
        early_exit: str | float | None = None,
        *,
        on_error: OnError = "record",
        too_long: TooLong | None = None,
        raw: bool = False,
        decisions: bool = True,
    ) -> Answers:
        """Answer rows, each as soon as its chunk is answered; memory does not grow with their number.

        Probabilities, and the entropy and abstention that follow from them, are those of the mixture after the run's
        `calibration`; the members' are never calibrated. Early exit decides by the mixture as it is.

        Iterate over the result, or take all at once as a table with `to_pandas`.

        Args:
            rows: texts (for a run on texts with labels), dicts, examples, a DataFrame, a Series or a Dataset; or a
                file's path.
            abstain_below: `Answer.abstain` is true if the calibrated confidence is below this, in [0, 1].
            early_exit: "exact" or a confidence in (0, 1]: members are asked until a row is decided (see `ExitRule`).
            on_error: what to do with a row that cannot be answered: "record" the reason in `Answer.error`, or "fail".
            too_long: what to do with a row over the maximum length: "error", "drop" (no answer) or "truncate" (cut the
                question); by default as in training.
            raw: answer with the mixture as it is, and without the run's decisions.
            decisions: decide by the run's certified threshold and prediction sets, if it has them.

        Raises:
            ConfigError: an option is none of these, `early_exit` is "exact" with a calibration that changes
                predictions, or an option contradicts the run's decisions.
            CheckpointError: see `calibration`.
            InputError: the Python object holds no rows.
            DataError: the file cannot be read, or no row has the required columns; while iterating, a row cannot be
                answered and `on_error` is "fail".
        """
        if abstain_below is not None:
            arguments.check_confidence("abstain_below", abstain_below)
        arguments.check_choice("on_error", on_error, OnError)
        if too_long is not None:
            arguments.check_choice("too_long", too_long, TooLong)
        rule = _exit_rule(early_exit)
        options = options_of(self, abstain_below, rule, too_long, raw=raw, decisions=decisions)
        return Answers(self._answers(input_rows_of(self, rows), options, on_error))

    def ask(self, states: Sequence[str], questions: Sequence[Question], *, raw: bool = False) -> list[list[Answer]]:
        """Answers to typed questions about each state, in their order: those of the run's training, and any others.

        Questions that the run was not trained on are answered by its members too, without calibration and decision;
        `Answer.trained` is then false.

        Args:
            states: texts.
            questions: asked about each of them.
            raw: answer with the mixture as it is, and without the run's decisions.

        Raises:
            DataError: a state with its question is longer than the run's prompts.
            CheckpointError: see `calibration`.
        """
        asker = Asker(self, raw=raw)
        asks = [asker.encode(Asked(state, question)) for state in states for question in questions]
        replies = iter(asker.answer(asks))
        return [[next(replies).answer for _ in questions] for _ in states]

    def _answers(self, rows: Iterator[InputRow], options: AnswerOptions, on_error: OnError) -> Iterator[Answer]:
        counts, self.pipeline.order_flips = AnswerCounts(), OrderFlips()
        for chunk in answer_chunks(self.pipeline, full_chunks(rows, chunk_rows(self.pipeline)), options):
            counts.add(chunk)
            for answer in chunk.answers:
                if on_error == "fail" and answer.error is not None:
                    raise DataError(answer.error)
                yield answer
        for sentence in counts.sentences(self.pipeline.max_length):
            logger.info(sentence)
        if (flips := self.pipeline.order_flips.sentence()) is not None:
            logger.info(flips)

    def evaluate(
        self,
        data: str | Path | None = None,
        *,
        task: str | None = None,
        split: str = "test",
        ood: Sequence[str | Path] = (),
        data_dir: str | None = None,
        files: Mapping[str, str | Path | None] = MappingProxyType({}),
        early_exit: str | float | None = None,
        full: bool = False,
        raw: bool = False,
        save: bool = True,
        callbacks: Sequence[Callback] = (),
    ) -> Evaluation:
        """Evaluate on the run's test rows, another file or another task; saves predictions and `metrics.json`.

        With `data` or `task` the run's rows are not required: the baselines that need training rows are then left out,
        and the best member and temperatures are chosen on saved predictions of validation rows, or left out too.
        An evaluation is saved under the task of its rows: the run's, also for a file with rows of it, or the named one.

        Args:
            data: a file with labelled rows; without it, the rows of `split`.
            task: a task by name; without it, the run's.
            split: train, val or test; ignored with `data`.
            ood: files or tasks by name with rows unlike the training rows; their labels are ignored.
            data_dir: the directory with data sets, instead of the one the run was trained with.
            files: by "train", "val" and "test", where the training's files are now; their rows must be the same.
            early_exit: also report what stopping early by this rule would save and change (see `predict`).
            full: include the zero-shot and few-shot base where one takes more than a quarter of the training's time.
            raw: evaluate the mixture as it is, without the run's calibration.
            save: whether to write the results.
            callbacks: report progress; when one asks to stop, `Interrupted` is raised.

        Raises:
            ConfigError: an unknown split or task, a task and a file, or the run's rows came from Python.
            DataError: the rows cannot be used, or have changed since the training.
            UnsavedEvaluationError: everything was computed, but cannot be written; its `entry` is the result.
        """
        if data is not None:
            arguments.check_path("data", data)
        arguments.check_paths("ood", ood)
        arguments.check_files("files", files, FILES)
        arguments.check_callbacks(callbacks)
        rule = _exit_rule(early_exit)
        entry = evaluate_run(
            self,
            data=data,
            task=task,
            split=split,
            ood=ood,
            data_dir=data_dir,
            files=files,
            early_exit=rule,
            full=full,
            raw=raw,
            save=save,
            callbacks=callbacks,
        )
        return Evaluation.from_dict(entry)

    def calibrate(
        self,
        data: str | Path | None = None,
        *,
        target_error: float = 0.05,
        confidence: float = 0.95,
        max_errors_per_1000: float | None = None,
        per_class: bool = False,
        score: ScoreSetting = "auto",
        sets: float | None = None,
        sets_method: Method = "lac",
        sets_by_class: bool = False,
        cascade: int | None = None,
        costs: str | Path | Mapping[str, object] | None = None,
        question: str | None = None,
        rows: Task | None = None,
        data_dir: str | None = None,
        files: Mapping[str, str | Path | None] = MappingProxyType({}),
        callbacks: Sequence[Callback] = (),
    ) -> Decisions:
        """Certify a threshold on labelled rows that the run has not used, and save it; `predict` then decides by it.

        With the given confidence over the draw of these rows, at most `target_error` of the automated rows are wrong;
        or there is no threshold, and a reason. It replaces earlier decisions of the run.

        Args:
            data: a file with labelled rows; without it, the run's test rows.
            target_error: highest error rate among automated rows, in (0, 1).
            confidence: probability of the guarantee, in (0, 1).
            max_errors_per_1000: in place of `target_error`: highest number of automated and wrong rows among 1,000.
            per_class: one threshold per predicted class; the guarantees hold together.
            score: by which rows are ranked; "auto" chooses on the validation rows.
            sets: coverage of prediction sets, in (0, 1); None for none.
            sets_method: "lac", "aps" or "raps".
            sets_by_class: the coverage holds for each class.
            cascade: so many members answer first, all members only the rows of which these are not sure.
            costs: a file or mapping with the cost of each confusion and of asking a person (see `config.costs`).
            question: the typed question to certify, of a run with some; guarantees of several do not hold together.
            rows: the splits of a run that was trained on rows from Python.
            data_dir, files: as in `evaluate`.
            callbacks: report progress; when one asks to stop, `Interrupted` is raised.

        Raises:
            ConfigError: an option is out of range, or options contradict each other.
            DataError: rows cannot be read, are too few, or are not new to the run.
            CheckpointError: as `calibration`, or the run cannot be written.
        """
        settings = DecisionSettings(
            target_error, confidence, max_errors_per_1000, per_class, score, sets, sets_method, sets_by_class, cascade
        )
        if data is not None:
            arguments.check_path("data", data)
        if rows is not None:
            arguments.check_task("rows", rows)
        arguments.check_files("files", files, FILES)
        arguments.check_callbacks(callbacks)
        decisions = calibrate_run(self, settings, data, costs, question, rows, data_dir, files, callbacks)
        for name in ("decisions", "decisions_by_question"):
            self.__dict__.pop(name, None)  # read again
        return decisions

    def monitor(
        self,
        rows: str | Path | Sequence[Example],
        *,
        false_alarm: float = 0.05,
        question: str | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Monitoring:
        """Compare new rows with those that certified the run's threshold: the guarantee holds for rows like these.

        The comparison is kept in the run's `monitor.json`. The more different rows have been compared, the stricter
        each comparison, so that a false alarm stays improbable over all of them.

        Args:
            rows: a file or examples, with or without labels, in the order in which they came.
            false_alarm: probability of any alarm although nothing has changed, in (0, 1).
            question: of a run with typed questions, the name of the one to compare.
            callbacks: report progress; when one asks to stop, `Interrupted` is raised.

        Raises:
            ConfigError: an option is out of range, or no rows have certified a threshold.
            DataError: rows cannot be read, or are too few.
            CheckpointError: the run's records are damaged, or cannot be written.
        """
        arguments.check_callbacks(callbacks)
        return monitor_run(self, rows, false_alarm, question, callbacks)

    def save_pretrained(self, directory: str | os.PathLike[str], members: Sequence[int] | None = None) -> None:
        """Write members as PEFT folders `member_00`, ... into a new directory, which appears complete.

        Args:
            directory: the directory to make.
            members: their indices in the run, in the order of the folders; by default all that did not fail.

        Raises:
            ConfigError: the run has no such member, or it failed.
            CheckpointError: the directory exists, or cannot be written.
        """
        if members is not None:
            arguments.check_distinct("members", members)
        for m in members or ():
            if m not in self.members:
                raise ConfigError(f"members: {m!r} is not one of {', '.join(map(str, self.members))}")
        indices = None if members is None else [self.members.index(m) for m in members]
        EnsembleModule(self.pipeline).save_pretrained(directory, indices)

    def as_module(self) -> EnsembleModule:
        """The members as a `torch.nn.Module`: differentiable, with the adapters as its parameters.

        Its `calibration` is the run's, which `mixture` applies.

        Raises:
            ConfigError: the run's members are mixed with a linear probe, which a module does not have.
        """
        if self.pipeline.linear_probe is not None:
            raise ConfigError(f"{self.run.root}: members are mixed with a linear probe, which a module does not have")
        return EnsembleModule(self.pipeline, self.calibration)

    def read(self, path: str | Path, *, require_answer: bool) -> tuple[Example, ...]:
        """Rows of a file, in the form the run was trained on."""
        record = self.record
        return read_like(
            path, self.config.data, record.labels, record.questions, require_answer=require_answer
        ).examples


def input_rows_of(ensemble: Ensemble, rows: object, data: DataConfig | None = None) -> Iterator[InputRow]:
    """Rows for an ensemble to answer, read lazily. A run on typed questions asks each of them about every row.

    Args:
        ensemble: a run on texts with labels, on questions with choices, or on typed questions.
        rows: a file's path; or rows in memory: texts (for a run on texts with labels or states), dicts, examples, a
            DataFrame, a Series or a Dataset (see `entries_of`).
        data: how files are read, and the names of their columns; by default as in training.

    Raises:
        DataError: the file cannot be read, or no row has the required columns.
        InputError: the Python object holds no rows.
    """
    data, questions = data or ensemble.config.data, ensemble.record.questions
    if is_file(rows):
        return read_input_rows(cast(str | Path, rows), data, ensemble.labels, questions)
    return input_rows(entries_of(rows, ensemble.labels, typed=bool(questions)), data, ensemble.labels, questions)


def load_run(root: str | Path, *, base: str | Path | None = None) -> Ensemble:
    """`Ensemble.load` under its earlier name."""
    return Ensemble.load(root, base=base)


def _exit_rule(early_exit: str | float | None) -> ExitRule | None:
    if early_exit is None:
        return None
    arguments.check_exit_rule("early_exit", early_exit)
    return ExitRule.parse(early_exit, "early_exit")
