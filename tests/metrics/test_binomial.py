"""Exact binomial tests, bounds and numbers of rows, against SciPy's and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lorchestra.metrics.binomial import exact_interval, fewest_rows, p_value, rows_for_rate, upper_bound, upper_bounds


def test_p_values_are_scipys() -> None:
    errors, rows = np.array([0, 3, 10, 59, 7]), np.array([59, 100, 100, 59, 2000])
    np.testing.assert_allclose(p_value(errors, rows, 0.05), stats.binom.cdf(errors, rows, 0.05), rtol=1e-10)


def test_without_rows_nothing_is_rejected() -> None:
    assert p_value(0, 0, 0.05) == 1.0
    assert upper_bound(0, 0, 0.95) == 1.0
    assert exact_interval(0, 0, 0.95) == (0.0, 1.0)


@pytest.mark.parametrize(("errors", "rows"), [(0, 1), (0, 59), (3, 100), (100, 100), (1, 2)])
def test_bounds_and_intervals_are_scipys(errors: int, rows: int) -> None:
    test = stats.binomtest(errors, rows, alternative="less")
    assert upper_bound(errors, rows, 0.9) == pytest.approx(test.proportion_ci(0.9, "exact").high, rel=1e-9)
    two_sided = stats.binomtest(errors, rows).proportion_ci(0.95, "exact")
    assert exact_interval(errors, rows, 0.95) == pytest.approx((two_sided.low, two_sided.high), rel=1e-9)


def test_a_bound_below_the_rate_is_a_small_p_value() -> None:
    errors, rows = np.meshgrid(np.arange(40), np.arange(1, 400))
    np.testing.assert_array_equal(upper_bounds(errors, rows, 0.95) <= 0.05, p_value(errors, rows, 0.05) <= 0.05)


def test_fewest_rows_by_hand() -> None:
    # 0.95^58 = 0.0510 and 0.95^59 = 0.0485
    assert fewest_rows(0.05, 0.05) == 59
    assert fewest_rows(0.01, 0.05) == 299
    assert fewest_rows(0.5, 0.5) == 1


@pytest.mark.parametrize(("rate", "level"), [(0.05, 0.05), (0.1, 0.01), (0.001, 0.05), (0.5, 0.25), (0.9, 0.5)])
def test_one_row_fewer_is_not_enough(rate: float, level: float) -> None:
    fewest = fewest_rows(rate, level)
    assert p_value(0, fewest, rate) <= level + 1e-12
    assert fewest == 1 or p_value(0, fewest - 1, rate) > level


def test_rows_for_a_rate() -> None:
    without, some, close, same = rows_for_rate([0.0, 0.02, 0.0499, 0.05], 0.05, 0.05)
    assert without == 59
    # whole numbers of errors on both sides of the continued bound: 2 % of 200 and of 250 rows
    assert upper_bound(4, 200, 0.95) <= 0.05 < upper_bound(3, 150, 0.95)
    assert 150 < some <= 200
    assert np.isinf([close, same]).all()
