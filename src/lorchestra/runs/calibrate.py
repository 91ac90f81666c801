"""Certify a threshold, and fit prediction sets, on labelled rows that a finished run has not used."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lorchestra.config.costs import Costs, costs_of, read_costs
from lorchestra.config.data import DataConfig
from lorchestra.data.splits import content_digest, split_key
from lorchestra.errors import CheckpointError, ConfigError, DataError, LorchestraError
from lorchestra.metrics.calibrator import Calibration
from lorchestra.metrics.certificates import check_enough
from lorchestra.metrics.conformal import METHODS, fewest_rows_for_sets
from lorchestra.metrics.decisions import (
    OWN_TEST,
    CertifyingRows,
    Decisions,
    DecisionSettings,
    ScoreSetting,
    fit_decisions,
)
from lorchestra.metrics.monitoring import profile
from lorchestra.questions import Question
from lorchestra.runs import arguments
from lorchestra.runs.evaluate import rows_of_run, with_files
from lorchestra.runs.loading import FinishedRun
from lorchestra.runs.monitor import num_prompt_tokens
from lorchestra.runs.one_question import question_of, rows_with
from lorchestra.runs.rows import RunRows, check_unchanged, with_directory
from lorchestra.store.calibration_record import ONLY_QUESTION, CalibrationRecord
from lorchestra.store.decision_record import SavedDecisions
from lorchestra.store.run import Run
from lorchestra.training.callbacks import Callback, CallbackList, progress
from lorchestra.types import Example, Predictions, Task

if TYPE_CHECKING:
    from lorchestra.runs.ensemble import Ensemble

logger = logging.getLogger(__name__)


def calibrate_run(
    trained: Ensemble,
    settings: DecisionSettings,
    data: str | Path | None,
    costs: str | Path | Mapping[str, object] | None,
    question: str | None,
    rows: Task | None,
    data_dir: str | None,
    files: Mapping[str, str | Path | None],
    callbacks: Sequence[Callback],
) -> Decisions:
    """What `Ensemble.calibrate` does."""
    callback = CallbackList(callbacks)
    asked = question_of(trained, question)
    labels = trained.labels if asked is None else asked.options
    check_settings(settings, labels)
    check_cascade(settings, len(trained.members), costs is not None)
    if asked is not None and settings.cascade is not None:
        raise ConfigError("cascade: not available for typed questions, which are answered together; leave it out")
    cost_of = _costs(costs, labels)
    whole = record_of(trained)
    record = whole if asked is None else whole.of_question(asked.name)
    if (read_only := trained.run.why_read_only()) is not None:
        raise CheckpointError(f"{read_only} The threshold could not be saved.")
    config = with_directory(with_files(trained.config.data, files), data_dir)
    splits = rows_to_compare(trained, config, rows).task.splits
    examples = _certifying_examples(trained, splits, record, data, asked)
    check_certifying(examples, settings, labels, str(data or "the test rows"))
    known = [row for row in rows_with(splits["val"], asked) if row.answer is not None]
    if not known:
        raise DataError("no validation row has an answer; they choose the score and the thresholds to be tested")
    predictions = predict_labelled(trained, examples, "certifying", callback)
    reference = predict_labelled(trained, known, "val", callback)
    source = OWN_TEST if data is None else Path(data).name
    saved = _fit(trained, settings, record, predictions, reference, source, cost_of)
    tokens = num_prompt_tokens(trained.pipeline, examples)
    saved = replace(saved, reference=profile(predictions, record.calibration, tokens, source))
    record = record.with_decisions(saved)
    trained.run.write_calibration(record if asked is None else whole.with_question(asked.name, record))
    if any(member.state == "imported" for member in trained.record.members):
        logger.info("The members were imported: rows that trained them elsewhere are not known here, and not checked.")
    return saved.decisions


def record_of(trained: Ensemble) -> CalibrationRecord:
    """The run's calibration record; for a run of an earlier version, one without a calibration."""
    record = trained.run.read_calibration(trained.record)
    if record is None:
        missing = Calibration("none", "the run was trained by an earlier version")
        record = CalibrationRecord.of(trained.record.digest, missing, ())
    return record


