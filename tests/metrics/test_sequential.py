"""Tests from strict to lax: which hypothesis is the last rejected one, and where the tests start."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorchestra.metrics.sequential import (
    MAX_STARTS,
    NUM_THRESHOLDS,
    fixed_sequence,
    last_rejected,
    start_budget,
    threshold_sequence,
)


@pytest.mark.parametrize(
    ("p_values", "budget", "last"),
    [
        ([0.01, 0.04, 0.06, 0.01], [0.05, 0, 0, 0], 1),  # one start: ends at the first failure
        ([0.06, 0.01], [0.05, 0], None),
        ([0.03, 0.01, 0.02], [0.02, 0, 0.03], 2),  # the first start fails, the second one passes
        ([0.01, 0.015, 0.05], [0.02, 0, 0.03], 2),  # both budgets together
        ([0.01, 0.025, 0.05], [0.02, 0, 0.03], 0),  # the first budget was lost on the way
        ([0.0, 0.0], [0, 0.05], 1),  # nothing is tested before the first start
    ],
)
def test_by_hand(p_values: list[float], budget: list[float], last: int | None) -> None:
    assert last_rejected(np.array(p_values), np.array(budget)) == last


def test_true_hypotheses_are_rejected_at_most_as_often_as_the_budget_says() -> None:
    """Independent uniform p-values of true hypotheses, with false ones between them."""
    generator, num_draws = np.random.default_rng(0), 4000
    budget = np.array([0.02, 0, 0, 0.05, 0, 0.03, 0, 0])
    for true in ([1, 1, 1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0, 0, 1]):
        wrong = 0
        for _ in range(num_draws):
            p_values = np.where(true, generator.random(8), 0.0)
            # any rejected true hypothesis counts, not the last alone
            wrong += any(
                last_rejected(p_values[: index + 1], budget[: index + 1]) == index for index in np.flatnonzero(true)
            )
        assert wrong / num_draws < 0.1 + 3 * np.sqrt(0.1 * 0.9 / num_draws)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([0.1, 0.2, 0.5, 0.9, 1.0, -3.0, 1e6]), min_size=1, max_size=300),
    st.integers(1, 5000),
)
def test_thresholds_separate_no_equal_scores(values: list[float], num_rows: int) -> None:
    scores = np.array(values)
    sequence = threshold_sequence(scores, num_rows, 0.05, 0.05)
    assert (np.diff(sequence.thresholds) < 0).all()
    assert len(sequence.thresholds) <= min(NUM_THRESHOLDS, len(np.unique(scores)))
    assert not np.isin(sequence.thresholds, scores).any()
    assert (scores >= sequence.thresholds[-1]).all()
    assert sequence.budget.sum() == pytest.approx(0.05)


def test_rounding_of_scores_changes_no_coverage() -> None:
    scores = np.repeat([0.2, 0.6, 1.0], 50)
    sequence = threshold_sequence(scores + 1e-15 * np.arange(150), 500, 0.05, 0.05)
    np.testing.assert_allclose([(scores >= t).mean() for t in sequence.thresholds], [1 / 3, 2 / 3, 1.0])


def test_starts_have_rows_enough() -> None:
    coverage = np.arange(1, 101) / 100
    for num_rows in (59, 200, 1000, 10_000):
        budget = start_budget(coverage, num_rows, 0.05, 0.05)
        assert budget.sum() == pytest.approx(0.05)
        assert 1 <= (budget > 0).sum() <= MAX_STARTS
        first = np.flatnonzero(budget)[0]
        # 86 rows are the fewest at a quarter of the budget, 59 at all of it
        assert coverage[first] * num_rows >= (86 if num_rows >= 1000 else 59)
    assert start_budget(coverage, 59, 0.05, 0.05)[-1] == pytest.approx(0.05)


def test_fixed_thresholds_are_for_shares() -> None:
    with pytest.raises(ValueError, match=r"outside \[0, 1\]: give reference scores"):
        fixed_sequence(np.array([-0.1, 0.5]), 0.05)
    assert fixed_sequence(np.array([0.0, 1.0]), 0.05).thresholds[-1] == 0.0
