"""Temperature scaling under a weak prior, so that few rows cannot drive it to an extreme.

Pure NumPy functions of log-probabilities `[E, C]` and labels `[E]`. Axes: `E` example, `C` choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorchestra.metrics.predictive import TEMPERATURE_RANGE, FloatArray, IntArray, check_labels, fit_temperature
from lorchestra.metrics.validation import only_answer

PRIOR_STD = 0.5
"""Standard deviation of the prior of log T around 0: 95 % of it is between T = 0.38 and T = 2.7."""

_GRID = 400
"""Grid steps in log T that bracket the minimum; the penalized NLL may have several local minima."""


@dataclass(frozen=True, slots=True)
class TemperatureFit:
    """A temperature, or the `reason` why there is none; `notes` say what the fit depends on besides the rows."""

    T: float | None
    num_rows: int
    reason: str | None = None
    notes: tuple[str, ...] = ()


def regularized_temperature(
    log_probs_EC: FloatArray, labels_E: IntArray, options: Sequence[tuple[str, ...]], *, prior: bool = True
) -> TemperatureFit:
    """Fit T on validation rows, or give the reason why these rows cannot determine it.

    T minimizes the summed NLL plus `(log T)^2 / (2 PRIOR_STD^2)`: T = 1 for rows without information, and close to the
    minimum of the NLL for many rows, since the NLL grows with their number. There is no T where no row gives its answer
    a positive probability, or where all rows have the same label: the confidence in one class says nothing about the
    others.

    Args:
        log_probs_EC: normalized.
        labels_E: answers.
        options: each row's choices; if they are the same in all rows, an index is a class.
        prior: False minimizes the NLL alone.

    Raises:
        ValueError: a label is unknown (-1) or out of range, or there is no row.
    """
    labels_E = check_labels(log_probs_EC, labels_E)
    num_rows = len(labels_E)
    if (reason := _unfit(log_probs_EC, labels_E, options)) is not None:
        return TemperatureFit(None, num_rows, reason)
    alone = fit_temperature(log_probs_EC, labels_E)
    temperature = _penalized(log_probs_EC, labels_E) if prior else alone
    return TemperatureFit(temperature, num_rows, notes=_notes(temperature, alone, prior))


def _unfit(log_probs_EC: FloatArray, labels_E: IntArray, options: Sequence[tuple[str, ...]]) -> str | None:
    answers_E = log_probs_EC[np.arange(len(labels_E)), labels_E]
    if not np.isfinite(answers_E).any():
        return "no validation row gives its right answer a positive probability"
    if (answer := only_answer(labels_E, options)) is not None:
        return f"all of the {len(labels_E)} validation rows have the answer {answer}, which says nothing of the others"
    return None


def _notes(temperature: float, alone: float, prior: bool) -> tuple[str, ...]:
    notes = []
    if alone in TEMPERATURE_RANGE:
        direction = "sharper" if alone == TEMPERATURE_RANGE[0] else "flatter"
        if prior:
            notes.append(
                f"the validation rows alone set no limit to T (the {direction}, the lower their NLL): the prior towards"
                " T = 1 decided it"
            )
        else:
            notes.append(f"at its bound: the {direction} the answers, the lower the NLL of the validation rows")
    elif temperature != alone and abs(np.log(temperature / alone)) > np.log(1.1):
        notes.append(f"the prior towards T = 1 moved it from {alone:.2f}, since the validation rows say little")
    return tuple(notes)


def _penalized(log_probs_EC: FloatArray, labels_E: IntArray) -> float:
    """The T of the lowest penalized NLL: the best point of a grid of log T, refined by bisection of the slope there."""
    usable_E = np.isfinite(log_probs_EC[np.arange(len(labels_E)), labels_E])
    scores_EC = log_probs_EC[usable_E]
    scores_EC = scores_EC - scores_EC.max(axis=-1, keepdims=True)
    target_E = scores_EC[np.arange(len(scores_EC)), labels_E[usable_E]]
    finite_EC = np.where(np.isneginf(scores_EC), 0.0, scores_EC)

    def value(u: float) -> float:
        """Penalized NLL, summed over rows, at T = e^u."""
        scale = np.exp(-u)
        normalizer_E = np.log(np.exp(scores_EC * scale).sum(axis=-1))
        return float((normalizer_E - target_E * scale).sum() + u * u / (2 * PRIOR_STD**2))

    def slope(u: float) -> float:
        """Derivative of `value` by u."""
        scale = np.exp(-u)
        weights_EC = np.exp(scores_EC * scale)
        expected_E = (weights_EC * finite_EC).sum(axis=-1) / weights_EC.sum(axis=-1)
        return float(-scale * (expected_E - target_E).sum() + u / PRIOR_STD**2)

    coldest, hottest = np.log(TEMPERATURE_RANGE)
    grid = np.linspace(coldest, hottest, _GRID + 1)
    best = int(np.argmin([value(u) for u in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, _GRID)]
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return float(np.exp((low + high) / 2))
