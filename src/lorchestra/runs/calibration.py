"""Calibrate a run's mixture on its validation rows."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence

import torch

from lorchestra.data.splits import content_digest
from lorchestra.distributed import ALONE, Group
from lorchestra.inference.pipeline import Pipeline
from lorchestra.inference.predict import member_passes
from lorchestra.metrics.by_question import split_by_question
from lorchestra.metrics.calibrator import Calibration, CalibrationSetting, fit_calibration
from lorchestra.metrics.predictive import mixture_log_probs
from lorchestra.store.calibration_record import ONLY_QUESTION, CalibrationRecord, QuestionCalibration
from lorchestra.store.ensemble_record import EnsembleRecord
from lorchestra.store.run import Run
from lorchestra.training.callbacks import Callback, Interrupted
from lorchestra.training.joint import JointStop
from lorchestra.types import Example, Predictions

logger = logging.getLogger(__name__)

_NO_ROWS = "there are no validation rows with answers"


def calibrate(
    run: Run,
    record: EnsembleRecord,
    pipeline: Pipeline,
    rows: Sequence[Example],
    setting: CalibrationSetting,
    callback: Callback,
    group: Group = ALONE,
) -> None:
    """Predict validation rows with the members that did not fail, fit a calibration, and write it.

    Args:
        run: the run directory.
        record: the ensemble. `ensemble.json` itself is written after the calibration, since it makes the run finished.
        pipeline: with the final values of this process's members.
        rows: validation rows; those that `data.too_long` drops do not count.
        setting: `train.calibration`.
        callback: reports progress; when it requests a stop, and not to finish, `Interrupted` is raised.
        group: the processes of the training, which all call this; the first one fits and writes.
    """
    answered = [row for row in rows if row.answer is not None]
    predictions = None
    if setting != "none" and answered:
        block = group.block(len(record.members))
        passes = member_passes([m - block.start for m in record.good_members if m in block])
        report = finishing_progress(JointStop(callback, group), "calibration on val", len(answered))
        # where all of a process's members have failed, one of them predicts to no effect
        predictions = pipeline.predict(answered, passes or member_passes([0]), "val", progress=report)
        parts = group.gather_tensors(torch.from_numpy(predictions.log_probs_MEC[: len(passes)]))
        predictions = dataclasses.replace(predictions, log_probs_MEC=torch.cat(parts).numpy())
    group.first(lambda: write_calibration(run, record, predictions, setting))


def finishing_progress(callback: Callback, what: str, total: int) -> Callable[[int], None]:
    """As `callbacks.progress`, for what follows the last step: a request to finish does not stop it."""

    def report(done: int) -> None:
        callback.on_progress(what, min(done, total), total)
        if callback.should_stop() and not callback.should_finish():
            raise Interrupted

    return report


def write_calibration(
    run: Run, record: EnsembleRecord, predictions: Predictions | None, setting: CalibrationSetting
) -> None:
    """Fit a calibration on predictions of validation rows, write it, and log it in a sentence.

    Each typed question has its calibration, fitted on its rows.

    Args:
        run: the run directory.
        record: the ensemble.
        predictions: of its members that did not fail; None without rows.
        setting: `train.calibration`.
    """
    if setting == "none" or predictions is None:
        save_calibration(run, record, "train.calibration is none" if setting == "none" else _NO_ROWS)
        return
    if not record.questions:
        _save(run, record, {ONLY_QUESTION: _fitted(predictions, setting)})
        return
    parts, missing = split_by_question(predictions), QuestionCalibration(Calibration("none", _NO_ROWS))
    names = [question.name for question in record.questions]
    _save(run, record, {name: _fitted(parts[name], setting) if name in parts else missing for name in names})


def save_calibration(run: Run, record: EnsembleRecord, reason: str) -> None:
    """Write, for a reason, that nothing is calibrated, and log it."""
    missing = QuestionCalibration(Calibration("none", reason))
    _save(run, record, {question.name: missing for question in record.questions} or {ONLY_QUESTION: missing})


def _fitted(predictions: Predictions, setting: CalibrationSetting) -> QuestionCalibration:
    """A calibration, and the digests of the rows that it rests on."""
    mixture_EC = mixture_log_probs(predictions.log_probs_MEC)
    calibration = fit_calibration(mixture_EC, predictions.labels, predictions.options, setting)
    rows = zip(predictions.ids, predictions.texts, predictions.options, predictions.labels.tolist(), strict=True)
    return QuestionCalibration(calibration, tuple(content_digest(Example(*row)) for row in rows if row[-1] >= 0))


def _save(run: Run, record: EnsembleRecord, questions: Mapping[str, QuestionCalibration]) -> None:
    run.write_calibration(CalibrationRecord(record.digest, questions))
    for name, question in questions.items():
        sentence = question.calibration.sentence()
        logger.info(sentence if name == ONLY_QUESTION else f"question {name}: {sentence}")
