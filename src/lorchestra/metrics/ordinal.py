"""Metrics of ordered levels: how far predictions are from the answer, not only whether they are right.

Pure NumPy functions of the log-probabilities `[E, C]` of C levels, lowest first, and labels int64 `[E]`; distances are
in levels. As in `scores`, metrics of resamples are computed on rows with counts, all resamples at once.
Axes: `E` example, `C` level, `R` resample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lorchestra.metrics.predictive import FloatArray, IntArray, check_labels


@dataclass(frozen=True, slots=True)
class OrdinalScores:
    """What the metrics need of each row; every field is `[E]`.

    `expected_error` is the distance of the expected level from the answer, `error` that of the most probable one.
    `rps` is the ranked probability score, in [0, 1].
    """

    labels: IntArray
    predicted: IntArray
    expected_error: FloatArray
    error: FloatArray
    rps: FloatArray


def expected_level(log_probs_EC: FloatArray) -> FloatArray:
    """The mean of the levels, from 0, under each row's probabilities, `[E]`."""
    return np.asarray(np.exp(log_probs_EC) @ np.arange(log_probs_EC.shape[1], dtype=np.float64))


def score_levels(log_probs_EC: FloatArray, labels_E: IntArray) -> OrdinalScores:
    """Score each row of `[E, C]` against its label; of equally probable levels the lowest is the prediction.

    The ranked probability score is the squared difference of the cumulative probabilities from those of the answer,
    summed over the C - 1 boundaries between levels and divided by their number. So it does not grow with the number of
    levels, and for two it is half the Brier score.

    Raises:
        ValueError: a label is -1 (unknown) or out of range, a log-probability is NaN, or there is no row or one level.

    Source: Epstein, A scoring system for probability forecasts of ranked categories, 1969; Murphy, 1971.
    """
    labels_E = check_labels(log_probs_EC, labels_E)
    num_levels = log_probs_EC.shape[1]
    if num_levels < 2:
        raise ValueError("log_probs has one level; a scale has at least two")
    predicted_E = log_probs_EC.argmax(axis=-1)
    at_most_EC = np.exp(log_probs_EC).cumsum(axis=-1)[:, :-1]
    is_at_most_EC = labels_E[:, None] <= np.arange(num_levels - 1)
    return OrdinalScores(
        labels=labels_E,
        predicted=predicted_E,
        expected_error=np.abs(expected_level(log_probs_EC) - labels_E),
        error=np.abs(predicted_E - labels_E).astype(np.float64),
        rps=np.square(at_most_EC - is_at_most_EC).mean(axis=-1),
    )


def expected_level_mae(log_probs_EC: FloatArray, labels_E: IntArray) -> float:
    """Mean absolute error of the expected level."""
    return float(score_levels(log_probs_EC, labels_E).expected_error.mean())


def level_mae(log_probs_EC: FloatArray, labels_E: IntArray) -> float:
    """Mean absolute error of the most probable level."""
    return float(score_levels(log_probs_EC, labels_E).error.mean())


def ranked_probability_score(log_probs_EC: FloatArray, labels_E: IntArray) -> float:
    """Mean ranked probability score, between 0 (certain and right) and 1; see `score_levels`."""
    return float(score_levels(log_probs_EC, labels_E).rps.mean())


def quadratic_kappa(log_probs_EC: FloatArray, labels_E: IntArray) -> float:
    """Cohen's kappa of the most probable levels and the answers, with squared distances as weights.

    1 minus the mean squared distance over that of answers and predictions paired at random. NaN where all rows have the
    same answer and that as the prediction.
    """
    return ordinal_scores(log_probs_EC, labels_E)["quadratic_kappa"]


def ordinal_scores(log_probs_EC: FloatArray, labels_E: IntArray) -> dict[str, float]:
    """All metrics of ordered levels, by key."""
    rows = score_levels(log_probs_EC, labels_E)
    metrics = ordinal_metrics(rows, np.ones((1, len(rows.labels))))
    return {key: float(values[0]) for key, values in metrics.items()}


def ordinal_metrics(rows: OrdinalScores, counts_RE: FloatArray) -> dict[str, FloatArray]:
    """The metrics by key, each `[R]`, on R resamples that hold row e `counts_RE[r, e]` times, a whole number."""
    totals_R = counts_RE.sum(axis=1)
    columns = {"expected_level_mae": rows.expected_error, "level_mae": rows.error, "rps": rows.rps}
    means = {key: np.asarray(counts_RE @ values_E / totals_R) for key, values_E in columns.items()}
    return means | {"quadratic_kappa": _quadratic_kappa(rows, counts_RE, totals_R)}


def _quadratic_kappa(rows: OrdinalScores, counts_RE: FloatArray, totals_R: FloatArray) -> FloatArray:
    """Kappa `[R]`: pairs at random differ by E[a^2] + E[p^2] - 2 E[a] E[p], so no table of answers by predictions."""
    answers_E, predicted_E = rows.labels.astype(np.float64), rows.predicted.astype(np.float64)
    # sums of whole numbers, so that a resample without differences gives exactly 0
    observed_R = totals_R * (counts_RE @ np.square(answers_E - predicted_E))
    squares_R = counts_RE @ (np.square(answers_E) + np.square(predicted_E))
    expected_R = totals_R * squares_R - 2 * (counts_RE @ answers_E) * (counts_RE @ predicted_E)
    ratio_R = np.full(len(totals_R), np.nan)
    np.divide(observed_R, expected_R, out=ratio_R, where=expected_R > 0)
    return np.asarray(1 - ratio_R)
