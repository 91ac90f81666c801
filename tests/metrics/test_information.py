"""The head that predicts mutual information: known functions, ridge regression, the choice of its strength."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from lorchestra.metrics.information import InformationHead, InformationRows, fit_information
from lorchestra.metrics.predictive import entropy, information, mutual_information
from lorchestra.types import Predictions


def draw_rows(number, seed, root, num_features=6):
    """Rows whose mutual information is the square of `root(states, entropies)`."""
    draw = np.random.default_rng(seed)
    states = (draw.normal(size=(number, num_features)) * np.geomspace(1, 30, num_features) + 5).astype(np.float32)
    probs = draw.dirichlet([1.0, 1.0, 1.0], number)
    log_probs = np.log(probs)
    return InformationRows(states, log_probs, root(states.astype(np.float64), entropy(log_probs)) ** 2)


def linear(states, entropies):
    return 0.4 + 0.02 * states[:, 0] + 0.001 * states[:, 4] + 0.1 * entropies


def test_a_linear_root_is_recovered():
    """Weights, intercept and predictions on new rows."""
    fit = fit_information(draw_rows(400, 0, linear), draw_rows(100, 1, linear), strengths=(1e-12, 1.0))
    assert fit.strength == 1e-12
    weights = fit.head.weights_D / fit.head.scale_D
    assert_allclose(weights, [0.02, 0, 0, 0, 0.001, 0, 0.1], atol=1e-8)
    assert_allclose(fit.head.intercept - weights @ fit.head.mean_D, 0.4, atol=1e-7)
    new = draw_rows(50, 2, linear)
    assert_allclose(fit.head.predict(new.states_ED, new.log_probs_EC), new.information_E, atol=1e-7)
    assert fit.r_squared == pytest.approx(1.0, abs=1e-6)
    assert fit.correlation == pytest.approx(1.0)
    assert fit.num_rows == 400


@pytest.mark.parametrize(("number", "strength"), [(80, 1e-3), (80, 0.1), (80, 10.0), (5, 0.1)])
def test_the_penalized_normal_equations_hold(number, strength):
    """(X'X / E + strength P) w = X'y / E with P = 1 for each feature of the state and 0 for the entropy."""
    rows = draw_rows(number, 3, lambda states, entropies: np.abs(np.sin(states[:, 0])) + entropies)
    fit = fit_information(rows, draw_rows(20, 4, linear), strengths=(strength,))
    features = np.column_stack([rows.states_ED.astype(np.float64), entropy(rows.log_probs_EC)])
    standardized = (features - features.mean(axis=0)) / features.std(axis=0)
    roots = np.sqrt(rows.information_E)
    gram = standardized.T @ standardized / number + strength * np.diag([1.0] * 6 + [0.0])
    expected = np.linalg.solve(gram, standardized.T @ (roots - roots.mean()) / number)
    assert_allclose(fit.head.weights_D, expected, atol=1e-10)
    assert fit.head.intercept == pytest.approx(roots.mean())


def test_the_strongest_penalty_leaves_the_entropy():
    """A straight line through the roots by entropy, which the state adds nothing to."""
    rows = draw_rows(60, 8, linear)
    fit = fit_information(rows, rows, strengths=(1e15,))
    slope, intercept = np.polyfit(entropy(rows.log_probs_EC), np.sqrt(rows.information_E), 1)
    new = draw_rows(30, 9, linear)
    expected = np.maximum(intercept + slope * entropy(new.log_probs_EC), 0) ** 2
    assert_allclose(fit.head.predict(new.states_ED, new.log_probs_EC), expected, atol=1e-9)


def test_the_strength_is_the_one_of_the_least_error_on_validation_rows():
    """More features than rows, and noise: neither the weakest nor the strongest penalty is best."""

    def noisy(states, entropies):
        return np.maximum(0.5 + 0.05 * states[:, 0] + np.random.default_rng(7).normal(0, 0.3, len(states)), 0)

    rows, val = (draw_rows(number, seed, noisy, 60) for number, seed in ((50, 5), (400, 6)))
    fit = fit_information(rows, val)
    errors = {}
    for strength in (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1000.0):
        head = fit_information(rows, val, strengths=(strength,)).head
        predicted = np.sqrt(head.predict(val.states_ED, val.log_probs_EC))
        errors[strength] = ((predicted - np.sqrt(val.information_E)) ** 2).mean()
    assert fit.strength == pytest.approx(min(errors, key=errors.get))
    assert 1e-4 < fit.strength < 1000


def test_predictions_are_never_negative():
    head = InformationHead(np.zeros(2), np.ones(2), np.array([1.0, 0.0]), -0.5)
    states = np.array([[0.0], [0.5], [1.5]], dtype=np.float32)
    assert head.predict(states, np.log(np.full((3, 2), 0.5))).tolist() == [0.0, 0.0, 1.0]


def test_constant_features_and_information():
    rows = InformationRows(np.ones((5, 3), np.float32), np.log(np.full((5, 2), 0.5)), np.full(5, 0.04))
    fit = fit_information(rows, rows)
    assert_allclose(fit.head.predict(rows.states_ED, rows.log_probs_EC), 0.04)
    assert fit.correlation is None
    assert fit.r_squared is None


def test_what_cannot_be_fitted_is_refused():
    rows = draw_rows(10, 0, linear)
    none = InformationRows(rows.states_ED[:0], rows.log_probs_EC[:0], rows.information_E[:0])
    with pytest.raises(ValueError, match="there are no rows"):
        fit_information(rows, none)
    bad = InformationRows(rows.states_ED * np.float32(np.nan), rows.log_probs_EC, rows.information_E)
    with pytest.raises(ValueError, match="not finite"):
        fit_information(bad, rows)


def test_predicted_information_replaces_that_of_the_members():
    log_probs = np.log(np.array([[[0.2, 0.8]], [[0.9, 0.1]]]))
    predictions = Predictions(log_probs, np.array([0]), ("a",), (("no", "yes"),), "task", "test")
    assert information(predictions) == mutual_information(log_probs)
    one = Predictions(
        log_probs[:1], np.array([0]), ("a",), (("no", "yes"),), "task", "test", predicted_information=np.array([0.3])
    )
    assert information(one).tolist() == [0.3]
    with pytest.raises(ValueError, match="predicted_information has 2 entries for 1 examples"):
        Predictions(
            log_probs, np.array([0]), ("a",), (("no", "yes"),), "task", "test", predicted_information=np.zeros(2)
        )
