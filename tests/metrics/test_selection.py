"""Greedy selection of members: hand-made ensembles, a brute-force check, and the weighted mixture."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from lorchestra.metrics.predictive import mixture_log_probs
from lorchestra.metrics.scores import nll
from lorchestra.metrics.selection import greedy_selection, weighted_mixture_log_probs


def binary(*answers: list[float]) -> NDArray[np.float64]:
    """Members that give the answer 0 of each row these probabilities."""
    probs_ME = np.array(answers)
    with np.errstate(divide="ignore"):
        return np.log(np.stack([probs_ME, 1 - probs_ME], axis=-1))


def random_ensemble(seed: int, members: int, rows: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    scores = 3 * generator.normal(size=(members, rows, 4))
    log_probs = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    return log_probs, generator.integers(0, 4, size=rows)


def test_two_members_that_complement_each_other() -> None:
    """Each has 0.8 for one of two answers and 0.1 for the other."""
    chosen = greedy_selection(binary([0.8, 0.1], [0.1, 0.8]), np.array([0, 0]), num_rounds=4)
    # both together 0.45 and 0.45; the first twice and the second once 1.7 / 3 and 1 / 3
    assert chosen.order == (0, 1, 0, 1)
    expected = [-np.log(0.08) / 2, -np.log(0.45), -np.log(1.7 / 9) / 2, -np.log(0.45)]
    np.testing.assert_allclose(chosen.nll, expected, rtol=1e-12)
    assert chosen.num_rounds == 2
    np.testing.assert_array_equal(chosen.weights, [0.5, 0.5])


def test_the_selection_is_greedy() -> None:
    """A third member is better alone, at 0.42 for both, and neither of the others improves it: their pair, the best
    ensemble, is missed."""
    chosen = greedy_selection(binary([0.8, 0.1], [0.1, 0.8], [0.42, 0.42]), np.array([0, 0]), num_rounds=4)
    assert chosen.order == (2, 2, 2, 2)
    np.testing.assert_allclose(chosen.nll, [-np.log(0.42)] * 4, rtol=1e-12)
    assert chosen.num_rounds == 1
    np.testing.assert_array_equal(chosen.weights, [0, 0, 1])


def test_weights_are_shares_of_rounds_with_replacement() -> None:
    """The first member has 0.9 for two of three answers and 0.1 for the third, the second the reverse.

    The slope of the NLL in the first one's weight w is zero where 2 / (0.1 + 0.8 w) = 1 / (0.9 - 0.8 w): w = 17 / 24.
    """
    log_probs = binary([0.9, 0.9, 0.1], [0.1, 0.1, 0.9])
    chosen = greedy_selection(log_probs, np.zeros(3, dtype=int), num_rounds=24)
    assert chosen.order.count(0) == 17
    assert chosen.num_rounds == 24
    np.testing.assert_allclose(chosen.weights, [17 / 24, 7 / 24], rtol=1e-15)


@pytest.mark.parametrize("seed", range(5))
def test_every_round_adds_the_best_member_of_all(seed: int) -> None:
    """By mixtures of the selected members as such."""
    log_probs, labels = random_ensemble(seed, members=6, rows=30)
    chosen = greedy_selection(log_probs, labels, num_rounds=12)
    for size in range(1, 13):
        before = list(chosen.order[: size - 1])
        scores = [nll(mixture_log_probs(log_probs[[*before, member]]), labels) for member in range(6)]
        assert chosen.order[size - 1] == int(np.argmin(scores))
        assert chosen.nll[size - 1] == pytest.approx(min(scores), rel=1e-12)
    assert chosen.num_rounds == int(np.argmin(chosen.nll)) + 1
    assert chosen.weights.sum() == pytest.approx(1, rel=1e-15)
    weighted = nll(weighted_mixture_log_probs(log_probs, chosen.weights), labels)
    assert weighted == pytest.approx(min(chosen.nll), rel=1e-12)
    assert weighted <= min(nll(one, labels) for one in log_probs) + 1e-12


def test_of_equal_members_the_first_is_selected() -> None:
    """Also where rounding makes a later one better."""
    log_probs, labels = random_ensemble(3, members=1, rows=20)
    copies = np.concatenate([log_probs, log_probs, log_probs])
    copies[1] += 1e-15
    assert greedy_selection(copies, labels, num_rounds=7).order == (0,) * 7
    assert greedy_selection(copies, labels, num_rounds=7).num_rounds == 1


def test_answers_of_probability_zero_are_made_possible_first() -> None:
    """Members exclude row 0, 1 and 2; every pair leaves no row impossible. The fourth excludes two rows."""
    log_probs = binary([0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0])
    chosen = greedy_selection(log_probs, np.zeros(3, dtype=int), num_rounds=3)
    assert chosen.order == (0, 1, 2)
    np.testing.assert_allclose(chosen.nll, [np.inf, -np.log([0.25, 0.25, 0.5]).mean(), -np.log(1 / 3)], rtol=1e-12)


def test_tiny_probabilities_do_not_underflow() -> None:
    log_probs = np.array([[[-1000.0, 0.0]], [[-1001.0, 0.0]]])
    chosen = greedy_selection(log_probs, np.array([0]), num_rounds=2)
    assert chosen.order == (0, 0)
    np.testing.assert_allclose(chosen.nll, [1000.0, 1000.0], rtol=1e-15)


def test_the_weighted_mixture_by_hand() -> None:
    log_probs = np.log(np.array([[[0.9, 0.1]], [[0.3, 0.7]]]))
    pooled = weighted_mixture_log_probs(log_probs, np.array([3.0, 1.0]))
    np.testing.assert_allclose(np.exp(pooled), [[0.75, 0.25]], rtol=1e-14)
    only = weighted_mixture_log_probs(log_probs, np.array([0.0, 2.0]))
    np.testing.assert_array_equal(only, log_probs[1])
    for scale in (1e-300, 1e300):
        scaled = weighted_mixture_log_probs(log_probs, scale * np.array([3.0, 1.0]))
        np.testing.assert_allclose(scaled, pooled, rtol=1e-14)


def test_equal_weights_are_the_mixture_and_permuted_members_the_same_bits() -> None:
    log_probs, _ = random_ensemble(1, members=5, rows=9)
    log_probs[:, 0, 3] = -np.inf
    log_probs[:, 0] -= np.log(np.exp(log_probs[:, 0]).sum(axis=-1, keepdims=True))
    equal = weighted_mixture_log_probs(log_probs, np.full(5, 0.2))
    np.testing.assert_allclose(equal, mixture_log_probs(log_probs), rtol=1e-14)
    weights = np.array([0.1, 0.3, 0.2, 0.0, 0.4])
    pooled = weighted_mixture_log_probs(log_probs, weights)
    np.testing.assert_allclose(np.exp(pooled).sum(axis=1), 1, rtol=1e-14)
    for order in itertools.permutations(range(5)):
        permuted = weighted_mixture_log_probs(log_probs[list(order)], weights[list(order)])
        np.testing.assert_array_equal(permuted, pooled)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], r"weights has shape \(1,\), not one per member of \(2, 1, 2\)"),
        ([0.0, 0.0], r"weights \[0\.0, 0\.0\] are not"),
        ([-1.0, 2.0], r"weights \[-1\.0, 2\.0\] are not"),
        ([np.nan, 2.0], r"weights \[nan, 2\.0\] are not"),
    ],
)
def test_bad_weights_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weighted_mixture_log_probs(np.log(np.full((2, 1, 2), 0.5)), np.array(weights))


def test_bad_selections_are_refused() -> None:
    log_probs = np.log(np.full((2, 1, 2), 0.5))
    with pytest.raises(ValueError, match="num_rounds is 0"):
        greedy_selection(log_probs, np.array([0]), num_rounds=0)
    with pytest.raises(ValueError, match=r"log_probs has shape \(0, 1, 2\)"):
        greedy_selection(log_probs[:0], np.array([0]))
    with pytest.raises(ValueError, match=r"label -1"):
        greedy_selection(log_probs, np.array([-1]))
