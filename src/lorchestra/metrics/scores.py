"""Accuracy, calibration and ranking metrics of one predictive distribution.

Pure NumPy functions of log-probabilities `[E, C]` (-inf in the columns past a row's choices) and labels int64 `[E]`.
All of them refuse rows without an answer (label -1). Axes: `E` example, `C` choice, `R` resample, `K` bin, `G` group of
equal confidence.

Metrics that are not means over rows have one implementation, on rows with counts: a point value has all counts 1, a
bootstrap resample counts how often it drew each row. So the work per resample is sums over rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lorchestra.metrics import selective
from lorchestra.metrics.predictive import TIE, FloatArray, IntArray, check_labels, confidence
from lorchestra.metrics.table import METRICS

Scheme = Literal["width", "mass"]

NUM_BINS = 15
RESAMPLED = tuple(metric.key for metric in METRICS if metric.interval or metric.difference)
"""Keys of the metrics that are computed on every bootstrap resample."""

LEVEL = 0.95
"""Coverage of every interval."""

CHUNK_CELLS = 2_000_000
"""Most resamples x examples held at once."""

Draws = dict[str, dict[str, FloatArray]]
"""{method: {metric: [R]}}"""


@dataclass(frozen=True, slots=True)
class RowScores:
    """What the metrics need of each row; every field is `[E]`.

    `nll` is in nats, and infinite where the answer has probability zero. `brier` is the squared error summed over
    choices.
    """

    labels: IntArray
    predicted: IntArray
    confidence: FloatArray
    nll: FloatArray
    brier: FloatArray

    @property
    def correct(self) -> FloatArray:
        """1.0 where the most probable choice is the answer, else 0.0."""
        return np.asarray((self.predicted == self.labels).astype(np.float64))

    @property
    def confident_error(self) -> FloatArray:
        """1.0 where a wrong answer has a probability of at least `selective.CONFIDENT`, else 0.0."""
        return np.asarray((self.confidence >= selective.CONFIDENT - TIE) * (1.0 - self.correct))


def score_rows(log_probs_EC: FloatArray, labels_E: IntArray) -> RowScores:
    """Score each row of `[E, C]` against its label; of equally probable choices the first is the prediction.

    Raises:
        ValueError: a label is -1 (unknown) or out of range, a log-probability is NaN, or there is no row.
    """
    labels_E = check_labels(log_probs_EC, labels_E)
    rows_E = np.arange(len(labels_E))
    error_EC = np.exp(log_probs_EC)
    error_EC[rows_E, labels_E] -= 1.0
    return RowScores(
        labels=labels_E,
        predicted=log_probs_EC.argmax(axis=-1),
        confidence=confidence(log_probs_EC),
        nll=0.0 - log_probs_EC[rows_E, labels_E],
        brier=np.square(error_EC).sum(axis=-1),
    )


def accuracy(log_probs_EC: FloatArray, labels_E: IntArray) -> float:
    """Share of rows whose most probable choice is the answer."""
    return float(score_rows(log_probs_EC, labels_E).correct.mean())


def macro_f1(log_probs_EC: FloatArray, labels_E: IntArray) -> float:
    """Unweighted mean F1 over the label indices that occur as an answer or as a prediction.

    Meant for texts with labels, where an index is a class. Where choices differ by row, the index is the position of an
    option, and macro F1 says little beyond accuracy.
    """
    return _one(_macro_f1(score_rows(log_probs_EC, labels_E), _once(labels_E)))


def class_recall(log_probs_EC: FloatArray, labels_E: IntArray) -> FloatArray:
    """Share of the rows of each label that are predicted as such, `[C]`; NaN for a label without rows."""
    rows = score_rows(log_probs_EC, labels_E)
    num_labels = log_probs_EC.shape[1]
    counts_C = np.bincount(rows.labels, minlength=num_labels)
    hits_C = np.bincount(rows.labels, weights=rows.correct, minlength=num_labels)
    return np.asarray(np.where(counts_C > 0, hits_C / np.maximum(counts_C, 1), np.nan))


def nll(log_probs_EC: FloatArray, labels_E: IntArray) -> float:
    """Mean negative log-likelihood of the answers in nats; infinite if one answer has probability zero.

    It is not clipped at some epsilon: the clip would decide the result.
    """
    return float(score_rows(log_probs_EC, labels_E).nll.mean())


def brier(log_probs_EC: FloatArray, labels_E: IntArray) -> float:
    """Squared error of the probabilities, summed over choices, mean over rows; between 0 and 2."""
    return float(score_rows(log_probs_EC, labels_E).brier.mean())


def ece(log_probs_EC: FloatArray, labels_E: IntArray, bins: int = NUM_BINS, scheme: Scheme = "width") -> float:
    """Expected calibration error: |mean confidence - accuracy| by bin of confidence, weighted by the bins' rows.

    Bins are `(lo, hi]` as in `bin_rows`. Raises ValueError as `score_rows` and `bin_rows` do.
    """
    return _one(_ece(score_rows(log_probs_EC, labels_E), _once(labels_E), bins, scheme))


def signed_gap(log_probs_EC: FloatArray, labels_E: IntArray) -> float:
    """Mean confidence minus accuracy: positive means over-confident, negative under-confident."""
    rows = score_rows(log_probs_EC, labels_E)
    return float((rows.confidence - rows.correct).mean())


def aurc(log_probs_EC: FloatArray, labels_E: IntArray) -> float:
    """Area under the risk-coverage curve: mean of `risk_coverage`'s risks over all coverages; lower is better."""
    return _selective(log_probs_EC, labels_E)["aurc"]


