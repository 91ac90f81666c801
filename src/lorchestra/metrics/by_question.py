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


def fit_temperatures(
    log_probs_EC: FloatArray, validation: Predictions, *, prior: bool = True
) -> dict[str, TemperatureFit]:
    """The temperature of each typed question, by name; that of rows without typed questions is "".

    Args:
        log_probs_EC: of a member or mixture on the validation rows.
        validation: their labels, options and questions.
        prior: see `regularized_temperature`.
    """
    if not validation.questions:
        return {"": regularized_temperature(log_probs_EC, validation.labels, validation.options, prior=prior)}
    names, fits = np.array(validation.questions), {}
    for name in dict.fromkeys(validation.questions):
        rows = np.flatnonzero(names == name)
        options = [validation.options[e] for e in rows]
        fits[name] = regularized_temperature(log_probs_EC[rows], validation.labels[rows], options, prior=prior)
    return fits


def apply_temperatures(
    log_probs_EC: FloatArray, questions: Sequence[str], temperatures: Mapping[str, float]
) -> FloatArray:
    """Log-probabilities with the temperature of each row's question; rows of others stay as they are.

    `questions` are the names of the rows' questions; empty for rows without typed ones, whose temperature is "".
    """
    if not questions:
        return apply_temperature(log_probs_EC, temperatures[""])
    scaled_EC, names = log_probs_EC.copy(), np.array(questions)
    for name, temperature in temperatures.items():
        rows = np.flatnonzero(names == name)
        scaled_EC[rows] = apply_temperature(log_probs_EC[rows], temperature)
    return scaled_EC


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
    fits = fit_temperatures(fitted_EC, validation)
    temperatures = {name: fit.T for name, fit in fits.items() if fit.T is not None and (not name or name in questions)}
    if not questions:
        fit = fits[""]
    elif temperatures:
        by_question = ", ".join(f"{name} {T:.2f}" for name, T in temperatures.items())
        fit = TemperatureFit(None, validation.num_examples, notes=(f"T by question: {by_question}",))
    else:
        fit = TemperatureFit(None, validation.num_examples, "no question has validation rows to fit one on")
    return (apply_temperatures(log_probs_EC, questions, temperatures) if temperatures else None), fit
