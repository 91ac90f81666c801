"""Exact binomial tests and intervals, and the number of rows that they need. NumPy and SciPy only.

Source: Clopper and Pearson, Biometrika 26 (1934), 404-413.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from lorchestra.metrics.predictive import FloatArray

MOST_ROWS = 1_000_000
"""`rows_for_rate` gives up above this many rows: an error rate so close to the target is not worth labelling for."""


def p_value(errors: ArrayLike, num_rows: ArrayLike, rate: float) -> FloatArray:
    """Probability of at most as many errors if each row is wrong with probability `rate`, elementwise.

    It is a valid p-value of the hypothesis "the error rate is at least `rate`"; 1 without rows.
    """
    errors, num_rows = np.asarray(errors), np.asarray(num_rows)
    with np.errstate(invalid="ignore"):
        below = special.bdtr(errors.astype(np.float64), num_rows, rate)
    return np.asarray(np.where(errors >= num_rows, 1.0, below))


def upper_bounds(errors: ArrayLike, num_rows: ArrayLike, confidence: float) -> FloatArray:
    """Clopper-Pearson's one-sided upper bound of an error rate, elementwise; 1 where no row is right."""
    errors, num_rows = np.asarray(errors, dtype=np.float64), np.asarray(num_rows, dtype=np.float64)
    right = num_rows - errors
    bounds = special.betaincinv(errors + 1, np.where(right > 0, right, 1.0), confidence)
    return np.asarray(np.where(right > 0, bounds, 1.0))


def upper_bound(errors: int, num_rows: int, confidence: float) -> float:
    """`upper_bounds` of one rate."""
    return float(upper_bounds(errors, num_rows, confidence))


def exact_interval(successes: int, num_rows: int, confidence: float) -> tuple[float, float]:
    """Clopper-Pearson's two-sided interval of a share; (0, 1) without rows."""
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(special.betaincinv(successes, num_rows - successes + 1, tail))
    return low, upper_bound(successes, num_rows, 1 - tail)


def fewest_rows(rate: float, level: float) -> int:
    """Fewest rows that can show an error rate of at most `rate` at this level: all right, (1 - rate)^n <= level."""
    return max(1, math.ceil(math.log(level) / math.log1p(-rate) - 1e-9))


def rows_for_rate(observed: ArrayLike, rate: float, level: float) -> FloatArray:
    """Rows whose upper bound is at most `rate` if a share `observed` of them is wrong, elementwise.

    Infinite above `MOST_ROWS`. The expected number of errors need not be whole: the bound is continued between whole
    numbers, and so falls steadily with the number of rows. About half of such samples pass.
    """
    observed = np.asarray(observed, dtype=np.float64)

    def passes(num_rows: FloatArray) -> NDArray[np.bool_]:
        # the same as `upper_bounds(...) <= rate`, without the inverse
        errors = np.minimum(observed, rate) * num_rows
        return np.asarray(special.betainc(errors + 1, num_rows - errors, rate) >= 1 - level)

    low, high = np.zeros(observed.shape), np.full(observed.shape, float(MOST_ROWS))
    possible = (observed < rate) & passes(high)
    for _ in range(math.ceil(math.log2(2 * MOST_ROWS))):
        middle = (low + high) / 2
        enough = passes(middle)
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(possible, np.ceil(high - 0.5), np.inf)
