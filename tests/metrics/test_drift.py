"""Tests for shifts: known answers, and how often they alarm when nothing has changed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lorchestra.metrics.drift import (
    conformal_p_values,
    errors_p_value,
    level_of_look,
    log_martingale,
    rejected,
    shift_of_classes,
    shift_of_numbers,
    stability_index,
)


def at_most(count, trials, level):
    """Whether a share of alarms is compatible with a rate of at most `level` (one-sided, 1 in 10,000)."""
    return stats.binom.sf(count - 1, trials, level) > 1e-4


def test_the_distance_of_two_known_samples():
    shift = shift_of_numbers(np.arange(1.0, 11.0), np.arange(6.0, 16.0))
    assert shift.statistic == pytest.approx(0.5)
    assert (shift.reference, shift.new) == (5.5, 10.5)
    same = shift_of_numbers(np.arange(10.0), np.arange(10.0))
    assert (same.statistic, same.p_value) == (0.0, 1.0)
    assert same.psi == pytest.approx(0.0)


def test_equal_values_and_one_row():
    shift = shift_of_numbers(np.ones(50), np.ones(1))
    assert (shift.statistic, shift.psi) == (0.0, pytest.approx(0.0))
    assert shift_of_numbers(np.ones(50), np.zeros(20)).p_value < 1e-6


@pytest.mark.parametrize("values", [np.array([]), np.array([np.nan]), np.array([np.inf, 1.0])])
def test_values_that_cannot_be_compared(values):
    with pytest.raises(ValueError, match="one or more finite numbers"):
        shift_of_numbers(np.ones(3), values)


def test_counts_of_classes():
    shift = shift_of_classes(np.array([50, 50]), np.array([80, 20]))
    expected = stats.chi2_contingency([[50, 50], [80, 20]], correction=False)
    assert (shift.statistic, shift.p_value) == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))
    assert shift_of_classes(np.array([30, 0]), np.array([10, 0])).p_value == 1.0
    # three rare classes are one, which joins the smallest if it is rare as well
    pooled = shift_of_classes(np.array([60, 30, 4, 3, 3]), np.array([60, 30, 4, 3, 3]))
    assert (pooled.statistic, pooled.p_value) == (0.0, 1.0)
    rare = shift_of_classes(np.array([90, 9, 1]), np.array([30, 9, 1]))
    assert rare.statistic == pytest.approx(stats.chi2_contingency([[90, 10], [30, 10]], correction=False).statistic)
    with pytest.raises(ValueError, match="of the same classes"):
        shift_of_classes(np.array([1, 2]), np.array([1, 2, 3]))
    with pytest.raises(ValueError, match="no reference rows"):
        shift_of_classes(np.array([0, 0]), np.array([1, 2]))


def test_the_stability_index_of_a_known_case():
    expected = 0.3 * math.log(0.8 / 0.5) - 0.3 * math.log(0.2 / 0.5)
    assert stability_index(np.array([50, 50]), np.array([80, 20])) == pytest.approx(expected)
    assert stability_index(np.array([7, 0]), np.array([3, 0])) == 0.0
    assert 1 < stability_index(np.array([1, 1]), np.array([1, 0])) < 10


def test_holm_rejects_in_order():
    assert rejected({"a": 0.001, "b": 0.03, "c": 0.02}, 0.05) == ("a", "c", "b")
    assert rejected({"a": 0.001, "b": 0.04, "c": 0.03}, 0.05) == ("a",)
    assert rejected({"a": 0.02, "b": 0.03, "c": 0.04}, 0.05) == ()
    assert rejected({}, 0.05) == ()


def test_levels_of_all_looks_add_up():
    assert sum(level_of_look(0.05, look) for look in range(1, 100_000)) == pytest.approx(0.05, rel=1e-4)
    assert level_of_look(0.05, 1) == pytest.approx(0.05 * 6 / math.pi**2)
    with pytest.raises(ValueError, match="the first is 1"):
        level_of_look(0.05, 0)


def test_errors_above_a_target():
    assert errors_p_value(0, 100, 0.05) == 1.0
    assert errors_p_value(3, 10, 0.1) == pytest.approx(1 - stats.binom.cdf(2, 10, 0.1))
    assert errors_p_value(0, 0, 0.1) == 1.0


def test_no_alarm_where_nothing_has_changed():
    """Five quantities on ten looks: the share of streams with any alarm is at most alpha."""
    draw, alarms, trials = np.random.default_rng(0), 0, 300
    for _ in range(trials):
        reference = draw.beta(5, 2, size=(5, 200))
        alarm = False
        for look in range(1, 11):
            new = draw.beta(5, 2, size=(5, 100))
            p_values = {str(i): shift_of_numbers(reference[i], new[i]).p_value for i in range(4)}
            counts = [np.bincount((values[4] * 4).astype(int), minlength=4) for values in (reference, new)]
            p_values["classes"] = shift_of_classes(*counts).p_value
            alarm = alarm or bool(rejected(p_values, level_of_look(0.1, look)))
        alarms += alarm
    assert at_most(alarms, trials, 0.1)


def test_p_values_are_uniform_and_the_martingale_rarely_grows():
    draw = np.random.default_rng(1)
    highest, p_values = [], []
    for trial in range(400):
        scores = np.round(draw.exponential(size=250), 1)  # with ties
        p_values.append(conformal_p_values(scores[:100], scores[100:], seed=trial))
        highest.append(log_martingale(p_values[-1]).max())
    assert stats.kstest(np.concatenate(p_values), "uniform").pvalue > 1e-3
    assert at_most(sum(value >= math.log(20) for value in highest), len(highest), 0.05)


def test_ranks_of_a_known_case():
    p_values = conformal_p_values(np.array([1.0, 2.0, 3.0]), np.array([10.0, 0.0]), seed=0)
    draws = 1 - np.random.default_rng(0).uniform(size=2)
    np.testing.assert_allclose(p_values, [draws[0] / 4, (4 + draws[1]) / 5])


def test_the_martingale_rings_when_losses_rise():
    draw = np.random.default_rng(2)
    reference, before, after = draw.exponential(size=300), draw.exponential(size=100), 3 * draw.exponential(size=300)
    logs = log_martingale(conformal_p_values(reference, np.concatenate([before, after])))
    assert logs[:100].max() < math.log(20)
    assert logs[100:].max() > math.log(1000)


def test_the_martingale_of_one_bet():
    """Before any change of the bets: (1 + e (p - 1/2)) averaged over e in -1, 0, 1 is 1."""
    assert log_martingale(np.array([0.1]))[0] == pytest.approx(0.0)
    shares = np.array([1.4, 1.0, 0.6]) / 3
    mixed = 0.99 * shares + 0.01 / 3
    assert log_martingale(np.array([0.1, 0.1]))[1] == pytest.approx(math.log(mixed @ [1.4, 1.0, 0.6]))
    assert log_martingale(np.full(50_000, 0.01))[-1] > 10_000 * math.log(1.4)  # no overflow
