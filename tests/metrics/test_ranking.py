"""Ranking scores by hand, the combined score against scikit-learn, and the choice between them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lorchestra.metrics.predictive import entropy, mixture_log_probs, mutual_information
from lorchestra.metrics.ranking import (
    SIMPLE,
    CombinedScore,
    choose_score,
    chosen_scores,
    fit_combined,
    simple_scores,
)
from lorchestra.metrics.scores import aurc, score_rows
from lorchestra.metrics.selective import resampled_aurc

FloatArray = NDArray[np.float64]


def logs(probs: object) -> FloatArray:
    with np.errstate(divide="ignore"):
        return np.log(np.array(probs, dtype=np.float64))


def features(seed: int, rows: int, useful: str = "max_prob") -> tuple[dict[str, FloatArray], FloatArray]:
    """Random scores, of which one says how probable a right answer is, and the probability says half of it."""
    generator = np.random.default_rng(seed)
    signal = generator.normal(size=rows)
    correct = (generator.random(rows) < 1 / (1 + np.exp(-1.5 - 2 * signal))).astype(float)
    noise = {name: generator.normal(size=rows) for name in SIMPLE}
    scores = {name: signal if name == useful else noise[name] for name in SIMPLE}
    weak = signal if useful == "max_prob" else 0.5 * signal + noise["max_prob"]
    return scores | {"max_prob": 1 / (1 + np.exp(-weak))}, correct


def test_by_hand() -> None:
    members = logs([[[0.8, 0.2, 0.0], [0.3, 0.3, 0.4], [1.0, 0, 0]], [[0.4, 0.6, 0.0], [0.2, 0.6, 0.2], [1.0, 0, 0]]])
    mixture = mixture_log_probs(members)
    scores = simple_scores(members, mixture)
    assert tuple(scores) == SIMPLE
    np.testing.assert_allclose(scores["max_prob"], [0.6, 0.45, 1.0])
    # a row with one choice leads by all of it
    np.testing.assert_allclose(scores["margin"], [0.2, 0.15, 1.0])
    np.testing.assert_allclose(scores["entropy"], -entropy(mixture))
    np.testing.assert_allclose(scores["mutual_information"], -mutual_information(members))
    np.testing.assert_array_equal(scores["agreement"], [0.5, 0.5, 1.0])
    assert not np.signbit(scores["entropy"][2])


def test_all_scores_are_finite_where_choices_differ_and_members_are_certain() -> None:
    members = logs([[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]], [[0.0, 1.0, 0.0], [0.5, 0.5, 0.0]]])
    scores = simple_scores(members, mixture_log_probs(members))
    assert all(np.isfinite(values).all() for values in scores.values())
    with pytest.raises(ValueError, match="a log-probability is NaN"):
        simple_scores(np.full((1, 1, 2), np.nan), np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"members have shape \(2, 2, 3\) and their mixture \(2, 2\)"):
        simple_scores(members, np.zeros((2, 2)))


def test_the_combined_score_is_scikit_learns() -> None:
    scores, correct = features(0, 300, "margin")
    fitted = fit_combined(scores, correct)
    logit = np.log(scores["max_prob"] / (1 - scores["max_prob"]))
    columns = np.stack([logit, *(scores[name] for name in SIMPLE[1:])], axis=1)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(columns, correct)
    np.testing.assert_allclose(fitted.apply(scores), theirs.predict_proba(columns)[:, 1], rtol=1e-6)
    again = CombinedScore.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert again == fitted
    np.testing.assert_array_equal(again.apply(scores), fitted.apply(scores))
    np.testing.assert_array_equal(chosen_scores("combined", scores, fitted), fitted.apply(scores))
    np.testing.assert_array_equal(chosen_scores("margin", scores), scores["margin"])


def test_constant_scores_and_certain_rows_can_be_combined() -> None:
    scores, correct = features(1, 200)
    scores["agreement"] = np.ones(200)
    scores["max_prob"][:50] = 1.0
    assert np.isfinite(fit_combined(scores, correct).apply(scores)).all()


def test_refused_fits() -> None:
    scores, correct = features(2, 50)
    with pytest.raises(ValueError, match="all 50 answers are right: nothing to fit"):
        fit_combined(scores, np.ones(50))
    with pytest.raises(ValueError, match="all 50 answers are wrong: nothing to fit"):
        fit_combined(scores, np.zeros(50))
    with pytest.raises(ValueError, match=r"scores have shape \(50,\) and correctness \(49,\)"):
        fit_combined(scores, correct[1:])
    with pytest.raises(ValueError, match="the combined score needs its fitted model"):
        chosen_scores("combined", scores)
    with pytest.raises(ValueError, match="score is 'best', not one of max_prob, margin"):
        chosen_scores("best", scores)  # type: ignore[arg-type]


def test_the_aurc_of_a_score_is_that_of_confidences() -> None:
    generator = np.random.default_rng(3)
    probs = np.round(generator.dirichlet(np.ones(3), size=200), 1) + 1e-3  # ties
    log_probs = np.log(probs / probs.sum(axis=1, keepdims=True))
    labels = generator.integers(0, 3, size=200)
    rows = score_rows(log_probs, labels)
    (value,) = resampled_aurc(rows.confidence, rows.correct, np.ones((1, 200)))
    assert value == pytest.approx(aurc(log_probs, labels))
    # the order alone counts
    (monotone,) = resampled_aurc(-np.log1p(-rows.confidence), rows.correct, np.ones((1, 200)))
    assert monotone == pytest.approx(value)


@pytest.mark.parametrize("useful", SIMPLE)
def test_the_clearly_best_score_is_chosen(useful: str) -> None:
    scores, correct = features(4, 1500, useful)
    choice = choose_score(scores, correct, seed=0, resamples=300)
    assert choice.score in (useful, "combined") if useful != "max_prob" else choice.score == "max_prob"
    assert set(choice.aurc) == {*SIMPLE, "combined"}
    assert set(choice.gain) == {*SIMPLE[1:], "combined"}
    for name, (low, high) in choice.gain.items():
        assert low <= choice.aurc["max_prob"] - choice.aurc[name] <= high
    if useful != "max_prob":
        assert choice.gain[useful][0] > 0
        assert "is clearly below" in choice.reason


def test_the_probability_stays_among_equals() -> None:
    """Monotone functions of one another, up to noise: in 60 sets another one is chosen at most a few times."""
    others = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        signal = generator.normal(size=200)
        correct = (generator.random(200) < 1 / (1 + np.exp(-1 - signal))).astype(float)
        noisy = {name: signal + 0.3 * generator.normal(size=200) for name in SIMPLE}
        scores = noisy | {"max_prob": 1 / (1 + np.exp(-noisy["max_prob"]))}
        others += choose_score(scores, correct, seed=seed, resamples=200).score not in ("max_prob", "combined")
    assert others <= 7


def test_the_probability_stays_with_few_errors() -> None:
    scores, _ = features(5, 100)
    few = choose_score(scores, np.arange(100) >= 3, seed=0)
    assert (few.score, few.gain) == ("max_prob", {})
    assert "combined" not in few.aurc
    assert "3 wrong and 97 right rows are too few" in few.reason
    for correct in (np.ones(100), np.zeros(100)):
        assert choose_score(scores, correct, seed=0).score == "max_prob"
    one = {name: values[:1] for name, values in scores.items()}
    assert choose_score(one, np.ones(1), seed=0).aurc["max_prob"] == 0.0


def test_the_choice_is_a_function_of_the_seed() -> None:
    scores, correct = features(6, 300, "margin")
    assert choose_score(scores, correct, seed=1, resamples=50) == choose_score(scores, correct, seed=1, resamples=50)
