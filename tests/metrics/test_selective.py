"""Shares automated, confident errors and E-AURC: known answers, ties, and against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lorchestra.metrics import scores
from lorchestra.metrics.selective import resampled_aurc, selective_metrics, share_automated
from lorchestra.metrics.table import AUTOMATED


def rows(*confidence_and_right: tuple[float, bool]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    confidence, right = zip(*confidence_and_right, strict=True)
    return np.array(confidence), np.array(right, dtype=np.float64)


def share(confidence: NDArray[np.float64], right: NDArray[np.float64], target: float) -> float:
    return float(share_automated(confidence, right, np.ones((1, len(right))), target)[0])


def metrics_of(confidence: NDArray[np.float64], right: NDArray[np.float64]) -> dict[str, float]:
    values = selective_metrics(confidence, right, np.ones((1, len(right))))
    return {key: float(value[0]) for key, value in values.items()}


def test_all_right_and_all_wrong() -> None:
    confidence = np.linspace(0.5, 1, 40)
    right = metrics_of(confidence, np.ones(40))
    assert right == {**dict.fromkeys(AUTOMATED, 1.0), "aurc": 0.0, "excess_aurc": 0.0}
    wrong = metrics_of(confidence, np.zeros(40))
    # every order of wrong answers is the ideal one
    assert wrong == {**dict.fromkeys(AUTOMATED, 0.0), "aurc": 1.0, "excess_aurc": 0.0}


@pytest.mark.parametrize("right", [True, False])
def test_one_row(right: bool) -> None:
    values = metrics_of(*rows((0.7, right)))
    assert values["automated_5"] == float(right)
    assert values["aurc"] == float(not right)
    assert values["excess_aurc"] == 0.0


def test_one_error_in_twenty_rows_is_five_percent() -> None:
    confidence, right = np.linspace(1.0, 0.6, 20), np.ones(20)
    right[-1] = 0
    assert share(confidence, right, 0.05) == 1.0
    assert share(confidence, right, 0.049) == 0.95
    for percent in range(1, 100):  # whatever the product of target and rows rounds to
        wrong = np.arange(100) < percent
        assert share(np.full(100, 0.9), 1.0 - wrong, percent / 100) == 1.0


def test_the_largest_share_counts_though_a_smaller_one_has_more_errors() -> None:
    confidence, right = np.linspace(1.0, 0.6, 20), np.ones(20)
    right[0] = 0  # the most confident answer is wrong: the error is 1, 1/2, ... and 1/20 of all rows
    assert share(confidence, right, 0.05) == 1.0
    assert share(confidence, right, 0.04) == 0.0


def test_equal_confidences_are_answered_together() -> None:
    # one of the two rows at 0.9 is wrong: both or none, whatever their order
    for order in ([0, 1, 2, 3], [0, 2, 1, 3]):
        confidence, right = rows((0.95, True), (0.9, True), (0.9, False), (0.5, False))
        assert share(confidence, right[order], 0.2) == 0.25
        assert share(confidence, right[order], 1 / 3) == 0.75
    assert share(np.full(10, 0.7), np.arange(10) > 0, 0.05) == 0.0
    assert share(np.full(10, 0.7), np.arange(10) > 0, 0.1) == 1.0


def test_the_excess_is_over_the_order_with_all_right_answers_first() -> None:
    # 0 1 0 (wrong is 1) has risks 0, 1/2, 1/3; the ideal 0 0 1 has 0, 0, 1/3
    values = metrics_of(*rows((0.9, True), (0.8, False), (0.7, True)))
    assert values["aurc"] == pytest.approx((1 / 2 + 1 / 3) / 3)
    assert values["excess_aurc"] == pytest.approx((1 / 2) / 3)
    ideal = metrics_of(*rows((0.9, True), (0.8, True), (0.7, False)))
    assert ideal["excess_aurc"] == 0.0
    # Geifman, Uziel and El-Yaniv approximate the ideal by r + (1 - r) ln(1 - r)
    right = np.arange(10_000) < 8_000
    aurc = resampled_aurc(-np.arange(10_000.0), right.astype(np.float64), np.ones((1, 10_000)))[0]
    assert aurc == pytest.approx(0.2 + 0.8 * np.log(0.8), abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_shares_are_those_of_a_plain_loop(seed: int) -> None:
    generator = np.random.default_rng(seed)
    confidence = generator.integers(20, size=300) / 20
    right = (generator.random(300) < 0.6 + 0.4 * confidence).astype(np.float64)
    for target in (0.01, 0.02, 0.05, 0.1, 0.3):
        best = 0.0
        for threshold in np.unique(confidence):
            taken = confidence >= threshold
            if (1 - right[taken]).mean() <= target + 1e-12:
                best = max(best, taken.mean())
        assert share(confidence, right, target) == pytest.approx(best)


def test_confident_errors_are_wrong_with_ninety_percent_or_more() -> None:
    log_probs = np.log([[0.9, 0.1], [0.1, 0.9], [0.89, 0.11], [0.95, 0.05]])
    labels = np.array([1, 1, 1, 1])  # wrong at 0.9, right at 0.9, wrong below, wrong above
    assert scores.confident_errors(log_probs, labels) == 0.5
    assert scores.confident_errors(log_probs, np.array([0, 1, 1, 0])) == 0.0
