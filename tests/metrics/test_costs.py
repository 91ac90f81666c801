"""Decisions by expected cost: by hand, optimal, and their reported cost."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lorchestra.metrics.costs import (
    ASK,
    bounded_mean_interval,
    check_costs,
    decide_by_cost,
    realized_costs,
    zero_one_costs,
)

# answer, truth: to say 0 where it is 1 costs 10, the other way round 2
COSTS = np.array([[0.0, 10.0], [2.0, 0.0]])


def test_by_hand() -> None:
    decisions = decide_by_cost(np.array([[0.95, 0.05], [0.5, 0.5], [0.1, 0.9], [0.8, 0.2]]), COSTS, ask=0.6)
    # expected costs of (0, 1): (0.5, 1.9), (5, 1), (9, 0.2), (2, 1.6)
    np.testing.assert_array_equal(decisions.answers, [0, ASK, 1, ASK])
    np.testing.assert_allclose(decisions.expected_costs, [0.5, 0.6, 0.2, 0.6])
    assert decisions.share_asked == 0.5
    assert decisions.expected_per_1000 == pytest.approx(1000 * 1.9 / 4)
    realized = realized_costs(decisions.answers, np.array([0, 1, 0, 0]), COSTS, ask=0.6)
    # right, asked, answered 1 for 0, asked
    assert realized.per_1000 == pytest.approx(1000 * (0 + 0.6 + 2 + 0.6) / 4)
    assert realized.interval[0] <= realized.per_1000 <= realized.interval[1]
    assert (realized.share_asked, realized.num_rows) == (0.5, 4)


def test_equal_costs_are_a_threshold_on_the_probability() -> None:
    """Chow's rule: ask where the error probability costs more than a person."""
    probs = np.random.default_rng(0).dirichlet(np.ones(4), size=500)
    decisions = decide_by_cost(probs, zero_one_costs(4, wrong=5.0), ask=1.0)
    np.testing.assert_array_equal(decisions.answers == ASK, probs.max(axis=1) < 0.8)
    answered = decisions.answers != ASK
    np.testing.assert_array_equal(decisions.answers[answered], probs.argmax(axis=1)[answered])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 5))
def test_no_other_decision_is_expected_to_cost_less(seed: int, ask: float) -> None:
    generator = np.random.default_rng(seed)
    probs, costs = generator.dirichlet(np.ones(3), size=20), generator.exponential(3.0, size=(3, 3))
    np.fill_diagonal(costs, 0.0)
    decisions = decide_by_cost(probs, costs, ask)
    for row, answer in itertools.product(range(20), [ASK, 0, 1, 2]):
        other = ask if answer == ASK else sum(probs[row, truth] * costs[answer, truth] for truth in range(3))
        assert decisions.expected_costs[row] <= other + 1e-12


def test_calibrated_probabilities_predict_the_cost() -> None:
    generator = np.random.default_rng(1)
    probs = generator.dirichlet(np.ones(2), size=20_000)
    labels = (generator.random(20_000) > probs[:, 0]).astype(int)
    decisions = decide_by_cost(probs, COSTS, 0.6)
    realized = realized_costs(decisions.answers, labels, COSTS, 0.6)
    assert realized.interval[0] < decisions.expected_per_1000 < realized.interval[1]


@pytest.mark.parametrize(("probability", "rows"), [(0.005, 200), (0.3, 60), (0.05, 500)])
def test_the_interval_covers(probability: float, rows: int) -> None:
    """A rare cost is never observed in a third of the sets of 200 rows: a bootstrap would then report [0, 0]."""
    generator, misses, draws = np.random.default_rng(2), 0, 200
    for _ in range(draws):
        costs = 10.0 * (generator.random(rows) < probability)
        low, high = bounded_mean_interval(costs, 0.0, 10.0, 0.95)
        misses += not low <= 10.0 * probability <= high
    assert stats.binom.sf(misses - 1, draws, 0.05) > 1e-3


def test_intervals_of_extremes() -> None:
    assert bounded_mean_interval(np.zeros(50), 0.0, 0.0, 0.95) == (0.0, 0.0)
    low, high = bounded_mean_interval(np.zeros(100), 0.0, 1.0, 0.95)
    assert low == 0.0
    assert 0.02 < high < 0.15
    low, high = bounded_mean_interval(np.ones(1), 0.0, 1.0, 0.95)
    assert low < 0.5
    assert high == 1.0
    with pytest.raises(ValueError, match="there are no values"):
        bounded_mean_interval(np.zeros(0), 0.0, 1.0, 0.95)
    with pytest.raises(ValueError, match=r"a value is outside \[0.0, 1.0\]"):
        bounded_mean_interval(np.array([2.0]), 0.0, 1.0, 0.95)


@pytest.mark.parametrize(
    ("costs", "ask", "message"),
    [
        (np.zeros((2, 3)), 1.0, r"costs have shape \(2, 3\), not \(2, 2\)"),
        ([[0, -1], [1, 0]], 1.0, "the cost of answer 0 for truth 1 is -1.0, not at least 0"),
        ([[0, np.nan], [1, 0]], 1.0, "the cost of answer 0 for truth 1 is nan"),
        ([[0, 1], [1, 2]], 1.0, r"answer 0 costs 1 for truth 1, less than the right answer \(2\)"),
        (COSTS, -1.0, "the cost of asking a person is -1.0"),
        (COSTS, np.inf, "the cost of asking a person is inf"),
    ],
)
def test_refused_costs(costs: object, ask: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_costs(np.array(costs, dtype=float), ask, 2)


def test_refused_rows() -> None:
    with pytest.raises(ValueError, match=r"probabilities of row 1 are negative or do not sum to 1"):
        decide_by_cost(np.array([[0.5, 0.5], [0.5, 0.4]]), COSTS, 1.0)
    with pytest.raises(ValueError, match=r"probabilities of row 0 are negative"):
        decide_by_cost(np.array([[np.nan, 0.5]]), COSTS, 1.0)
    with pytest.raises(ValueError, match=r"shape \(0, 2\), not \[E, C\] with at least one row"):
        decide_by_cost(np.zeros((0, 2)), COSTS, 1.0)
    with pytest.raises(ValueError, match=r"an answer is neither -1 \(ask\) nor in 0\.\.1"):
        realized_costs(np.array([2]), np.array([0]), COSTS, 1.0)
    with pytest.raises(ValueError, match="label -1"):
        realized_costs(np.array([0]), np.array([-1]), COSTS, 1.0)
    with pytest.raises(ValueError, match="there are no rows"):
        realized_costs(np.zeros(0), np.zeros(0), COSTS, 1.0)
