"""Measures of diversity against known answers, scipy and dense products."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from lorchestra.metrics.diversity import (
    agreement,
    pairwise_correlation,
    pairwise_kl,
    spearman,
    symmetric_kl,
    update_cosine,
)

CHOICES = (2, 4, 3, 4, 2)
PAIRS = list(itertools.combinations(range(3), 2))


@pytest.fixture
def log_probs():
    """Three members, five rows of two to four choices."""
    scores = np.random.default_rng(0).normal(size=(3, 5, 4))
    for row, number in enumerate(CHOICES):
        scores[:, row, number:] = -np.inf
    return scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))


def test_kl_is_the_mean_over_ordered_pairs(log_probs):
    probs = np.exp(log_probs)
    expected = [
        np.mean([stats.entropy(probs[i, row, :n], probs[j, row, :n]) for i, j in itertools.permutations(range(3), 2)])
        for row, n in enumerate(CHOICES)
    ]
    np.testing.assert_allclose(pairwise_kl(log_probs), expected, rtol=1e-12)
    permuted = pairwise_kl(log_probs[[2, 0, 1]])
    np.testing.assert_allclose(permuted, expected, rtol=1e-12)


def test_kl_of_two_known_coins():
    p, q = 0.25, 0.5
    there = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    back = q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))
    coins = np.log(np.array([[[p, 1 - p]], [[q, 1 - q]]]))
    np.testing.assert_allclose(pairwise_kl(coins), [(there + back) / 2], rtol=1e-12)


def test_kl_where_members_are_equal_single_or_exclude_a_choice(log_probs):
    assert (pairwise_kl(np.stack([log_probs[0]] * 3)) == 0).all()
    assert (pairwise_kl(log_probs[:1]) == 0).all()
    excluding = np.array([[[0.0, -np.inf]], [[np.log(0.5), np.log(0.5)]]])
    assert np.isposinf(pairwise_kl(excluding)).all()
    assert (pairwise_kl(np.array([[[0.0, -np.inf]]] * 2)) == 0).all()


def test_agreement_counts_equal_answers():
    probs = np.array(
        [[[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]], [[0.8, 0.2], [0.9, 0.1], [0.7, 0.3], [0.6, 0.4]]]
    )
    np.testing.assert_array_equal(agreement(np.log(probs)), [[1, 0.5], [0.5, 1]])


def test_divergence_of_two_members():
    probs = np.array([[[0.5, 0.5]], [[0.9, 0.1]]])
    expected = 0.5 * (0.5 - 0.9) * np.log(0.5 / 0.9) + 0.5 * (0.5 - 0.1) * np.log(0.5 / 0.1)
    np.testing.assert_allclose(symmetric_kl(np.log(probs)), [[0, expected], [expected, 0]])


def test_divergence_ignores_absent_choices_and_can_be_infinite():
    absent = np.array([[[np.log(0.5), np.log(0.5), -np.inf]], [[np.log(0.9), np.log(0.1), -np.inf]]])
    np.testing.assert_allclose(symmetric_kl(absent), symmetric_kl(absent[..., :2]))
    excluded = np.array([[[0.0, -np.inf]], [[np.log(0.9), np.log(0.1)]]])
    assert symmetric_kl(excluded)[0, 1] == np.inf
    underflown = np.array([[[0.0, -np.inf]], [[0.0, -800.0]]])
    assert symmetric_kl(underflown)[0, 1] == 0


def test_correlation_is_over_the_choices_that_exist(log_probs):
    present = np.arange(4) < np.array(CHOICES)[:, None]
    flat = [np.exp(member[present]) for member in log_probs]
    expected = np.mean([stats.pearsonr(flat[i], flat[j]).statistic for i, j in PAIRS])
    assert pairwise_correlation(log_probs) == pytest.approx(expected, abs=1e-12)
    assert pairwise_correlation(np.stack([log_probs[1]] * 2)) == pytest.approx(1.0, abs=1e-12)
    opposite = np.log(np.array([[[0.2, 0.8], [0.6, 0.4]], [[0.8, 0.2], [0.4, 0.6]]]))
    assert pairwise_correlation(opposite) == pytest.approx(-1.0, abs=1e-12)
    assert np.isnan(pairwise_correlation(log_probs[:1]))
    assert np.isnan(pairwise_correlation(np.log(np.full((2, 3, 2), 0.5))))


def test_cosine_equals_that_of_the_dense_products():
    draw = np.random.default_rng(1)
    members = [
        [(draw.normal(size=(r, 6)), draw.normal(size=(5, r))), (draw.normal(size=(r, 4)), draw.normal(size=(7, r)))]
        for r in (2, 3, 2)
    ]
    dense = [np.concatenate([(B @ A).ravel() for A, B in member]) for member in members]
    expected = np.mean([dense[i] @ dense[j] / np.linalg.norm(dense[i]) / np.linalg.norm(dense[j]) for i, j in PAIRS])
    assert update_cosine(members) == pytest.approx(expected, abs=1e-12)
    # the same update in other factors, and its opposite
    (A, B), rest = members[0]
    turned = [(2 * A, B / 2), rest]
    assert update_cosine([members[0], turned]) == pytest.approx(1.0, abs=1e-12)
    assert update_cosine([members[0], [(A, -B), (rest[0], -rest[1])]]) == pytest.approx(-1.0, abs=1e-12)
    assert np.isnan(update_cosine(members[:1]))
    assert np.isnan(update_cosine([members[0], [(A, 0 * B), (rest[0], 0 * rest[1])]]))
    with pytest.raises(ValueError, match="shorter"):
        update_cosine([members[0], members[1][:1]])


def test_spearman_is_scipys_with_ties_too():
    draw = np.random.default_rng(2)
    x, y = draw.integers(0, 5, 30).astype(float), draw.normal(size=30)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert spearman(x, x**3) == pytest.approx(1.0)
    assert np.isnan(spearman(x, np.ones(30)))
