"""The ECE on few rows, against direct simulations, and the coverage of its interval."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lorchestra.metrics import scores as metrics
from lorchestra.metrics.calibration import calibrated_ece, ece_interval

FloatArray = NDArray[np.float64]


def two_choices(confidence_E: FloatArray, right_E: NDArray[np.bool_]) -> metrics.RowScores:
    """Rows that answer choice 0 with this confidence."""
    log_probs = np.log(np.stack([confidence_E, 1 - confidence_E], axis=1))
    return metrics.score_rows(log_probs, np.where(right_E, 0, 1))


def test_the_reference_is_the_ece_of_calibrated_rows() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.55, 0.99, 80)
    direct = []
    for _ in range(4000):
        rows = two_choices(confidence, generator.random(80) < confidence)
        direct.append(metrics.resampled_metrics(rows, np.ones((1, 80)))["ece"][0])
    reference = calibrated_ece(two_choices(confidence, np.ones(80, dtype=bool)), 4000, seed=1)
    assert reference.mean == pytest.approx(np.mean(direct), rel=0.02)
    assert [reference.low, reference.high] == pytest.approx(np.quantile(direct, [0.025, 0.975]), rel=0.05)


def test_the_reference_of_one_bin_is_known() -> None:
    # Four rows of confidence 0.5: |2 - hits| / 4 with hits binomial: 0 (6/16), 0.25 (8/16), 0.5 (2/16); mean 0.1875.
    log_probs = np.log(np.full((4, 2), 0.5))
    reference = calibrated_ece(metrics.score_rows(log_probs, np.zeros(4, dtype=np.int64)), 20_000, seed=0)
    assert reference.mean == pytest.approx(0.1875, abs=0.004)
    assert (reference.low, reference.high) == (0.0, 0.5)


def test_the_reference_ignores_the_answers_and_falls_with_the_number_of_rows() -> None:
    confidence = np.linspace(0.6, 0.95, 100)
    always, never = (two_choices(confidence, np.full(100, right)) for right in (True, False))
    assert calibrated_ece(always, 200, seed=3) == calibrated_ece(never, 200, seed=3)
    many = two_choices(np.tile(confidence, 16), np.full(1600, True))
    # Noise falls as one over the root of the rows: a quarter at sixteen times as many.
    few_mean, many_mean = (calibrated_ece(rows, 2000, seed=3).mean for rows in (always, many))
    assert many_mean == pytest.approx(few_mean / 4, rel=0.1)


def test_the_interval_starts_at_zero_if_the_value_is_within_the_reference() -> None:
    generator = np.random.default_rng(1)
    confidence = generator.uniform(0.55, 0.99, 300)
    for shift, miscalibrated in ((0.0, False), (0.3, True)):
        rows = two_choices(confidence, generator.random(300) < confidence - shift)
        reference = calibrated_ece(rows, 500, seed=0)
        observed = metrics.resampled_metrics(rows, np.ones((1, 300)))["ece"][0]
        low, high = ece_interval(rows, reference, 500, seed=0)
        assert (low > 0) == (observed > reference.high) == miscalibrated
        assert low <= observed <= high


def test_rows_that_are_all_right_leave_room_for_errors() -> None:
    # 30 rows have confidence 0.99 and all are right: the true accuracy may still be 0.9, an ECE of 0.09.
    rows = two_choices(np.full(30, 0.99), np.ones(30, dtype=bool))
    low, high = ece_interval(rows, calibrated_ece(rows, 1000, seed=0), 1000, seed=0)
    assert low == 0
    assert high >= 0.01


def test_the_interval_is_the_same_for_the_same_seed() -> None:
    generator = np.random.default_rng(2)
    confidence = generator.uniform(0.55, 0.99, 200)
    rows = two_choices(confidence, generator.random(200) < confidence - 0.1)
    reference = calibrated_ece(rows, 300, seed=0)
    assert ece_interval(rows, reference, 300, seed=5) == ece_interval(rows, reference, 300, seed=5)


def test_no_simulation_is_refused() -> None:
    with pytest.raises(ValueError, match="simulations is 0"):
        calibrated_ece(two_choices(np.array([0.9]), np.array([True])), 0, seed=0)
