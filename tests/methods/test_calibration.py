"""Temperature and contextual calibration: known answers on a fake method with given predictions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from named_methods import fit_method

from lorchestra.errors import ConfigError
from lorchestra.methods import contextual, temperature
from lorchestra.methods.contract import Cost, Fitted
from lorchestra.metrics.predictive import mixture_log_probs
from lorchestra.metrics.scores import nll
from lorchestra.types import Example, Predictions

COST = Cost(1.0, 10, 1.0, 100, 50, 2.0)


def fake(answers):
    """A fitted method that predicts `answers(row)`, `[M, C]`."""

    def predict(examples, split, progress=None):
        probs = np.stack([np.asarray(answers(row), dtype=np.float64) for row in examples], axis=1)
        with np.errstate(divide="ignore"):
            log_probs = np.log(probs)
        labels = np.array([-1 if row.answer is None else row.answer for row in examples])
        ids, options = (tuple(getattr(row, name) for row in examples) for name in ("id", "choices"))
        return Predictions(log_probs, labels, ids, options, "fake", split)

    return Fitted(predict, COST)


class Val:
    """A fake context with what wrappers read."""

    def progress(self, what, total):
        return lambda done: None

    def __init__(self, val=(), labels=("no", "yes"), scoring="text"):
        self.val, self.labels, self.questions = val, labels, ()
        self.config = type("Config", (), {"data": type("Data", (), {"scoring": scoring})})


def test_temperature_is_recovered():
    """If labels follow p and predictions p^3, T is 3 for any p."""
    rows, probs = [], {}
    for k, p in enumerate((0.1, 0.3, 0.6, 0.8)):
        for n in range(100):
            row = Example(f"{k}-{n}", f"{k}", ("no", "yes"), int(n < 100 * p))
            rows.append(row)
            probs[row.question] = np.array([[1 - p, p]]) ** 3 / ((1 - p) ** 3 + p**3)
    method = fake(lambda row: probs[row.question])
    fitted = temperature.wrap(Val(rows), method, temperature.Config(prior=False))
    assert fitted.chosen["temperature"] == pytest.approx(3.0, rel=1e-6)
    calibrated = np.exp(fitted.predict(rows[::100], "test").log_probs_MEC[0, :, 1])
    np.testing.assert_allclose(calibrated, [0.1, 0.3, 0.6, 0.8], rtol=1e-6)
    assert (fitted.cost.parameters, fitted.cost.predict_base_passes) == (51, 2.0)


def test_temperature_grows_with_confidence_and_keeps_every_argmax():
    draw = np.random.default_rng(0)
    truth = draw.uniform(0.05, 0.95, 300)
    rows = [Example(str(n), str(n), ("no", "yes"), int(draw.random() < p)) for n, p in enumerate(truth)]
    fits = []
    for power in (0.5, 1.0, 2.0, 4.0):

        def answers(row, power=power):
            p = truth[int(row.question)] ** power
            return [[(1 - truth[int(row.question)]) ** power, p] / ((1 - truth[int(row.question)]) ** power + p)]

        fitted = temperature.wrap(Val(rows), fake(answers), temperature.Config(prior=False))
        fits.append(fitted.chosen["temperature"])
        plain, scaled = fake(answers).predict(rows, "val"), fitted.predict(rows, "val")
        np.testing.assert_array_equal(scaled.log_probs_MEC.argmax(-1), plain.log_probs_MEC.argmax(-1))
        assert nll(scaled.log_probs_MEC[0], scaled.labels) <= nll(plain.log_probs_MEC[0], plain.labels)
    assert fits == sorted(fits)
    np.testing.assert_allclose(np.array(fits) / fits[1], [0.5, 1, 2, 4], rtol=1e-6)


def test_temperature_of_the_mixture_or_of_each_member(make_context):
    context, test = make_context()
    plain = fit_method(context, "lora_ensemble")
    pooled = temperature.wrap(context, plain, temperature.Config())
    assert pooled.predict(test, "test").num_members == 1
    assert set(pooled.chosen) == {"temperature"}
    members = temperature.wrap(context, plain, temperature.Config(of="members"))
    scaled = members.predict(test, "test")
    assert scaled.num_members == 3
    assert set(members.chosen) == {"temperature_0", "temperature_1", "temperature_2"}
    for m in range(3):
        exponent = 1 / members.chosen[f"temperature_{m}"]
        powered = np.exp(plain.predict(test, "test").log_probs_MEC[m]) ** exponent
        np.testing.assert_allclose(np.exp(scaled.log_probs_MEC[m]), powered / powered.sum(1, keepdims=True), rtol=1e-9)


def test_contextual_calibration_divides_by_the_content_free_prediction():
    """Zhao et al.: with W the inverse diagonal of p_cf, a content-free input becomes uniform."""
    bias = {"N/A": [[0.8, 0.2], [0.5, 0.5]], "-": [[0.6, 0.4], [0.5, 0.5]], "x": [[0.7, 0.3], [0.9, 0.1]]}
    fitted = contextual.wrap(Val(), fake(lambda row: bias[row.question]), contextual.Config(texts=("N/A", "-")))
    rows = [Example("0", "x", ("no", "yes"), None)]
    calibrated = np.exp(fitted.predict(rows, "test").log_probs_MEC[:, 0])
    np.testing.assert_allclose(calibrated, [[0.5, 0.5], [0.9, 0.1]], rtol=1e-12)
    assert fitted.cost.predict_base_passes == 2.0


@pytest.mark.parametrize("scoring", ["text", "tree", "letter"])
def test_contextual_calibration_of_rows_with_different_choices(scoring):
    """Texts are divided by their probability after an empty question, letters by that for empty options."""
    inputs = []

    def answers(row):
        inputs.append((row.question, row.choices))
        base = {"a": 4.0, "b": 1.0, "c": 1.0, "N/A": 1.0}
        weights = np.array([base[c] for c in row.choices] + [0.0] * (3 - len(row.choices)))
        if row.choices[0] == "N/A":
            weights[0] = 2.0  # bias towards letter A
        return [weights / weights.sum()]

    fitted = contextual.wrap(Val(labels=None, scoring=scoring), fake(answers), contextual.Config(texts=("N/A",)))
    rows = [Example("0", "q", ("a", "b"), 0), Example("1", "r", ("b", "a", "c"), 0)]
    calibrated = np.exp(fitted.predict(rows, "test").log_probs_MEC[0])
    if scoring != "letter":
        np.testing.assert_allclose(calibrated, [[0.5, 0.5, 0], [1 / 3] * 3], rtol=1e-12)
        assert ("N/A", ("a", "b")) in inputs
        assert fitted.cost.predict_base_passes == 4.0
    else:
        np.testing.assert_allclose(calibrated, [[2 / 3, 1 / 3, 0], [0.5 / 5.5, 4 / 5.5, 1 / 5.5]], rtol=1e-12)
        assert ("N/A", ("N/A", "N/A")) in inputs
        assert fitted.cost.predict_base_passes == 2.0


def test_contextual_calibration_of_a_base_makes_content_free_inputs_uniform(make_context):
    context, test = make_context()
    fitted = contextual.wrap(context, fit_method(context, "zero_shot"), contextual.Config(texts=("N/A",)))
    nothing = [dataclasses.replace(test[0], question="N/A")]
    np.testing.assert_allclose(np.exp(fitted.predict(nothing, "x").log_probs_MEC), 0.5, rtol=0, atol=1e-6)
    assert np.abs(np.exp(mixture_log_probs(fitted.predict(test, "test").log_probs_MEC)) - 0.5).max() > 0.01


def test_temperature_of_few_rows_is_limited_by_the_prior_and_noted():
    """Twelve correct rows have no best temperature: the lower, the better."""
    rows = [Example(str(n), str(n), ("no", "yes"), n % 2) for n in range(12)]
    method = fake(lambda row: [[0.7, 0.3] if row.answer == 0 else [0.3, 0.7]])
    alone = temperature.wrap(Val(rows), method, temperature.Config(prior=False))
    assert alone.chosen["temperature"] == 0.01
    fitted = temperature.wrap(Val(rows), method, temperature.Config())
    assert 0.3 < fitted.chosen["temperature"] < 1
    assert fitted.notes[0] == "temperature fitted on 12 validation rows only"
    assert "set no limit to T" in fitted.notes[1]
    members = temperature.wrap(Val(rows), method, temperature.Config(of="members"))
    assert members.notes[1].startswith("temperature of member 0 (T = ")


def test_rows_that_do_not_determine_a_temperature_are_refused():
    method = fake(lambda row: [[0.7, 0.3]])
    with pytest.raises(ConfigError, match="there are no validation rows"):
        temperature.wrap(Val([]), method, temperature.Config())
    rows = [Example(str(n), str(n), ("no", "yes"), 0) for n in range(12)]
    with pytest.raises(ConfigError, match="all of the 12 validation rows have the answer 'no'"):
        temperature.wrap(Val(rows), method, temperature.Config())
    impossible = fake(lambda row: [[0.0, 1.0] if row.answer == 0 else [1.0, 0.0]])
    rows = [Example(str(n), str(n), ("no", "yes"), n % 2) for n in range(12)]
    with pytest.raises(ConfigError, match="no validation row gives its right answer a positive probability"):
        temperature.wrap(Val(rows), impossible, temperature.Config())


def test_tiny_content_free_probability_is_noted_and_zero_refused():
    rows = [Example("0", "x", ("no", "yes"), None)]
    answers = {"N/A": [[0.9999, 0.0001]], "x": [[0.5, 0.5]]}
    fitted = contextual.wrap(Val(), fake(lambda row: answers[row.question]), contextual.Config(texts=("N/A",)))
    assert fitted.notes == []
    fitted.predict(rows, "test")
    fitted.predict(rows, "test")
    (note,) = fitted.notes
    assert "divides the probability of 'yes' by its content-free probability, 0.0001" in note
    answers["N/A"] = [[1.0, 0.0]]
    with pytest.raises(ConfigError, match="the content-free probability of choice 'yes' is 0"):
        fitted.predict(rows, "test")


def test_refusals():
    method = fake(lambda row: [[0.5, 0.5]])
    with pytest.raises(ConfigError, match=r"contextual\.texts: \(\) must be"):
        contextual.wrap(Val(), method, contextual.Config(texts=()))
    fitted = contextual.wrap(Val(), method, contextual.Config())
    with pytest.raises(ConfigError, match="contextual: the rows have no question"):
        fitted.predict([Example("0", " ", ("no", "yes"), 0)], "test")