def check_settings(settings: DecisionSettings, labels: tuple[str, ...] | None) -> None:
    """Refuse settings that are out of range, contradict each other, or need fixed labels where there are none.

    Raises:
        ConfigError: names the option.
    """
    most = settings.max_errors_per_1000
    _check_share("target_error", settings.target_error)
    _check_share("confidence", settings.confidence)
    arguments.check_choice("score", settings.score, ScoreSetting)
    if most is not None and (not _is_number(most) or not 0 < most < 1000):
        raise ConfigError(f"max_errors_per_1000: {most!r} is not a number between 0 and 1000")
    if most is not None and settings.per_class:
        raise ConfigError("per_class: max_errors_per_1000 counts the errors of all classes; give one of the two")
    if settings.sets is not None:
        _check_share("sets", settings.sets)
    if settings.sets_method not in METHODS:
        raise ConfigError(f"sets_method: {settings.sets_method!r} is not one of {', '.join(METHODS)}")
    if settings.sets is None and (settings.sets_by_class or settings.sets_method != "lac"):
        raise ConfigError("sets_method and sets_by_class: give the coverage of the sets too: --sets 0.9")
    for name in ("per_class", "sets_by_class"):
        if getattr(settings, name) and labels is None:
            raise ConfigError(f"{name}: the run answers questions with separate choices, which have no classes")


def check_cascade(settings: DecisionSettings, num_members: int, has_costs: bool) -> None:
    """Refuse a first stage of no member or of all, and settings that a cascade does not have.

    Raises:
        ConfigError: names the option.
    """
    first = settings.cascade
    if first is None:
        return
    if isinstance(first, bool) or not isinstance(first, int):
        raise ConfigError(f"cascade: {first!r} is not a number of members")
    if num_members == 1:
        raise ConfigError("cascade: the run has one member; a cascade needs two or more: leave it out")
    if not 0 < first < num_members:
        raise ConfigError(
            f"cascade: {first} of the run's {num_members} members cannot answer first; give 1 to {num_members - 1}"
        )
    if settings.score not in ("auto", "max_prob"):
        raise ConfigError(f"score: the stages of a cascade rank by max_prob, not by {settings.score}; leave it out")
    for name, given in (
        ("max_errors_per_1000", settings.max_errors_per_1000 is not None),
        ("per_class", settings.per_class),
        ("sets", settings.sets is not None),
        ("costs", has_costs),
    ):
        if given:
            raise ConfigError(
                f"{name}: not available with a cascade, which certifies the error among automated rows of both stages;"
                " leave one of the two out"
            )