def excess_aurc(log_probs_EC: FloatArray, labels_E: IntArray) -> float:
    """AURC minus that of the ideal order, in which all right answers come first (E-AURC); 0 is the best."""
    return _selective(log_probs_EC, labels_E)["excess_aurc"]


def share_automated(log_probs_EC: FloatArray, labels_E: IntArray, target: float) -> float:
    """Largest share of rows, most confident first, whose error is at most `target`; see `selective.share_automated`."""
    rows = score_rows(log_probs_EC, labels_E)
    return _one(selective.share_automated(rows.confidence, rows.correct, _once(labels_E), target))


def confident_errors(log_probs_EC: FloatArray, labels_E: IntArray) -> float:
    """Share of rows that are wrong with a probability of at least `selective.CONFIDENT`."""
    return float(score_rows(log_probs_EC, labels_E).confident_error.mean())


def auroc(negative_scores: FloatArray, positive_scores: FloatArray) -> float:
    """Probability that a positive (OOD) row scores above a negative (in-distribution) one, ties counting half.

    Scores are one-dimensional and higher for positives. From ranks, O(n log n). NaN if a side is empty.

    Raises:
        ValueError: a score is NaN.
    """
    scores = np.concatenate([negative_scores, positive_scores])
    if np.isnan(scores).any():
        raise ValueError("an OOD score is NaN")
    num_negative, num_positive = len(negative_scores), len(positive_scores)
    if not num_negative or not num_positive:
        return float("nan")
    _, index, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mid_ranks = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = mid_ranks[index[num_negative:]].sum()
    return float((rank_sum - num_positive * (num_positive + 1) / 2) / (num_negative * num_positive))


