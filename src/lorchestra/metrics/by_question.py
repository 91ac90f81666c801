"""Predictions of rows with typed questions, question by question: each has its options and its kind of score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lorchestra.metrics.calibrator import Calibration
from lorchestra.metrics.predictive import FloatArray, apply_temperature
from lorchestra.metrics.temperature import TemperatureFit, regularized_temperature
from lorchestra.types import Predictions


@dataclass(frozen=True)
class RowCalibration:
    """The calibration of each row, by the name of its typed question: for rows of several questions.

    Attributes:
        calibrations: by question; rows of others stay as they are.
        questions: the name of each row's question.
    """

    calibrations: Mapping[str, Calibration]
    questions: Sequence[str]

    @property
    def is_calibrated(self) -> bool:
        """Whether validation rows decided the probabilities of some rows."""
        return any(calibration.is_calibrated for calibration in self.calibrations.values())

    @property
    def is_identity(self) -> bool:
        """Whether all probabilities stay as they are, to the last bit."""
        return all(calibration.is_identity for calibration in self.calibrations.values())

    @property
    def keeps_predictions(self) -> bool:
        """Whether the most probable choice of every row stays the same."""
        return all(calibration.keeps_predictions for calibration in self.calibrations.values())

    def apply(self, log_probs_EC: FloatArray) -> FloatArray:
        """Calibrated log-probabilities `[E, C]` of the rows, in their order; -inf stays -inf."""
        calibrated_EC = log_probs_EC.copy()
        names = np.array(self.questions)
        for name, calibration in self.calibrations.items():
            rows = np.flatnonzero(names == name)
            if len(rows) and not calibration.is_identity:
                part = log_probs_EC[rows]
                width = int(np.flatnonzero((part > -np.inf).any(axis=0)).max()) + 1  # columns of its options
                calibrated_EC[rows, :width] = calibration.apply(part[:, :width])
        return calibrated_EC


def split_by_question(predictions: Predictions) -> dict[str, Predictions]:
    """The rows of each typed question by its name, in the order of the first rows; empty for rows without one.

    The choices of each part, axis `C`, are the question's options.

    Raises:
        ValueError: two rows of a question have different options.
    """
    rows_of: dict[str, list[int]] = {}
    for e, name in enumerate(predictions.questions):
        rows_of.setdefault(name, []).append(e)
    parts = {}
    for name, rows in rows_of.items():
        options = {predictions.options[e] for e in rows}
        if len(options) > 1:
            raise ValueError(f"rows of question {name!r} have different options")
        parts[name] = predictions.of_rows(np.array(rows), num_choices=len(options.pop()))
    return parts


def scale(
    log_probs_EC: FloatArray, questions: Sequence[str], fitted_EC: FloatArray, validation: Predictions
) -> tuple[FloatArray | None, TemperatureFit]:
    """Log-probabilities with the temperature of the lowest NLL on validation rows, and the fit.

    With typed questions each has a temperature, and those whose validation rows determine none stay as they are; the
    fit then has no T. The first result is None where nothing can be fitted.

    Args:
        log_probs_EC: to be scaled.
        questions: the name of each row's question; empty for rows without one.
        fitted_EC: of the same member or mixture on the validation rows.
        validation: their labels, options and questions.
    """
    if not questions:
        fit = regularized_temperature(fitted_EC, validation.labels, validation.options)
        return (None if fit.T is None else apply_temperature(log_probs_EC, fit.T)), fit
    scaled_EC, names, fitted_names = log_probs_EC.copy(), np.array(questions), np.array(validation.questions)
    fits = {}
    for name in dict.fromkeys(questions):
        rows, held_out = np.flatnonzero(names == name), np.flatnonzero(fitted_names == name)
        if len(held_out):
            options = [validation.options[e] for e in held_out]
            fit = fits[name] = regularized_temperature(fitted_EC[held_out], validation.labels[held_out], options)
            if fit.T is not None:
                scaled_EC[rows] = apply_temperature(log_probs_EC[rows], fit.T)
    temperatures = [f"{name} {fit.T:.2f}" for name, fit in fits.items() if fit.T is not None]
    if not temperatures:
        return None, TemperatureFit(None, validation.num_examples, "no question has validation rows to fit one on")
    notes = (f"T by question: {', '.join(temperatures)}",)
    return scaled_EC, TemperatureFit(None, validation.num_examples, notes=notes)
