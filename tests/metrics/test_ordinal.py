"""Metrics of ordered levels by hand, by brute force, against scikit-learn and scipy, and on resamples."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from lorchestra.metrics import ordinal
from lorchestra.metrics.scores import brier, interval

# Four rows of three levels. All numbers below follow from these.
#   row  probabilities     answer  prediction  expected level
#   0    0.7  0.2  0.1     0       0           0.4
#   1    0.1  0.8  0.1     0       1           1.0
#   2    0.3  0.3  0.4     2       2           1.1
#   3    0.5  0.5  0.0     2       0           0.5   (a tie: the lowest level is the prediction)
PROBS = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.5, 0.5, 0.0]])
with np.errstate(divide="ignore"):
    LOG_PROBS = np.log(PROBS)
LABELS = np.array([0, 0, 2, 2])


def random_rows(seed, num_rows=50, num_levels=5):
    generator = np.random.default_rng(seed)
    probs = generator.dirichlet(np.ones(num_levels), size=num_rows)
    return np.log(probs), generator.integers(num_levels, size=num_rows)


def test_errors_by_hand():
    assert ordinal.expected_level(LOG_PROBS) == pytest.approx([0.4, 1.0, 1.1, 0.5])
    assert ordinal.expected_level_mae(LOG_PROBS, LABELS) == pytest.approx((0.4 + 1.0 + 0.9 + 1.5) / 4)
    assert ordinal.level_mae(LOG_PROBS, LABELS) == (0 + 1 + 0 + 2) / 4


def test_ranked_probability_score_by_hand():
    # Cumulative probabilities of the first two levels, minus those of the answer.
    # Row 0: 0.7 - 1, 0.9 - 1. Row 1: 0.1 - 1, 0.9 - 1. Row 2: 0.3 - 0, 0.6 - 0. Row 3: 0.5 - 0, 1 - 0.
    by_row = [(0.09 + 0.01) / 2, (0.81 + 0.01) / 2, (0.09 + 0.36) / 2, (0.25 + 1.0) / 2]
    assert ordinal.score_levels(LOG_PROBS, LABELS).rps == pytest.approx(by_row)
    assert ordinal.ranked_probability_score(LOG_PROBS, LABELS) == pytest.approx(sum(by_row) / 4)


def test_kappa_by_hand():
    # Squared distances: 0 + 1 + 0 + 4, mean 5/4. At random: answers 0, 0, 2, 2 and predictions 0, 1, 2, 0 in all
    # 16 pairs: an answer 0 has 0 + 1 + 4 + 0, an answer 2 has 4 + 1 + 0 + 4: mean (2 * 5 + 2 * 9) / 16 = 28/16.
    assert ordinal.quadratic_kappa(LOG_PROBS, LABELS) == pytest.approx(1 - (5 / 4) / (28 / 16))


@pytest.mark.parametrize("seed", range(5))
def test_the_score_is_the_distance_of_the_distributions(seed):
    """The energy distance of scipy is the root of twice the integral of the squared difference of the two CDFs."""
    log_probs, labels = random_rows(seed)
    levels = np.arange(5.0)
    distances = [
        scipy.stats.energy_distance(levels, [float(label)], u_weights=probs)
        for probs, label in zip(np.exp(log_probs), labels, strict=True)
    ]
    assert ordinal.score_levels(log_probs, labels).rps == pytest.approx(np.square(distances) / 2 / 4)


def test_the_score_is_bounded_and_of_two_levels_half_the_brier_score():
    with np.errstate(divide="ignore"):
        certain = np.log(np.eye(4))
    labels = np.arange(4)
    assert ordinal.ranked_probability_score(certain, labels) == 0
    assert ordinal.ranked_probability_score(certain[[0, 3]], labels[[3, 0]]) == 1
    log_probs, labels = random_rows(3, num_levels=2)
    assert ordinal.ranked_probability_score(log_probs, labels) == pytest.approx(brier(log_probs, labels) / 2)


@given(
    st.integers(2, 6).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2), min_size=1, max_size=30))
    )
)
def test_kappa_is_that_of_scikit_learn(case):
    num_levels, pairs = case
    answers, predicted = np.array(pairs).T
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.eye(num_levels)[predicted])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the undefined case
        expected = sklearn.metrics.cohen_kappa_score(answers, predicted, weights="quadratic", labels=range(num_levels))
    # the same value, or NaN for both
    assert ordinal.quadratic_kappa(log_probs, answers) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_kappa_without_differences():
    with np.errstate(divide="ignore"):
        certain = np.log(np.eye(3))
    assert ordinal.quadratic_kappa(certain, np.arange(3)) == 1
    assert ordinal.quadratic_kappa(certain[[0, 0]], np.array([1, 1])) == 0
    assert ordinal.quadratic_kappa(certain, np.arange(3)[::-1].copy()) == -1
    assert np.isnan(ordinal.quadratic_kappa(certain[[1, 1]], np.array([1, 1])))


def test_resamples_are_the_metrics_of_repeated_rows():
    log_probs, labels = random_rows(0, num_rows=12)
    counts = np.random.default_rng(1).multinomial(12, np.ones(12) / 12, size=20).astype(float)
    resampled = ordinal.ordinal_metrics(ordinal.score_levels(log_probs, labels), counts)
    functions = {
        "expected_level_mae": ordinal.expected_level_mae,
        "level_mae": ordinal.level_mae,
        "rps": ordinal.ranked_probability_score,
        "quadratic_kappa": ordinal.quadratic_kappa,
    }
    assert resampled.keys() == functions.keys()
    for key, function in functions.items():
        repeated = [np.repeat(np.arange(12), row.astype(int)) for row in counts]
        assert resampled[key] == pytest.approx([function(log_probs[rows], labels[rows]) for rows in repeated])
        assert interval(resampled[key]) is not None


def test_one_undefined_resample_is_nan_and_the_others_are_not():
    with np.errstate(divide="ignore"):
        certain = np.log(np.eye(2))
    rows = ordinal.score_levels(certain, np.array([0, 1]))
    kappa = ordinal.ordinal_metrics(rows, np.array([[1.0, 1.0], [2.0, 0.0]]))["quadratic_kappa"]
    assert kappa[0] == 1
    assert np.isnan(kappa[1])


@pytest.mark.parametrize(
    ("log_probs", "labels", "message"),
    [
        (LOG_PROBS, LABELS - 1, "unknown answer"),
        (LOG_PROBS, LABELS + 1, "3"),
        (LOG_PROBS[:0], LABELS[:0], "no rows"),
        (np.zeros((2, 1)), np.zeros(2, dtype=np.int64), "one level"),
        (LOG_PROBS * np.nan, LABELS, "NaN"),
    ],
)
def test_rows_that_cannot_be_scored(log_probs, labels, message):
    with pytest.raises(ValueError, match=message):
        ordinal.score_levels(log_probs, labels)