def bin_rows(confidence_E: FloatArray, bins: int = NUM_BINS, scheme: Scheme = "width") -> IntArray:
    """Index of each row's bin `(lo, hi]`, int64 `[E]` in 0..bins-1.

    `width`: equal widths over [0, 1]. `mass`: upper edges at the order statistics k E / bins, so that bins hold about
    the same number of rows; equal confidences share a bin, so others may be smaller or empty. A confidence within 1e-12
    above an edge counts as on it.

    Raises:
        ValueError: fewer than one bin, or an unknown scheme.
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}, not at least 1")
    steps_K = np.arange(1, bins + 1)
    if scheme == "width":
        upper_K = steps_K / bins
    elif scheme == "mass":
        num_rows = len(confidence_E)
        # Integer ceil(k E / bins): a rounded product could be one row off.
        upper_K = np.sort(confidence_E)[-(-steps_K * num_rows // bins) - 1]
    else:
        raise ValueError(f"scheme is {scheme!r}, not 'width' or 'mass'")
    return np.minimum(np.searchsorted(upper_K + TIE, confidence_E, side="left"), bins - 1)


def all_metrics(log_probs_EC: FloatArray, labels_E: IntArray) -> dict[str, float]:
    """Every metric of one predictive distribution by key, in the order of `table.METRICS`.

    `num_zero_probability` counts the rows whose answer got probability zero; if there are any, `nll` is infinite.
    """
    rows = score_rows(log_probs_EC, labels_E)
    values = {key: _one(value) for key, value in resampled_metrics(rows, _once(labels_E)).items()}
    values |= {key: function(rows) for key, function in _POINT_METRICS.items()}
    return {metric.key: values[metric.key] for metric in METRICS}


def resampled_metrics(rows: RowScores, counts_RE: FloatArray) -> dict[str, FloatArray]:
    """The metrics of `RESAMPLED`, each `[R]`, on R resamples that hold row e `counts_RE[r, e]` times.

    Counts are whole numbers as floats, with the same positive sum in every resample.
    """
    values = _means(rows, counts_RE) | {key: function(rows, counts_RE) for key, function in _ON_COUNTS.items()}
    values |= selective.selective_metrics(rows.confidence, rows.correct, counts_RE)
    return {key: values[key] for key in RESAMPLED}


def _means(rows: RowScores, counts_RE: FloatArray) -> dict[str, FloatArray]:
    """The metrics that are means over rows, each `[R]`, by one matrix product."""
    infinite_E = np.isinf(rows.nll)
    columns = np.stack(
        [
            rows.correct,
            np.where(infinite_E, 0.0, rows.nll),  # 0 draws of an infinite row must give 0, not NaN
            infinite_E.astype(np.float64),
            rows.confidence - rows.correct,
            rows.brier,
            rows.confident_error,
        ],
        axis=1,
    )
    means = (counts_RE @ columns) / counts_RE.sum(axis=1, keepdims=True)
    return {
        "accuracy": means[:, 0],
        "nll": np.where(means[:, 2] > 0, np.inf, means[:, 1]),
        "signed_gap": means[:, 3],
        "brier": means[:, 4],
        "confident_errors": means[:, 5],
    }


def bootstrap(scores: Mapping[str, RowScores], resamples: int, seed: int) -> Draws:
    """The metrics of every method on the same resamples of examples; empty for 0 resamples.

    Sharing the resamples makes differences between methods paired. Repeated rows add noise within each bin, so the
    draws of an ECE are biased upward and may all exceed its point value; differences of ECEs suffer less.
    """
    num_rows = len(next(iter(scores.values())).labels)
    generator = np.random.default_rng(seed)
    chunks: list[Draws] = []
    size = max(1, CHUNK_CELLS // num_rows)
    for start in range(0, resamples, size):
        num = min(size, resamples - start)
        drawn_RE = generator.integers(num_rows, size=(num, num_rows)) + num_rows * np.arange(num)[:, None]
        counts_RE = np.bincount(drawn_RE.ravel(), minlength=num * num_rows).reshape(num, num_rows).astype(np.float64)
        chunks.append({name: resampled_metrics(rows, counts_RE) for name, rows in scores.items()})
    if not chunks:
        return {}
    return {
        name: {metric: np.concatenate([chunk[name][metric] for chunk in chunks]) for metric in RESAMPLED}
        for name in scores
    }


def interval(draws_R: FloatArray) -> list[float] | None:
    """Low and high end of the percentile interval of `LEVEL` of the draws.

    None if a draw is undefined (the difference of two infinite NLLs).
    """
    if np.isnan(draws_R).any():
        return None
    # Order statistics without interpolation, which infinite draws would turn into NaN.
    ordered_R = np.sort(draws_R)
    outside = int(round((1 - LEVEL) / 2 * len(ordered_R), 9))
    return [float(ordered_R[outside]), float(ordered_R[-1 - outside])]


def _macro_f1(rows: RowScores, counts_RE: FloatArray) -> FloatArray:
    """Macro F1 `[R]`; F1 = 2 TP / (answers + predictions) of a class, over classes with either in the resample."""
    classes = np.union1d(rows.labels, rows.predicted)
    is_label = (rows.labels[:, None] == classes).astype(np.float64)
    is_predicted = (rows.predicted[:, None] == classes).astype(np.float64)
    hits = counts_RE @ (is_label * is_predicted)
    occurrences = counts_RE @ (is_label + is_predicted)
    f1 = 2 * hits / np.maximum(occurrences, 1.0)
    return np.asarray(f1.sum(axis=1) / (occurrences > 0).sum(axis=1))


def _ece(rows: RowScores, counts_RE: FloatArray, bins: int = NUM_BINS, scheme: Scheme = "width") -> FloatArray:
    """ECE `[R]`. A bin's share times its |mean gap| is |sum of gaps| / E, so one product with `[E, K]` suffices."""
    bin_E = bin_rows(rows.confidence, bins, scheme)
    gaps_EK = np.zeros((len(bin_E), bins))
    gaps_EK[np.arange(len(bin_E)), bin_E] = rows.confidence - rows.correct
    return np.asarray(np.abs(counts_RE @ gaps_EK).sum(axis=1) / counts_RE.sum(axis=1))


def _selective(log_probs_EC: FloatArray, labels_E: IntArray) -> dict[str, float]:
    """The metrics of a ranking by confidence."""
    rows = score_rows(log_probs_EC, labels_E)
    values = selective.selective_metrics(rows.confidence, rows.correct, _once(labels_E))
    return {key: _one(value) for key, value in values.items()}


def _once(labels_E: IntArray) -> FloatArray:
    """Each row counted once, `[1, E]`."""
    return np.ones((1, len(labels_E)))


def _one(value_R: FloatArray) -> float:
    return float(value_R[0])


_ON_COUNTS: dict[str, Callable[[RowScores, FloatArray], FloatArray]] = {
    "macro_f1": _macro_f1,
    "ece": _ece,
}
"""Resampled metrics that are neither means over rows nor of `selective`."""


def _point_ece(bins: int, scheme: Scheme) -> Callable[[RowScores], float]:
    return lambda rows: _one(_ece(rows, _once(rows.labels), bins, scheme))


_SCHEMES: tuple[Scheme, ...] = ("width", "mass")
_POINT_METRICS: dict[str, Callable[[RowScores], float]] = {
    **{f"ece_{scheme}_{bins}": _point_ece(bins, scheme) for scheme in _SCHEMES for bins in (10, 15, 20)},
    "mean_confidence": lambda rows: float(rows.confidence.mean()),
    "num_zero_probability": lambda rows: int(np.isinf(rows.nll).sum()),
}
"""Metrics that are not resampled."""
