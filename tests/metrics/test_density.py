"""The kernel density against known answers: its area, its bandwidth, its behavior at the bounds."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from lorchestra.metrics.density import kernel_density

GRID = np.linspace(0, 1, 2001)


@pytest.mark.parametrize("samples", [np.full(3, 1.0), np.array([0.4]), np.random.default_rng(0).beta(8, 1, 200)])
def test_a_density_of_confidences_integrates_to_one(samples: NDArray[np.float64]) -> None:
    assert np.trapezoid(kernel_density(samples, GRID, 0, 1), GRID) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    "values", [[0.7], [0.5, 0.5, 0.5], list(np.random.default_rng(0).uniform(0.5, 1, 200)), [1.0, 0.99]]
)
def test_a_density_has_area_one_even_at_its_bounds(values: list[float]) -> None:
    grid = np.linspace(0.5, 1.0, 4001)
    assert np.trapezoid(kernel_density(np.array(values), grid, 0.5, 1.0), grid) == pytest.approx(1.0, abs=2e-3)


def test_a_density_peaks_where_its_values_are() -> None:
    grid = np.linspace(0, 1, 101)
    height = kernel_density(np.array([0.6] * 6 + [0.9]), grid, 0.0, 1.0)
    assert grid[height.argmax()] == pytest.approx(0.6)
    # the quartiles are equal, so the bandwidth is at its minimum, 0.01: two separate peaks, with mass 6/7 and 1/7
    top = 1 / (0.01 * np.sqrt(2 * np.pi))
    assert height[[60, 90]] == pytest.approx([6 / 7 * top, 1 / 7 * top])


def test_a_value_on_a_bound_has_its_whole_mass_inside() -> None:
    # Mirrored at 1, the kernel of a value at 1 counts twice there.
    assert kernel_density(np.array([1.0]), np.array([1.0]), 0, 1)[0] == pytest.approx(2 / (0.01 * np.sqrt(2 * np.pi)))
    # Values that rounding lifts above the bound count as on it.
    lifted = kernel_density(np.array([1.0 + 1e-12]), GRID, 0, 1)
    np.testing.assert_allclose(lifted, kernel_density(np.array([1.0]), GRID, 0, 1))


def test_the_density_is_scipys_away_from_the_ends() -> None:
    samples = np.random.default_rng(1).normal(0.5, 0.05, 300)
    iqr = np.subtract(*np.quantile(samples, [0.75, 0.25]))
    width = 0.9 * min(samples.std(ddof=1), iqr / 1.34) * 300**-0.2
    expected = stats.gaussian_kde(samples, bw_method=width / samples.std(ddof=1))(GRID)
    np.testing.assert_allclose(kernel_density(samples, GRID, 0, 1), expected, atol=1e-9)


def test_no_values_have_no_density() -> None:
    with pytest.raises(ValueError, match="at least one"):
        kernel_density(np.array([]), GRID, 0, 1)
