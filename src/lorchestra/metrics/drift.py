"""Whether new rows are like the reference rows of a calibration: tests of distributions, and a test martingale.

A guarantee holds for rows like those that it was made on. Without labels, the distributions of what the model says
about rows can be compared; with labels, the ranks of the losses, row by row, and the number of errors among the
automated rows. A stream is looked at many times: see `level_of_look`.

Axes: `E` example, `C` class, `B` bin.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from lorchestra.metrics.predictive import FloatArray, IntArray

NUM_BINS = 10
"""Bins of the PSI, of equal shares of the reference rows."""
_LEAST_EXPECTED = 5.0
"""Classes with a smaller expected number of rows are pooled, so that the chi-square approximation holds."""
_SMALLEST_SHARE = 1e-4
_RATES = (-1.0, 0.0, 1.0)
_JUMP = 0.01


@dataclass(frozen=True)
class Shift:
    """The comparison of one quantity.

    Attributes:
        kind: the test: Kolmogorov and Smirnov's for numbers, chi-square for classes.
        statistic: the largest difference of the distribution functions, or chi-square.
        p_value: of the hypothesis that reference and new rows have the same distribution.
        psi: population stability index, a size of the change; by custom below 0.1 is small, above 0.25 is large.
        reference: mean of the reference rows; None for classes.
        new: mean of the new rows.
    """

    kind: Literal["ks", "chi_square"]
    statistic: float
    p_value: float
    psi: float
    reference: float | None = None
    new: float | None = None


def shift_of_numbers(reference_E: FloatArray, new_E: FloatArray) -> Shift:
    """Compare the distributions of a number.

    Many equal values make the test conservative.

    Raises:
        ValueError: an array is empty, or has values that are not finite.
    """
    for name, values in (("reference", reference_E), ("new", new_E)):
        if not len(values) or not np.isfinite(values).all():
            raise ValueError(f"{name} values must be one or more finite numbers")
    result = stats.ks_2samp(reference_E, new_E)
    # the number of different edges is what ties leave of the bins
    edges = np.unique(np.quantile(reference_E, np.linspace(0, 1, NUM_BINS + 1)[1:-1]))
    counts = [
        np.bincount(np.searchsorted(edges, values, "left"), minlength=len(edges) + 1) for values in (reference_E, new_E)
    ]
    psi = stability_index(*counts)
    return Shift(
        "ks", float(result.statistic), float(result.pvalue), psi, float(reference_E.mean()), float(new_E.mean())
    )


def shift_of_classes(reference_C: IntArray, new_C: IntArray) -> Shift:
    """Compare the counts of classes.

    Raises:
        ValueError: counts of different numbers of classes, negative ones, or none at all.
    """
    if reference_C.shape != new_C.shape or min(reference_C.min(initial=0), new_C.min(initial=0)) < 0:
        raise ValueError("counts must be of the same classes, and not negative")
    if not reference_C.sum() or not new_C.sum():
        raise ValueError("there are no reference rows, or no new ones")
    table = _pooled(np.stack([reference_C, new_C]))
    psi = stability_index(reference_C, new_C)
    if table.shape[1] < 2:
        return Shift("chi_square", 0.0, 1.0, psi)
    result = stats.chi2_contingency(table, correction=False)
    return Shift("chi_square", float(result.statistic), float(result.pvalue), psi)


def _pooled(table: IntArray) -> IntArray:
    """The counts `[2, C]` with rare classes as one."""
    expected = table.sum(axis=0) * table.sum(axis=1).min() / table.sum()
    rare = expected < _LEAST_EXPECTED
    if not rare.any():
        return table
    rest = table[:, rare].sum(axis=1, keepdims=True)
    kept = table[:, ~rare]
    if kept.shape[1] and rest.sum() * table.sum(axis=1).min() / table.sum() < _LEAST_EXPECTED:
        smallest = int(kept.sum(axis=0).argmin())
        kept[:, smallest] += rest[:, 0]
        return kept
    return np.concatenate([kept, rest], axis=1)


def stability_index(reference_B: IntArray, new_B: IntArray) -> float:
    """The population stability index, `sum_b (q_b - p_b) ln(q_b / p_b)`, of counts in bins.

    Shares are at least `_SMALLEST_SHARE`, by custom, so that an empty bin does not make it infinite.
    """
    p_B, q_B = (np.maximum(counts / counts.sum(), _SMALLEST_SHARE) for counts in (reference_B, new_B))
    return float(((q_B - p_B) * np.log(q_B / p_B)).sum())


def level_of_look(alpha: float, look: int) -> float:
    """The level of the k-th look, `6 alpha / (pi k)^2`: over any number of looks they add up to at most `alpha`."""
    if look < 1:
        raise ValueError(f"look is {look}; the first is 1")
    return 6 * alpha / (math.pi * look) ** 2


def rejected(p_values: Mapping[str, float], level: float) -> tuple[str, ...]:
    """The names of hypotheses that Holm's procedure rejects at this level, which holds for all of them together.

    Source: Holm, A simple sequentially rejective multiple test procedure (1979).
    """
    names = sorted(p_values, key=lambda name: p_values[name])
    for index, name in enumerate(names):
        if p_values[name] > level / (len(names) - index):
            return tuple(names[:index])
    return tuple(names)


def errors_p_value(num_errors: int, num_rows: int, target_error: float) -> float:
    """The p-value of the hypothesis that the error is at most the target, from independent rows; 1 without rows."""
    return float(stats.binom.sf(num_errors - 1, num_rows, target_error))


def conformal_p_values(reference_E: FloatArray, new_E: FloatArray, seed: int = 0) -> FloatArray:
    """The smoothed rank of each new score among the reference scores and the new ones up to it, in (0, 1].

    If all rows are exchangeable, they are independent and uniform. Small ones are of scores that are high for their
    predecessors.

    Args:
        reference_E: scores of reference rows, such as losses.
        new_E: scores of new rows, in the order in which they came.
        seed: of the draws that break ties.

    Source: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World (2005), chapter 7.
    """
    draws = np.random.default_rng(seed).uniform(size=len(new_E))
    ranked = sorted(np.asarray(reference_E, dtype=np.float64).tolist())
    p_values = np.empty(len(new_E))
    for index, score in enumerate(np.asarray(new_E, dtype=np.float64).tolist()):
        low, high = bisect_left(ranked, score), bisect_right(ranked, score)
        above, equal = len(ranked) - high, high - low + 1
        p_values[index] = (above + (1 - draws[index]) * equal) / (len(ranked) + 1)
        ranked.insert(high, score)
    return p_values


def log_martingale(p_values_E: FloatArray) -> FloatArray:
    """The logarithm of the Simple Jumper martingale after each p-value, `[E]`.

    A player starts with 1 and bets that p-values are too small, too large, or uniform, and changes the bet now and
    then. If they are uniform, the capital ever reaches 1 / alpha with a probability of at most alpha (Ville), so it may
    be looked at after every row.

    Source: Vovk, Petej, Nouretdinov, Ahlberg, Carlsson and Gammerman, Retrain or not retrain (2021), algorithm 1.
    """
    capital = np.full(len(_RATES), 1 / len(_RATES))
    logs, log_total = np.empty(len(p_values_E)), 0.0
    for index, p_value in enumerate(p_values_E):
        capital = (1 - _JUMP) * capital + _JUMP * capital.sum() / len(_RATES)
        capital = capital * (1 + np.array(_RATES) * (p_value - 0.5))
        total = float(capital.sum())
        log_total += math.log(total)
        capital /= total  # only the shares are kept, so that long streams do not overflow
        logs[index] = log_total
    return logs
