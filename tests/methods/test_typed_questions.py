"""Methods on typed questions: each question is fitted, scaled and calibrated by its rows alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from typed_rows import typed_config

from lorchestra.errors import ConfigError
from lorchestra.methods import contextual, few_shot, frozen, temperature, tfidf, zero_shot
from lorchestra.methods.contract import Meter
from lorchestra.methods.training import changed, start_training
from lorchestra.metrics.by_question import split_by_question
from lorchestra.metrics.predictive import apply_temperature, mixture_log_probs
from lorchestra.metrics.temperature import regularized_temperature
from lorchestra.runs.compare import method_context
from lorchestra.runs.rows import read_rows
from lorchestra.training.sampler import units_of

NAMES = ["genre", "praised", "length"]


@pytest.fixture(scope="module")
def task(tiny_base, tmp_path_factory):
    config = typed_config(tmp_path_factory.mktemp("typed"), tiny_base, number=60)
    rows = read_rows(config.data, config.train.seed).task
    return method_context(config, rows), rows.splits["test"]


@pytest.fixture(scope="module")
def context(task):
    return task[0]


@pytest.fixture(scope="module")
def test_rows(task):
    return task[1]


def of_question(context, name):
    """The context of texts with labels that one question is."""
    question = next(one for one in context.questions if one.name == name)
    rows = {split: [row for row in getattr(context, split) if row.asked == question] for split in ("train", "val")}
    return dataclasses.replace(context, labels=question.options, **rows)


@pytest.mark.parametrize("method", [tfidf, frozen])
def test_a_classifier_of_each_question_is_that_of_texts_with_its_options_as_labels(context, test_rows, method):
    fitted = method.fit(context, method.Config())
    every = fitted.predict(test_rows, "test")
    assert every.ids == tuple(row.id for row in test_rows)
    parts = split_by_question(every)
    assert sorted(parts) == sorted(NAMES)
    parameters = 0
    for name, part in parts.items():
        alone = method.fit(of_question(context, name), method.Config())
        expected = alone.predict([row for row in test_rows if row.asked.name == name], "test")
        np.testing.assert_allclose(part.log_probs_MEC, expected.log_probs_MEC, rtol=0, atol=1e-9)
        assert fitted.chosen[f"C_{name}"] == alone.chosen["C"]
        parameters += alone.cost.parameters
    assert fitted.cost.parameters == parameters


def test_a_question_that_cannot_be_fitted_is_named(context):
    train = [row if row.asked.name != "praised" else dataclasses.replace(row, question="...") for row in context.train]
    with pytest.raises(ConfigError, match=r"\(question praised\)"):
        tfidf.fit(dataclasses.replace(context, train=train), tfidf.Config())


def test_a_question_without_training_rows_is_named(context, test_rows):
    train = [row for row in context.train if row.asked.name != "praised"]
    fitted = tfidf.fit(dataclasses.replace(context, train=train), tfidf.Config())
    with pytest.raises(ConfigError, match="there are no training rows with question praised"):
        fitted.predict(test_rows, "test")


@pytest.mark.parametrize("of", ["mixture", "members"])
def test_each_question_has_the_temperature_of_its_validation_rows(context, test_rows, of):
    plain = tfidf.fit(context, tfidf.Config())
    scaled = temperature.wrap(context, plain, temperature.Config(of=of))
    parts = split_by_question(scaled.predict(test_rows, "test"))
    before, val = (split_by_question(plain.predict(rows, "x")) for rows in (test_rows, context.val))
    member = "_0" if of == "members" else ""
    for name in NAMES:
        mixture_EC = mixture_log_probs(val[name].log_probs_MEC)
        T = regularized_temperature(mixture_EC, val[name].labels, val[name].options).T
        assert scaled.chosen[f"temperature{member}_{name}"] == T
        expected = apply_temperature(mixture_log_probs(before[name].log_probs_MEC), T)
        np.testing.assert_allclose(parts[name].log_probs_MEC[0], expected, rtol=0, atol=1e-12)
    assert len({scaled.chosen[f"temperature{member}_{name}"] for name in NAMES}) == 3
    assert scaled.cost.parameters == plain.cost.parameters + 3


def test_a_question_without_a_temperature_stays_as_it_is(context, test_rows):
    """All its validation rows have one answer, which determines none."""
    val = [row for row in context.val if row.asked.name != "praised" or row.answer == 0]
    context = dataclasses.replace(context, val=val)
    plain = tfidf.fit(context, tfidf.Config())
    scaled = temperature.wrap(context, plain, temperature.Config())
    before, after = (split_by_question(one.predict(test_rows, "test")) for one in (plain, scaled))
    assert after["praised"].log_probs_MEC.tolist() == before["praised"].log_probs_MEC.tolist()
    assert after["genre"].log_probs_MEC.tolist() != before["genre"].log_probs_MEC.tolist()
    assert "temperature_praised" not in scaled.chosen
    assert any(note.startswith("no temperature of question praised: ") for note in scaled.notes)
    only = dataclasses.replace(context, val=[row for row in val if row.asked.name == "praised"])
    with pytest.raises(ConfigError, match=r"temperature: .*; use other validation rows"):
        temperature.wrap(only, plain, temperature.Config())


@pytest.mark.parametrize("scoring", ["tree", "letter"])
def test_contextual_calibration_asks_each_question_about_nothing(context, test_rows, scoring):
    data = dataclasses.replace(context.config.data, scoring=scoring)
    context = dataclasses.replace(context, config=dataclasses.replace(context.config, data=data))
    plain = zero_shot.fit(context, zero_shot.Config())
    calibrated = contextual.wrap(context, plain, contextual.Config(texts=("N/A",)))
    before, after = (split_by_question(one.predict(test_rows, "test")) for one in (plain, calibrated))
    for question in context.questions:
        row = next(row for row in test_rows if row.asked == question)
        empty = plain.predict([dataclasses.replace(row, question="N/A")], "empty").log_probs_MEC
        quotients = np.exp(before[question.name].log_probs_MEC - empty)
        expected = quotients / quotients.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(np.exp(after[question.name].log_probs_MEC), expected, rtol=0, atol=1e-5)
    assert calibrated.cost.predict_base_passes == plain.cost.predict_base_passes


def test_few_shot_is_refused(context):
    with pytest.raises(ConfigError, match="few_shot: typed questions are asked without examples"):
        few_shot.fit(context, few_shot.Config())


def test_questions_about_one_state_are_in_one_fold(context):
    """Every member has three quarters of the states, with all questions that are answered about each."""
    config = changed(context.config, adapt={"order": "folds", "members": 4})
    trainer = start_training(context, Meter(), config).trainer
    units = units_of(trainer.rows.train)
    assert {len(unit) for unit in units} == {2, 3}
    of_state = {row.row: u for u, unit in enumerate(units) for row in unit}
    left_out = []
    for m in range(4):
        seen = [row.row for step in range(trainer.steps_per_epoch) for row in trainer.sampler.rows(m, step)]
        states = {of_state[row] for row in seen}
        assert sorted(seen) == sorted(row.row for u in states for row in units[u])
        left_out.append(set(range(len(units))) - states)
    assert [len(states) for states in left_out] == [len(units) // 4] * 4
    assert len(set.union(*left_out)) == len(units) // 4 * 4
