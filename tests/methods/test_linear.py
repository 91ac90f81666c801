"""The baselines without adapters: known answers, scikit-learn's own pipelines, unseen labels, few validation rows."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lorchestra.errors import ConfigError
from lorchestra.methods import frozen, temperature, tfidf
from lorchestra.metrics import scores
from lorchestra.metrics.predictive import apply_temperature
from lorchestra.metrics.temperature import regularized_temperature
from lorchestra.training import linear
from lorchestra.training.linear import Rows, fit_linear
from lorchestra.types import Example

LABELS = ("bad", "good", "fair")
WORDS = ("dull", "great", "middling")

MANY = 100_000
"""More features than any of these texts have."""


def texts(number, seed=0, labels=3, noise=0.0, filler=True):
    """Rows whose word gives their label, but for a share of `noise`; the other words mean nothing."""
    draw = np.random.default_rng(seed)
    rows = []
    for n in range(number):
        word, label = n % labels, n % labels
        if draw.random() < noise:
            label = int(draw.integers(labels))
        others = " ".join(draw.choice(["the", "film", "was", "a", "play"], size=4)) if filler else ""
        rows.append(Example(f"{seed}-{n}", f"{others} {WORDS[word]}", LABELS, label, f"rows:{n}"))
    return rows


def of(rows):
    return Rows([row.question for row in rows], np.array([row.answer for row in rows]))


def words_fit(train, val, num_labels=3, strengths=(1.0, 10.0, 100.0)):
    return fit_linear(of(train), of(val), num_labels, {"words": partial(tfidf.make_words, MANY)}, strengths)


def test_separable_texts_are_all_right_and_confident():
    train, val, test = texts(90), texts(60, seed=1), texts(300, seed=2)
    fit = words_fit(train, val, strengths=(1.0, 10.0, 1000.0))
    log_probs = fit.log_probs([row.question for row in test])
    labels = np.array([row.answer for row in test])
    assert scores.accuracy(log_probs, labels) == 1
    assert scores.nll(log_probs, labels) < 0.05
    assert (fit.C, fit.held_out) == (1000.0, "validation")


def test_noisy_labels_give_calibrated_probabilities_after_one_temperature():
    """Three of ten labels are drawn at random: the right label has a probability of 0.8."""
    sizes = (900, 300, 3000)
    train, val, test = (texts(number, seed, noise=0.3, filler=False) for seed, number in enumerate(sizes))
    fit = words_fit(train, val, strengths=(0.1, 1.0, 10.0))
    T = regularized_temperature(fit.log_probs(of(val).inputs), of(val).labels, [LABELS] * 300).T
    log_probs = apply_temperature(fit.log_probs([row.question for row in test]), T)
    labels = np.array([row.answer for row in test])
    assert scores.accuracy(log_probs, labels) == pytest.approx(0.8, abs=0.03)
    assert scores.ece(log_probs, labels) < 0.05
    best = -(0.8 * np.log(0.8) + 0.2 * np.log(0.1))
    assert scores.nll(log_probs, labels) == pytest.approx(best, abs=0.06)


@pytest.mark.parametrize("labels", [2, 3])
def test_the_fit_is_that_of_scikit_learns_pipeline(labels):
    train, val = texts(120, labels=labels, noise=0.2), texts(90, seed=1, labels=labels, noise=0.2)
    strengths = (0.1, 1.0, 10.0)
    for make in (partial(tfidf.make_words, MANY), partial(tfidf.make_words_and_characters, MANY)):
        fit = fit_linear(of(train), of(val), labels, {"features": make}, strengths)
        pipelines = {C: make_pipeline(make(), LogisticRegression(C=C, max_iter=500)) for C in strengths}
        held_out = {}
        for C, pipeline in pipelines.items():
            pipeline.fit(of(train).inputs, of(train).labels)
            held_out[C] = scores.nll(pipeline.predict_log_proba(of(val).inputs), of(val).labels)
        assert min(held_out, key=held_out.__getitem__) == fit.C
        assert fit.held_out_nll == pytest.approx(held_out[fit.C], rel=1e-9)
        expected = pipelines[fit.C].predict_proba(of(val).inputs)
        np.testing.assert_allclose(np.exp(fit.log_probs(of(val).inputs)), expected, rtol=0, atol=1e-12)


def test_features_of_numbers_are_standardized_on_training_rows():
    draw = np.random.default_rng(0)
    matrix, labels = draw.normal(size=(160, 6)) * [1, 10, 100, 1, 1, 1], draw.integers(2, size=160)
    train, val = Rows(matrix[:100], labels[:100]), Rows(matrix[100:], labels[100:])
    fit = fit_linear(train, val, 2, {"states": StandardScaler}, (0.1,))
    expected = make_pipeline(StandardScaler(), LogisticRegression(C=0.1)).fit(matrix[:100], labels[:100])
    np.testing.assert_allclose(np.exp(fit.log_probs(matrix)), expected.predict_proba(matrix), rtol=0, atol=1e-12)
    assert fit.num_parameters == 7


def test_character_features_are_taken_where_they_help():
    """The label is the ending of words that occur once each."""

    def endings(number, seed):
        draw = np.random.default_rng(seed)
        rows = []
        for n in range(number):
            stem = "".join(draw.choice(list("bcdfghklmnprstvz"), size=6))
            rows.append(Example(str(n), stem + ("ova", "ingen")[n % 2], LABELS[:2], n % 2))
        return rows

    features = {
        "words": partial(tfidf.make_words, MANY),
        "both": partial(tfidf.make_words_and_characters, MANY),
    }
    train, val = endings(80, 0), endings(60, 1)
    assert fit_linear(of(train), of(val), 2, features, (10.0,)).features == "both"
    assert fit_linear(of(texts(90)), of(texts(60, seed=1)), 3, features, (1000.0,)).held_out_nll < 0.05


def test_a_label_without_training_rows_has_a_small_probability():
    train, val = texts(60, labels=2), texts(60, seed=1)
    fit = words_fit(train, val)
    log_probs = fit.log_probs(of(val).inputs)
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(np.exp(log_probs[:, 2]), 1 / 63, rtol=1e-12)
    assert np.isfinite(scores.nll(log_probs, of(val).labels))
    only = words_fit(texts(9, labels=1), texts(6, seed=1))
    np.testing.assert_allclose(np.exp(only.log_probs(["any"])), [[10 / 12, 1 / 12, 1 / 12]], rtol=1e-12)


def test_few_validation_rows_leave_the_choice_to_cross_validation():
    train = texts(40, noise=0.2)
    fit = words_fit(train, texts(10, seed=1))
    assert fit.held_out == "cross-validation"
    folds = list(linear._folds(of(train), of([])))
    assert len(folds) == 5
    assert sum(len(held_out.labels) for _, held_out in folds) == 40
    for part, held_out in folds:
        assert set(held_out.labels) == {0, 1, 2}
        assert not set(part.inputs) & set(held_out.inputs) or len(set(of(train).inputs)) < 40


@pytest.mark.parametrize("strengths", [(), (0.0,), (1.0, float("inf"))])
def test_strengths_out_of_range_are_refused(strengths):
    with pytest.raises(ConfigError, match="strengths: "):
        words_fit(texts(9), texts(9), strengths=strengths)


def test_texts_without_words_are_refused(make_context):
    context, _ = make_context()
    blank = [dataclasses.replace(row, question="!? ...") for row in context.train]
    with pytest.raises(ConfigError, match="tfidf: the training texts have no words"):
        tfidf.fit(dataclasses.replace(context, train=blank), tfidf.Config(characters="never"))


@pytest.mark.parametrize("method", [tfidf, frozen])
def test_methods_answer_texts_with_labels_only(make_context, method):
    context, test = make_context()
    fitted = method.fit(context, method.Config())
    predictions = fitted.predict(test, "test")
    assert (predictions.task, predictions.num_members) == ("reviews", 1)
    assert predictions.ids == tuple(row.id for row in test)
    assert fitted.chosen["C"] in method.Config().strengths
    assert any("cross-validation" in note for note in fitted.notes)
    scaled = temperature.wrap(context, fitted, temperature.Config())
    assert scaled.chosen["temperature"] > 0
    context, _ = make_context("questions")
    with pytest.raises(ConfigError, match="a classifier needs texts with labels"):
        method.fit(context, method.Config())


def test_words_learn_the_made_up_reviews(make_context):
    context, test = make_context()
    context = dataclasses.replace(context, val=context.train)
    predictions = tfidf.fit(context, tfidf.Config()).predict(context.train, "train")
    assert scores.accuracy(predictions.log_probs_MEC[0], predictions.labels) > 0.95
    assert (
        scores.accuracy(
            tfidf.fit(context, tfidf.Config()).predict(test, "test").log_probs_MEC[0], [row.answer for row in test]
        )
        >= 0.5
    )
