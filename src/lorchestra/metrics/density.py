"""Kernel density of numbers in a bounded range, for every figure of confidences.

Axes: `E` example, `K` grid point.
"""

from __future__ import annotations

import numpy as np

from lorchestra.metrics.predictive import FloatArray

MIN_BANDWIDTH = 0.01
"""Smallest bandwidth, as a share of the range: equal values give a narrow peak, not a spike without width."""


def kernel_density(values_E: FloatArray, grid_K: FloatArray, low: float, high: float) -> FloatArray:
    """Gaussian kernel density of values in [low, high] on a grid in that range, `[K]`; it integrates to 1 there.

    Values are mirrored at both bounds, so that no mass leaks out of the range. The bandwidth is Silverman's rule of
    thumb, 0.9 min(standard deviation, IQR / 1.34) E^(-1/5), at least `MIN_BANDWIDTH` of the range. Values outside the
    range, which rounding can produce, are moved to the bound.

    Raises:
        ValueError: there is no value.

    Source: Silverman, Density Estimation for Statistics and Data Analysis (1986), sections 2.10 and 3.4.2.
    """
    values = np.clip(np.asarray(values_E, dtype=np.float64), low, high)
    if not len(values):
        raise ValueError("a density needs at least one value")
    quarter, three_quarters = np.quantile(values, [0.25, 0.75])
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    spread = min(deviation, (three_quarters - quarter) / 1.34)
    width = max(0.9 * spread * len(values) ** -0.2, MIN_BANDWIDTH * (high - low))
    centers = np.concatenate([values, 2 * low - values, 2 * high - values])
    # Point by point: a matrix of all points and all rows of many members would not fit into memory.
    sums_K = np.array([np.exp(-0.5 * np.square((point - centers) / width)).sum() for point in grid_K])
    return np.asarray(sums_K / (len(values) * width * np.sqrt(2 * np.pi)))
