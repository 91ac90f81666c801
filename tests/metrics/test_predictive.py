"""The predictive distribution: known answers, and properties over random ensembles of ragged rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lorchestra.metrics import predictive

MINUS_INF = -np.inf


def log_softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    scores = scores - scores.max(axis=-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))


def random_ensemble(seed: int, members: int, rows: int, scale: float = 2.0) -> NDArray[np.float64]:
    """Log-probabilities [M, E, 5] whose rows have 3, 4 or 5 choices."""
    generator = np.random.default_rng(seed)
    scores = scale * generator.normal(size=(members, rows, 5))
    num_choices = generator.integers(3, 6, size=rows)
    return log_softmax(np.where(np.arange(5) < num_choices[:, None], scores, MINUS_INF))


ensembles = st.builds(
    random_ensemble,
    seed=st.integers(0, 2**32 - 1),
    members=st.integers(1, 6),
    rows=st.integers(1, 12),
    scale=st.sampled_from([0.1, 2.0, 30.0, 500.0]),
)


def test_the_mixture_is_the_mean_of_probabilities() -> None:
    # Members predict 0.9/0.1 and 0.3/0.7; their mean is 0.6/0.4.
    log_probs = np.log(np.array([[[0.9, 0.1]], [[0.3, 0.7]]]))
    np.testing.assert_allclose(np.exp(predictive.mixture_log_probs(log_probs)), [[0.6, 0.4]], rtol=1e-14)


def test_the_mean_of_logits_is_a_different_estimator() -> None:
    # Geometric means sqrt(0.9 * 0.3) = 0.519615 and sqrt(0.1 * 0.7) = 0.264575; renormalized 0.662614 and 0.337386.
    log_probs = np.log(np.array([[[0.9, 0.1]], [[0.3, 0.7]]]))
    np.testing.assert_allclose(np.exp(predictive.mean_of_logits(log_probs)), [[0.662614, 0.337386]], atol=1e-6)


def test_the_mean_of_logits_needs_a_common_choice() -> None:
    log_probs = np.array([[[0.0, MINUS_INF]], [[MINUS_INF, 0.0]]])
    with pytest.raises(ValueError, match="row 0"):
        predictive.mean_of_logits(log_probs)


def test_entropies_by_hand() -> None:
    # Two certain members that contradict each other: the mixture is a coin (ln 2), each member has entropy 0, so all
    # of the uncertainty is mutual information, its maximum ln M.
    log_probs = np.array([[[0.0, MINUS_INF, MINUS_INF]], [[MINUS_INF, 0.0, MINUS_INF]]])
    np.testing.assert_allclose(predictive.total_entropy(log_probs), [np.log(2)], rtol=1e-15)
    np.testing.assert_array_equal(predictive.expected_entropy(log_probs), [0.0])
    np.testing.assert_allclose(predictive.mutual_information(log_probs), [np.log(2)], rtol=1e-15)
    np.testing.assert_array_equal(predictive.disagreement(log_probs), [1.0])


def test_equal_members_have_exactly_no_mutual_information() -> None:
    one = random_ensemble(3, 1, 50)
    equal = np.repeat(one, 5, axis=0)
    np.testing.assert_array_equal(predictive.mutual_information(equal), np.zeros(50))
    np.testing.assert_array_equal(predictive.mixture_log_probs(equal), one[0])


def test_probabilities_that_underflow_make_no_nan() -> None:
    log_probs = np.array([[[0.0, -800.0, MINUS_INF]], [[-1e-3, -6.908, MINUS_INF]]])
    for measure in (predictive.total_entropy, predictive.expected_entropy, predictive.mutual_information):
        assert np.isfinite(measure(log_probs)).all()


def test_disagreement_counts_pairs() -> None:
    # Votes 0, 0, 1, 2: of 6 pairs only (0, 0) agrees, 5/6 disagree. Votes 0, 0, 0, 0: none.
    votes = np.array([[0, 0], [0, 0], [1, 0], [2, 0]])
    log_probs = np.where(np.arange(3) == votes[..., None], np.log(0.8), np.log(0.1))
    np.testing.assert_allclose(predictive.disagreement(log_probs), [5 / 6, 0.0], atol=1e-15)


def test_disagreement_of_one_member_is_zero() -> None:
    np.testing.assert_array_equal(predictive.disagreement(random_ensemble(0, 1, 4)), np.zeros(4))


@settings(max_examples=60, deadline=None)
@given(ensembles)
def test_the_decomposition_adds_up_and_is_bounded(log_probs: NDArray[np.float64]) -> None:
    total, expected = predictive.total_entropy(log_probs), predictive.expected_entropy(log_probs)
    information = predictive.mutual_information(log_probs)
    np.testing.assert_allclose(total - expected, information, atol=1e-12)
    assert (information >= 0).all()
    assert (information <= np.log(len(log_probs)) + 1e-12).all()
    assert (total <= np.log(5) + 1e-12).all()
    np.testing.assert_allclose(np.exp(predictive.mixture_log_probs(log_probs)).sum(axis=-1), 1.0, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(ensembles, st.randoms(use_true_random=False))
def test_permuting_members_changes_no_bit(log_probs: NDArray[np.float64], random: object) -> None:
    order = np.arange(len(log_probs))
    random.shuffle(order)  # type: ignore[attr-defined]
    for function in (
        predictive.mixture_log_probs,
        predictive.mean_of_logits,
        predictive.expected_entropy,
        predictive.mutual_information,
        predictive.disagreement,
    ):
        np.testing.assert_array_equal(function(log_probs), function(log_probs[order]))


@settings(max_examples=60, deadline=None)
@given(ensembles)
def test_more_absent_columns_change_nothing(log_probs: NDArray[np.float64]) -> None:
    wide = np.pad(log_probs, ((0, 0), (0, 0), (0, 4)), constant_values=MINUS_INF)
    np.testing.assert_array_equal(
        predictive.mixture_log_probs(wide)[:, :5], predictive.mixture_log_probs(log_probs), strict=True
    )
    np.testing.assert_allclose(predictive.mean_of_logits(wide)[:, :5], predictive.mean_of_logits(log_probs), atol=1e-12)
    for function in (predictive.total_entropy, predictive.mutual_information, predictive.disagreement):
        np.testing.assert_allclose(function(wide), function(log_probs), atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(ensembles, st.floats(0.05, 20))
def test_a_temperature_keeps_the_prediction_and_the_absent_choices(
    log_probs: NDArray[np.float64], temperature: float
) -> None:
    mixture = predictive.mixture_log_probs(log_probs)
    scaled = predictive.apply_temperature(mixture, temperature)
    # By value and not by index: two choices that are equal but for the last bit may come out as equal.
    kept = np.take_along_axis(scaled, mixture.argmax(axis=-1)[:, None], axis=-1)[:, 0]
    np.testing.assert_allclose(kept, scaled.max(axis=-1), atol=1e-12)
    np.testing.assert_array_equal(np.isneginf(scaled), np.isneginf(mixture))
    np.testing.assert_allclose(np.exp(scaled).sum(axis=-1), 1.0, rtol=1e-12)
    if temperature > 1:
        assert (predictive.entropy(scaled) >= predictive.entropy(mixture) - 1e-12).all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.inf, np.nan])
def test_a_bad_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature is"):
        predictive.apply_temperature(np.log(np.full((1, 2), 0.5)), temperature)


def test_the_fitted_temperature_is_the_known_one() -> None:
    # 8 of 10 rows are right and every row has log-odds 6 for choice 0. The NLL is minimal where sigmoid(6 / T) = 0.8,
    # that is 6 / T = ln 4, T = 6 / ln 4 = 4.3281.
    log_probs = log_softmax(np.tile([6.0, 0.0, MINUS_INF], (10, 1)))
    labels = np.array([0] * 8 + [1] * 2)
    assert predictive.fit_temperature(log_probs, labels) == pytest.approx(6 / np.log(4), rel=1e-9)


def test_the_fitted_temperature_is_recovered_from_sampled_labels() -> None:
    # Labels are drawn from the true distribution; the scores are that distribution sharpened by T = 2.5.
    generator = np.random.default_rng(5)
    true = log_softmax(generator.normal(size=(20_000, 4)))
    labels = (np.exp(true).cumsum(axis=1) < generator.random((20_000, 1))).sum(axis=1)
    assert predictive.fit_temperature(log_softmax(2.5 * true), labels) == pytest.approx(2.5, rel=0.05)


def test_a_fit_that_rows_do_not_determine_ends_on_a_bound() -> None:
    sure = log_softmax(np.tile([1.0, 0.0], (4, 1)))
    assert predictive.fit_temperature(sure, np.zeros(4, dtype=np.int64)) == predictive.TEMPERATURE_RANGE[0]
    assert predictive.fit_temperature(sure, np.ones(4, dtype=np.int64)) == predictive.TEMPERATURE_RANGE[1]
    assert predictive.fit_temperature(np.log(np.full((4, 3), 1 / 3)), np.array([0, 1, 2, 0])) == 1.0


def test_rows_with_an_impossible_answer_do_not_enter_the_fit() -> None:
    log_probs = log_softmax(np.tile([6.0, 0.0, MINUS_INF], (11, 1)))
    labels = np.array([0] * 8 + [1] * 2 + [2])
    assert predictive.fit_temperature(log_probs, labels) == pytest.approx(6 / np.log(4), rel=1e-9)
    with pytest.raises(ValueError, match="no row gives its right answer"):
        predictive.fit_temperature(log_probs[10:], labels[10:])


def test_risk_coverage_by_hand() -> None:
    # Confidences 0.9 right, 0.8 wrong, 0.7 right, 0.6 wrong (given in another order).
    confidences = np.array([0.7, 0.9, 0.6, 0.8])
    log_probs = np.log(np.stack([confidences, 1 - confidences], axis=1))
    coverage, risk = predictive.risk_coverage(log_probs, np.array([0, 0, 1, 1]))
    np.testing.assert_allclose(coverage, [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(risk, [0.0, 1 / 2, 1 / 3, 2 / 4])


def test_equally_confident_rows_share_their_errors() -> None:
    # Four rows of confidence 0.7, two of them wrong: any random order has risk 1/2 at every coverage, in expectation.
    log_probs = np.log(np.tile([0.7, 0.3], (4, 1)))
    for labels in ([0, 0, 1, 1], [1, 1, 0, 0]):
        _, risk = predictive.risk_coverage(log_probs, np.array(labels))
        np.testing.assert_allclose(risk, 0.5)


def test_majority_frequencies_are_smoothed_over_each_rows_choices() -> None:
    # Index counts 3, 0, 1, plus one: 4, 1, 2. Three choices: 4/7, 1/7, 2/7; two choices: 4/5, 1/5.
    log_probs = predictive.majority_log_probs([0, 0, 2, 0], np.array([3, 2]))
    np.testing.assert_allclose(np.exp(log_probs), [[4 / 7, 1 / 7, 2 / 7], [0.8, 0.2, 0.0]])
    with pytest.raises(ValueError, match="train_labels has -1"):
        predictive.majority_log_probs([0, -1], np.array([2]))


@pytest.mark.parametrize(
    ("log_probs", "labels", "message"),
    [
        (np.zeros((2, 3)), [0, -1], r"label -1 .* 1 rows, the first is row 1"),
        (np.zeros((2, 3)), [0, 3], "label 3 in row 1"),
        (np.zeros((2, 3)), [0, 1, 2], "shape"),
        (np.zeros((0, 3)), [], "no rows"),
        (np.array([[0.0, 1.0], [np.nan, 0.0]]), [0, 0], "NaN in row 1"),
    ],
)
def test_labels_that_do_not_fit_are_refused(log_probs: NDArray[np.float64], labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predictive.check_labels(log_probs, np.array(labels, dtype=np.int64))
