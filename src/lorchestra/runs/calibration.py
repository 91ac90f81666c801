"""Calibrate a run's mixture on its validation rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from lorchestra.data.splits import content_digest
from lorchestra.inference.pipeline import Pipeline
from lorchestra.inference.predict import member_passes
from lorchestra.metrics.calibrator import Calibration, CalibrationSetting, fit_calibration
from lorchestra.metrics.predictive import mixture_log_probs
from lorchestra.store.calibration_record import CalibrationRecord
from lorchestra.store.ensemble_record import EnsembleRecord
from lorchestra.store.run import Run
from lorchestra.training.callbacks import Callback, Interrupted
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
) -> None:
    """Predict validation rows with the members that did not fail, fit a calibration, and write it.

    Args:
        run: the run directory.
        record: the ensemble. `ensemble.json` itself is written after the calibration, since it makes the run finished.
        pipeline: with the members' final values.
        rows: validation rows; those that `data.too_long` drops do not count.
        setting: `train.calibration`.
        callback: reports progress; when it requests a stop, and not to finish, `Interrupted` is raised.
    """
    answered = [row for row in rows if row.answer is not None]
    predictions = None
    if setting != "none" and answered:
        passes = member_passes(record.good_members)
        predictions = pipeline.predict(answered, passes, "val", progress=_progress(callback, len(answered)))
    write_calibration(run, record, predictions, setting)


def _progress(callback: Callback, total: int) -> Callable[[int], None]:
    def report(done: int) -> None:
        callback.on_progress("calibration on val", min(done, total), total)
        if callback.should_stop() and not callback.should_finish():
            raise Interrupted

    return report


def write_calibration(
    run: Run, record: EnsembleRecord, predictions: Predictions | None, setting: CalibrationSetting
) -> None:
    """Fit a calibration on predictions of validation rows, write it, and log it in a sentence.

    Args:
        run: the run directory.
        record: the ensemble.
        predictions: of its members that did not fail; None without rows.
        setting: `train.calibration`.
    """
    if predictions is None or setting == "none":
        save_calibration(
            run, record, Calibration("none", "train.calibration is none" if setting == "none" else _NO_ROWS)
        )
        return
    mixture_EC = mixture_log_probs(predictions.log_probs_MEC)
    calibration = fit_calibration(mixture_EC, predictions.labels, predictions.options, setting)
    rows = zip(predictions.ids, predictions.texts, predictions.options, predictions.labels.tolist(), strict=True)
    digests = [content_digest(Example(*row)) for row in rows if row[-1] >= 0]
    save_calibration(run, record, calibration, digests)


def save_calibration(
    run: Run, record: EnsembleRecord, calibration: Calibration, row_digests: Sequence[str] = ()
) -> None:
    """Write a calibration and the digests of the rows that it rests on, and log it."""
    run.write_calibration(CalibrationRecord.of(record.digest, calibration, row_digests))
    logger.info(calibration.sentence())
