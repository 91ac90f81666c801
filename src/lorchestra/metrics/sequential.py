"""Which threshold passes: tests from strict to lax with a divided error budget. NumPy and SciPy only.

How. Thresholds t_1 > t_2 > ... are fixed without looking at the certification rows, from scores of other rows of the
same kind. Hypothesis H_j is "the error rate among rows with score >= t_j is above the target". Given the number of
certification rows above t_j, their errors are binomial, so the exact binomial tail is a valid p-value. The hypotheses
are tested from strict to lax. A few of them, the starts, hold equal parts of the error budget 1 - confidence; the
others hold nothing. A rejected hypothesis passes all it has on to the next one, in addition to what that one holds.
The laxest rejected threshold is the result. With one start this is fixed-sequence testing.

Why it is valid. Let i be the first true hypothesis that is rejected. No true one before it was, so its level is at most
the sum of what the hypotheses after the previous true one, up to i, hold: a number fixed in advance. The chance of
rejecting it is at most that number, and over all true hypotheses these numbers sum to at most the budget. How the
tests depend on each other does not matter, and the error need not fall with the score.

Why several starts. With one start at few rows, one early error refuses everything; with one at many rows, a steep error
curve does. Where the certification rows are many, up to `MAX_STARTS` starts are spread between the fewest rows that can
pass and half of all rows.

Axes: `E` example, `K` threshold.

Sources: arXiv 2110.01052 (Learn then Test) for thresholds as multiple testing, with several starts; Wiens,
Pharmaceutical Statistics 2 (2003), 211-215, and Wiens and Dmitrienko, J. Biopharm. Stat. 15 (2005), 929-942, for
passing the budget on (the fallback procedure); arXiv 1705.08500 for selective classification with binomial bounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lorchestra.metrics.binomial import fewest_rows, rows_for_rate
from lorchestra.metrics.predictive import FloatArray, tie_groups

MAX_STARTS = 4
"""Most parts of the error budget; more, or parts by the labels of the reference rows, gained nothing in simulations."""

NUM_THRESHOLDS = 100
"""Most thresholds in a sequence: steps of 1 % of the reference rows."""

FIXED_THRESHOLDS = 1.0 - np.logspace(-3, 0, 61)
"""Thresholds without reference rows, for scores in [0, 1]."""

FIXED_STARTS = (0.999, 0.99, 0.95, 0.8)
"""Where parts of the error budget are among them."""


@dataclass(frozen=True, slots=True)
class ThresholdSequence:
    """Thresholds `[K]` from strict to lax, and the error budget that each holds before the tests, `[K]`."""

    thresholds: FloatArray
    budget: FloatArray


def fixed_sequence(scores_E: FloatArray, level: float) -> ThresholdSequence:
    """Thresholds for scores in [0, 1] without reference rows; the lowest is 0, all rows.

    Raises:
        ValueError: a score is outside [0, 1].
    """
    if scores_E.min() < 0 or scores_E.max() > 1:
        raise ValueError("scores are outside [0, 1]: give reference scores, which determine the thresholds")
    budget_K = np.zeros(len(FIXED_THRESHOLDS))
    for start in FIXED_STARTS:
        budget_K[np.argmin(np.abs(FIXED_THRESHOLDS - start))] += level / len(FIXED_STARTS)
    return ThresholdSequence(FIXED_THRESHOLDS, budget_K)


def threshold_sequence(
    reference_scores_E: FloatArray, num_rows: int, target_error: float, level: float
) -> ThresholdSequence:
    """The thresholds to test on `num_rows` certification rows, from scores of other rows.

    A threshold is halfway between two neighboring scores, so that rounding separates no equal scores.

    Raises:
        ValueError: there is no reference score, or one is not finite.
    """
    reference_scores_E = check_reference(reference_scores_E)
    order_E, starts_G = tie_groups(reference_scores_E)
    ends_G = np.append(starts_G[1:], len(order_E))
    steps = np.arange(1, NUM_THRESHOLDS + 1) * len(order_E) / NUM_THRESHOLDS
    groups_K = np.unique(np.searchsorted(ends_G, steps - 1e-9))
    sorted_E = reference_scores_E[order_E]
    lowest = sorted_E[-1] - 1e-9 * max(1.0, abs(float(sorted_E[-1])))
    below_G = np.append(sorted_E[starts_G[1:]], 2 * lowest - sorted_E[-1])
    thresholds_K = (sorted_E[ends_G - 1] + below_G)[groups_K] / 2
    coverage_K = ends_G[groups_K] / len(order_E)
    return ThresholdSequence(thresholds_K, start_budget(coverage_K, num_rows, target_error, level))


def start_budget(coverage_K: FloatArray, num_rows: int, target_error: float, level: float) -> FloatArray:
    """Where the error budget is in a sequence with these expected coverages (rising, `[K]`), `[K]`.

    The first start is at the fewest rows that can pass with its part of the budget, plus two standard deviations of
    that number; where even all rows are fewer, at the laxest threshold. The last one is at half of all rows, and the
    others are between them at equal ratios.
    """
    num_starts = _num_starts(num_rows, target_error, level)
    first = _first_start(target_error, level / num_starts)
    budget_K = np.zeros(len(coverage_K))
    for rows in np.geomspace(first, max(num_rows / 2, first), num_starts):
        budget_K[min(int(np.searchsorted(coverage_K * num_rows, rows)), len(coverage_K) - 1)] += level / num_starts
    return budget_K


def last_rejected(p_values_K: FloatArray, budget_K: FloatArray) -> int | None:
    """Index of the laxest rejected hypothesis; None if none is; see the module's docstring."""
    last, carried = None, 0.0
    for index, (p, held) in enumerate(zip(p_values_K.tolist(), budget_K.tolist(), strict=True)):
        carried += held
        if carried > 0 and p <= carried:
            last = index
        else:
            carried = 0.0
    return last


def _first_start(target_error: float, level: float) -> float:
    fewest = fewest_rows(target_error, level)
    return fewest + 2 * math.sqrt(fewest)


def _num_starts(num_rows: int, target_error: float, level: float) -> int:
    """As many starts as the rows allow if each had twice the rows of the previous one."""
    for number in range(MAX_STARTS, 1, -1):
        if _first_start(target_error, level / number) * 2 ** (number - 1) <= num_rows:
            return number
    return 1


def total_needed(rates_K: FloatArray, shares_K: FloatArray, target_error: float, level: float) -> float:
    """Rows, automated or not, with which one of the thresholds would pass as a start; infinite if none would.

    Args:
        rates_K: error rates among the automated rows.
        shares_K: shares of rows that are automated.
        target_error: the rate to pass.
        level: the whole error budget.
    """
    total = math.inf
    for num_starts in range(1, MAX_STARTS + 1):
        total = float(np.ceil(rows_for_rate(rates_K, target_error, level / num_starts) / shares_K - 1e-9).min())
        if math.isinf(total) or _num_starts(int(total), target_error, level) <= num_starts:
            break
    return total


def check_reference(reference_scores_E: FloatArray) -> FloatArray:
    """Reference scores as float64 `[E]`.

    Raises:
        ValueError: there is none, or one is not finite.
    """
    reference_scores_E = np.asarray(reference_scores_E, dtype=np.float64)
    if reference_scores_E.ndim != 1 or not len(reference_scores_E):
        raise ValueError("there are no reference scores")
    if (bad := np.flatnonzero(~np.isfinite(reference_scores_E))).size:
        raise ValueError(f"reference score {bad[0]} is {reference_scores_E[bad[0]]}, not a finite number")
    return reference_scores_E
