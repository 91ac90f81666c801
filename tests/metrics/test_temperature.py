"""A temperature that few rows cannot drive to an extreme: known answers, notes, and what many rows decide."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from lorchestra.metrics import predictive
from lorchestra.metrics.temperature import PRIOR_STD, regularized_temperature

FloatArray = NDArray[np.float64]


def log_softmax(scores: FloatArray) -> FloatArray:
    return np.asarray(scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True)))


def options(rows: int, classes: int) -> list[tuple[str, ...]]:
    return [tuple("abcd"[:classes])] * rows


def drawn(rows: int, temperature: float, seed: int, classes: int = 4) -> tuple[FloatArray, NDArray[np.int64]]:
    """Scores whose best temperature is known, and answers that follow the true distribution."""
    generator = np.random.default_rng(seed)
    scores = 2 * generator.normal(size=(rows, classes))
    below = np.exp(log_softmax(scores)).cumsum(axis=1) < generator.random((rows, 1))
    return log_softmax(temperature * scores), np.minimum(below.sum(axis=1), classes - 1)


@pytest.mark.parametrize(("rows", "right"), [(10, 8), (10, 10), (200, 150)])
def test_the_fit_minimizes_nll_plus_the_priors_penalty(rows: int, right: int) -> None:
    log_odds = 3.0
    log_probs = log_softmax(np.tile([log_odds, 0.0], (rows, 1)))
    labels = np.array([0] * right + [1] * (rows - right))
    labels[0], log_probs[0] = 1, log_probs[0, ::-1]  # two labels among the answers, the same NLL

    def penalized(u: float) -> float:
        x = log_odds * np.exp(-u)
        return float(rows * np.log1p(np.exp(-x)) + (rows - right) * x + u**2 / (2 * PRIOR_STD**2))

    expected = minimize_scalar(penalized, bounds=(-4, 4), method="bounded", options={"xatol": 1e-12}).x
    fit = regularized_temperature(log_probs, labels, options(rows, 2))
    assert fit.T is not None
    assert np.log(fit.T) == pytest.approx(expected, abs=1e-6)
    assert fit.num_rows == rows


def test_twelve_rows_that_are_all_right_do_not_ruin_the_answers() -> None:
    """Without the prior T is at its bound, and new rows of which one in six is wrong have an NLL of many nats."""
    validation = drawn(12, 1.0, seed=0, classes=2)
    validation = validation[0], validation[0].argmax(axis=-1)
    assert len(set(validation[1].tolist())) == 2
    log_probs, labels = drawn(2000, 1.0, seed=1, classes=2)

    def nll(temperature: float) -> float:
        scaled = predictive.apply_temperature(log_probs, temperature)
        return float(-scaled[np.arange(2000), labels].mean())

    alone = regularized_temperature(*validation, options(12, 2), prior=False)
    assert predictive.TEMPERATURE_RANGE[0] == alone.T
    assert "at its bound" in alone.notes[0]
    assert nll(alone.T) > 5
    fit = regularized_temperature(*validation, options(12, 2))
    assert fit.T is not None
    assert 0.3 < fit.T < 1
    assert nll(fit.T) < 1.15 * nll(1.0)
    assert fit.notes == (
        "the validation rows alone set no limit to T (the sharper, the lower their NLL): the prior towards T = 1"
        " decided it",
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5, 2.5])
def test_five_hundred_rows_overrule_the_prior(temperature: float) -> None:
    """The prior moves log T by less than its standard error, which is that of repeated draws."""
    fits, alone = [], []
    for seed in range(20):
        log_probs, labels = drawn(500, temperature, seed)
        fit = regularized_temperature(log_probs, labels, options(500, 4))
        assert fit.T is not None
        assert fit.notes == ()
        fits.append(np.log(fit.T))
        alone.append(np.log(predictive.fit_temperature(log_probs, labels)))
    assert np.max(np.abs(np.subtract(fits, alone))) < np.std(alone, ddof=1)


def test_rows_without_information_leave_the_answers_unchanged() -> None:
    uniform = np.log(np.full((6, 2), 0.5))
    assert pytest.approx(1.0, abs=1e-9) == regularized_temperature(uniform, np.array([0, 1] * 3), options(6, 2)).T


def test_rows_that_cannot_judge_give_a_reason() -> None:
    log_probs, _ = drawn(12, 1.0, seed=0, classes=2)
    one_class = regularized_temperature(log_probs, np.zeros(12, dtype=np.int64), [("no", "yes")] * 12)
    assert one_class.T is None
    assert one_class.reason == "all of the 12 validation rows have the answer 'no', which says nothing of the others"
    assert (one_class.num_rows, one_class.notes) == (12, ())
    # Where choices differ by row, the first choice is not a class.
    choices = [(f"a{row}", f"b{row}") for row in range(12)]
    assert regularized_temperature(log_probs, np.zeros(12, dtype=np.int64), choices).T is not None
    impossible = np.array([[0.0, -np.inf], [-np.inf, 0.0]])
    fit = regularized_temperature(impossible, np.array([1, 0]), options(2, 2))
    assert fit.reason == "no validation row gives its right answer a positive probability"


def test_a_prior_that_moved_the_fit_is_noted() -> None:
    log_probs, labels = drawn(25, 4.0, seed=0)
    fit = regularized_temperature(log_probs, labels, options(25, 4))
    assert "the prior towards T = 1 moved it from" in fit.notes[0]
    assert (fit.num_rows, fit.reason, len(fit.notes)) == (25, None, 1)
