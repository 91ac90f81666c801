"""The ECE on finitely many rows: the ECE of a calibrated model, and an interval that covers.

A binned ECE sums absolute values, so noise only increases it: a perfectly calibrated model shows a positive ECE, and
resampling rows adds the noise a second time. The coverage of a percentile interval of bootstrap draws is therefore
anything between 0 % and 95 %. Instead, both are found by simulating the rows under a known miscalibration
(`benchmarks/coverage.py` measures the coverage).

Axes: `E` example, `R` simulation, `K` bin of confidence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lorchestra.metrics.predictive import TIE, FloatArray
from lorchestra.metrics.scores import CHUNK_CELLS, LEVEL, NUM_BINS, RowScores, bin_rows

TAIL = (1 - LEVEL) / 2
"""Probability outside of the interval on each side."""

_MAX_DOUBLINGS = 12
_HALVINGS = 12


@dataclass(frozen=True, slots=True)
class CalibratedEce:
    """ECE of perfectly calibrated confidences on as many rows: its mean, and the ends of its `LEVEL` range."""

    mean: float
    low: float
    high: float


def calibrated_ece(rows: RowScores, simulations: int, seed: int) -> CalibratedEce:
    """Simulate the ECE of a model that is right in each row with its stated probability, independently.

    Raises:
        ValueError: fewer than one simulation.
    """
    if simulations < 1:
        raise ValueError(f"simulations is {simulations}, not at least 1")
    generator = np.random.default_rng(seed)
    num_rows = len(rows.labels)
    bins_EK = np.eye(NUM_BINS)[bin_rows(rows.confidence)]
    stated_K = rows.confidence @ bins_EK
    draws = []
    size = max(1, CHUNK_CELLS // num_rows)
    for start in range(0, simulations, size):
        right_RE = generator.random((min(size, simulations - start), num_rows)) < rows.confidence
        draws.append(np.abs(stated_K - right_RE.astype(np.float64) @ bins_EK).sum(axis=1) / num_rows)
    shown_R = np.concatenate(draws)
    low, high = np.quantile(shown_R, [TAIL, 1 - TAIL], method="inverted_cdf")
    return CalibratedEce(float(shown_R.mean()), float(low), float(high))


def ece_interval(rows: RowScores, reference: CalibratedEce, simulations: int, seed: int) -> list[float]:
    """Interval of the true ECE over 15 bins of equal width, by inverting a test; it contains the observed value.

    The hypotheses are "in each bin, accuracy differs from confidence by t times the observed difference", t >= 0: t = 0
    is calibrated, t = 1 as observed. The interval holds the ECE of every t under which a value as high, and one as low,
    as the observed one has a probability of at least 2.5 %. It starts at 0 exactly where the observed value is not
    above the range of `reference`. The observed accuracy of a bin includes one additional row that is as right as its
    confidence, so that a bin whose rows are all right still allows errors.

    Args:
        rows: the observed rows.
        reference: `calibrated_ece` of these rows.
        simulations: draws per hypothesis.
        seed: of the draws, the same for all hypotheses.
    """
    num_rows = len(rows.labels)
    bin_E = bin_rows(rows.confidence)
    size_K = np.bincount(bin_E, minlength=NUM_BINS).astype(np.float64)
    stated_K = np.bincount(bin_E, rows.confidence, minlength=NUM_BINS)
    right_K = np.bincount(bin_E, rows.correct, minlength=NUM_BINS)
    mean_K = stated_K / np.maximum(size_K, 1.0)
    gap_K = mean_K - (right_K + mean_K) / (size_K + 1.0)
    share_K = size_K / num_rows
    observed = float(np.abs(stated_K - right_K).sum() / num_rows)

    def accuracy(t: float) -> FloatArray:
        return np.clip(mean_K - t * gap_K, 0.0, 1.0)

    def simulated(t: float) -> FloatArray:
        generator = np.random.default_rng(seed)
        drawn_RK = generator.multinomial(num_rows, share_K, size=simulations)
        hits_RK = generator.binomial(drawn_RK, accuracy(t))
        return np.asarray(np.abs(drawn_RK * mean_K - hits_RK).sum(axis=1) / num_rows)

    def true_ece(t: float) -> float:
        return float(share_K @ np.abs(mean_K - accuracy(t)))

    low, high = 0.0, observed
    if observed > reference.high + TIE:
        low = true_ece(_last_true(lambda t: float((simulated(t) >= observed - TIE).mean()) < TAIL))
    if observed >= reference.low - TIE:
        high = true_ece(_last_true(lambda t: float((simulated(t) <= observed + TIE).mean()) >= TAIL))
    return [min(low, observed), max(high, observed)]


def _last_true(holds: Callable[[float], bool]) -> float:
    """About the largest t >= 0 up to which a condition holds: t is doubled until it fails, then bisected."""
    low, high = 0.0, 1.0
    for _ in range(_MAX_DOUBLINGS):
        if not holds(high):
            break
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
