"""The Mahalanobis distance from training rows: known answers, and scikit-learn's shrunk covariance."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from lorchestra.metrics.distance import Gaussian


def test_with_many_rows_it_counts_standard_deviations():
    """Features with standard deviations 1 and 10 around (5, -3)."""
    signs = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    scale, mean = np.array([1.0, 10.0]), np.array([5.0, -3.0])
    gaussian = Gaussian.fit(np.tile(signs, (50_000, 1)) * scale + mean)
    # shrunk a little: the variances become 1 + 49.5 s and 100 - 49.5 s
    assert gaussian.shrinkage < 1e-4
    rows = mean + np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 30.0], [3.0, 40.0]])
    assert_allclose(gaussian.distance(rows), [0.0, 3.0, 3.0, 5.0], rtol=1e-3, atol=1e-12)


def test_the_shrinkage_is_that_of_ledoit_and_wolf_by_hand():
    """Rows (2, 0), (-2, 0), (0, 1), (0, -1): S = diag(2, 0.5), tr S / D = 1.25, |S - 1.25 I|^2 = 1.125.

    The noise is (mean |x|^4 - |S|^2) / E = (34 / 4 - 4.25) / 4 = 1.0625, so s = 1.0625 / 1.125 = 17 / 18.
    """
    gaussian = Gaussian.fit(np.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    assert gaussian.shrinkage == pytest.approx(17 / 18)
    variances = [2 / 18 + 17 / 18 * 1.25, 0.5 / 18 + 17 / 18 * 1.25]
    assert_allclose(gaussian.root_DD @ gaussian.root_DD.T, np.diag(variances), atol=1e-15)
    assert_allclose(gaussian.distance(np.array([[3.0, 0.0]])), [3 / np.sqrt(variances[0])])


@pytest.mark.parametrize("num_rows", [7, 40, 300])
def test_covariance_and_distance_are_scikit_learns(num_rows):
    covariance = pytest.importorskip("sklearn.covariance")
    draw = np.random.default_rng(num_rows)
    mixing = draw.normal(size=(40, 40)) * np.geomspace(10, 0.01, 40)
    train, rows = (draw.normal(size=(number, 40)) @ mixing + 3 for number in (num_rows, 25))
    gaussian, expected = Gaussian.fit(train), covariance.LedoitWolf().fit(train)
    assert gaussian.shrinkage == pytest.approx(expected.shrinkage_)
    assert_allclose(gaussian.root_DD @ gaussian.root_DD.T, expected.covariance_, rtol=1e-9, atol=1e-9)
    assert_allclose(gaussian.distance(rows) ** 2, expected.mahalanobis(rows), rtol=1e-6)


def test_moving_turning_and_scaling_all_rows_changes_nothing():
    draw = np.random.default_rng(0)
    train, rows = draw.normal(size=(30, 8)) * np.arange(1, 9), draw.normal(size=(5, 8))
    turn, _ = np.linalg.qr(draw.normal(size=(8, 8)))
    moved = Gaussian.fit(7 * train @ turn + 2).distance(7 * rows @ turn + 2)
    assert_allclose(moved, Gaussian.fit(train).distance(rows))


def test_rows_on_a_line_have_a_distance_in_every_direction():
    gaussian = Gaussian.fit(np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]] * 500))
    along, across = gaussian.distance(np.array([[3.5, 3.5], [3.5, 1.5]]))
    assert across > 10 * along > 0
    assert np.isfinite(Gaussian.fit(np.array([[1.0, 0.0], [-1.0, 0.0]])).distance(np.array([[0.0, 1.0]]))).all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((0, 3)), "at least two different"),
        (np.ones((1, 3)), "at least two different"),
        (np.full((9, 3), 0.1), "at least two different"),
        (np.array([[0.0, np.inf], [1.0, 0.0]]), "not finite"),
    ],
)
def test_rows_without_a_covariance_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        Gaussian.fit(rows)