def _check_share(name: str, value: float) -> None:
    if not _is_number(value) or not 0 < value < 1:
        percent = f"; for {value:g} % give {value / 100:g}" if _is_number(value) and 1 <= value < 100 else ""
        raise ConfigError(f"{name}: {value!r} is not a number between 0 and 1{percent}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _costs(costs: str | Path | Mapping[str, object] | None, labels: tuple[str, ...] | None) -> Costs | None:
    if costs is None:
        return None
    if labels is None:
        raise ConfigError("costs: the run answers questions with separate choices, which have no fixed labels")
    return costs_of(costs, labels, "costs") if isinstance(costs, Mapping) else read_costs(costs, labels)


def rows_to_compare(trained: Ensemble | FinishedRun, config: DataConfig, rows: Task | None) -> RunRows:
    """The rows that the run was trained and validated on, without which nothing can be said of others.

    Raises:
        DataError: they cannot be read, or have changed.
    """
    if rows is not None:
        given = RunRows(rows, ())
        check_unchanged(given, trained.run.splits)
        return given
    try:
        return rows_of_run(trained, config, otherwise="")
    except LorchestraError as error:
        if config.train is None and config.task is None:
            raise ConfigError(
                f"{trained.run.root}: trained on rows that came from Python and were not saved, so that nobody can"
                " check that other rows are new to it; calibrate it in Python: Ensemble.calibrate(..., rows=TASK)"
            ) from error
        raise


def _certifying_examples(
    trained: Ensemble,
    splits: Mapping[str, Sequence[Example]],
    record: CalibrationRecord,
    data: str | Path | None,
    asked: Question | None,
) -> tuple[Example, ...]:
    """The rows that certify; those of a file must be new to the run.

    Raises:
        ConfigError: there are no test rows.
        DataError: the file cannot be read, or a row of it was trained or validated on.
    """
    used = used_rows(splits, record, trained.run)
    if data is None:
        examples = [row for row in rows_with(splits.get("test", ()), asked) if row.answer is not None]
        new = tuple(row for row in examples if used_as(row, used) is None)
        if not new:
            raise ConfigError("the run has no test rows; give labelled rows that are new to it with --data FILE")
        if len(new) < len(examples):
            logger.info(f"{len(examples) - len(new)} test row(s) took part in the run's training, and are left out")
        return new
    given = rows_with(trained.read(data, require_answer=True), asked)
    if not given:
        raise DataError(f"{data}: no row answers the question {'' if asked is None else asked.name!r}")
    check_new(given, used, data)
    return given


def used_rows(
    splits: Mapping[str, Sequence[Example]], record: CalibrationRecord, run: Run, name: str = "the run"
) -> dict[str, str]:
    """How each row took part in a run, as a clause, by its content digest, or by its state with typed questions.

    Rows that a distilled run has learned from did so without their answers, but the run knows the ensemble's answers to
    them better than those to other rows.
    """
    used = dict.fromkeys(record.questions[ONLY_QUESTION].row_digests, "fitted the calibration")
    distillation = run.read_distillation()
    if distillation is not None and distillation.unlabeled is not None:
        used |= dict.fromkeys(distillation.unlabeled.row_digests, f"is a row that {name} was distilled on")
    used |= {split_key(row): f"is a validation row of {name}" for row in splits["val"]}
    return used | {split_key(row): f"is a training row of {name}" for row in splits["train"]}


def used_as(row: Example, used: Mapping[str, str]) -> str | None:
    """How a row, or another question about its state, took part in the run (see `used_rows`); None if it is new."""
    return used.get(content_digest(row), used.get(split_key(row)))


def check_new(given: Sequence[Example], used: Mapping[str, str], data: str | Path, run: str = "the run") -> None:
    """Refuse rows that took part in the run.

    Raises:
        DataError: names the first.
    """
    if overlap := [row for row in given if used_as(row, used) is not None]:
        first = overlap[0]
        raise DataError(
            f"{data}: {len(overlap)} of {len(given)} rows are not new to {run}; the first, {first.where},"
            f" {used_as(first, used)}; a guarantee needs rows that neither trained nor validated it: remove"
            " them, or give other rows"
        )


def check_certifying(
    examples: Sequence[Example], settings: DecisionSettings, labels: tuple[str, ...] | None, where: str
) -> None:
    """Refuse too few rows and rows of one class, before anything is computed; note repeated ones.

    Raises:
        DataError: names the rows.
    """
    number, answers = len(examples), {row.answer for row in examples}
    try:
        check_enough(number, settings.rate, settings.confidence)
    except ValueError as error:
        raise DataError(f"{where}: {error}; give more labelled rows with --data FILE") from error
    if settings.sets is not None and number < (fewest := fewest_rows_for_sets(round(1 - settings.sets, 12))):
        raise DataError(
            f"{where}: with {number} rows, sets that cover {100 * settings.sets:g} % would hold every choice; at least"
            f" {fewest} are needed"
        )
    if labels is not None and len(labels) > 1 and len(answers) == 1:
        raise DataError(
            f"{where}: all {number} rows have the label {labels[answers.pop() or 0]!r}; rows that certify must be a"
            " sample of the rows to be answered, with all their labels"
        )
    if repeated := number - len({content_digest(row) for row in examples}):
        logger.warning(
            f"{where}: {repeated} of {number} rows repeat an earlier one; the guarantee takes each row for an"
            " independent draw"
        )


def predict_labelled(trained: Ensemble, examples: Sequence[Example], split: str, callback: Callback) -> Predictions:
    """Predictions of all members."""
    report = progress(callback, f"ensemble on {split}", len(examples))
    return trained.pipeline.predict_members(examples, split, report)


def _fit(
    trained: Ensemble,
    settings: DecisionSettings,
    record: CalibrationRecord,
    predictions: Predictions,
    reference: Predictions,
    source: str,
    costs: Costs | None,
) -> SavedDecisions:
    rows, digests, earlier = certifying_rows(record, source, predictions, reference.num_examples)
    matrix = None if costs is None else (np.array(costs.matrix), costs.ask)
    seed = trained.config.train.seed
    try:
        decisions = fit_decisions(predictions, reference, rows, record.calibration, settings, seed, matrix)
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error
    return SavedDecisions(decisions, digests, earlier)


def certifying_rows(
    record: CalibrationRecord, source: str, predictions: Predictions, num_reference: int
) -> tuple[CertifyingRows, tuple[str, ...], tuple[str, ...]]:
    """The rows that certify, with the looks before; their content digests, and those of rows that certified before."""
    parts = zip(predictions.ids, predictions.texts, predictions.options, predictions.labels.tolist(), strict=True)
    digests = tuple(content_digest(Example(*part)) for part in parts)
    rows, seen = CertifyingRows(source, len(digests), num_reference, _now()), frozenset[str]()
    looks = []
    if (alone := record.saved_decisions) is not None:
        looks.append((alone.decisions.rows, alone.decisions.certificates[0].confidence))
        seen |= alone.seen
    if (with_run := record.saved_run_cascade) is not None:
        looks.append((with_run.cascade.rows, with_run.cascade.certificate.confidence))
        seen |= with_run.seen
    if looks:
        last, confidence = max(looks, key=lambda look: look[0].look)
        rows = replace(
            rows,
            look=last.look + 1,
            num_repeated=sum(digest in seen for digest in digests),
            earlier_risk=last.earlier_risk + 1 - confidence,
        )
    return rows, digests, tuple(sorted(seen.difference(digests)))


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
