"""Runs whose members are mixed with a linear probe: fitted, saved, used everywhere, and refused where it cannot be."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from lorchestra.config.run import MixtureConfig, RunConfig
from lorchestra.errors import CheckpointError, ConfigError
from lorchestra.inference.features import encode_texts, mean_states
from lorchestra.metrics.early_exit import ExitRule
from lorchestra.metrics.linear_probe import mix
from lorchestra.questions import Question
from lorchestra.runs import linear_probe
from lorchestra.runs.ask import Asked, Asker
from lorchestra.runs.compare import compare_methods
from lorchestra.runs.ensemble import Ensemble, load_run
from lorchestra.runs.evaluate import evaluate_run
from lorchestra.runs.train import train_run


@pytest.fixture
def config(run_config, texts_csv):
    def build(**settings):
        made = run_config(texts_csv(number=80), train={"epochs": 1}, evaluate={"few_shot": 0}, **settings)
        return dataclasses.replace(made, mixture=MixtureConfig("auto"))

    return build


@pytest.fixture
def always_useful(monkeypatch):
    """Whatever the validation rows say, the probe gets a quarter."""
    monkeypatch.setattr(linear_probe, "choose_weight", lambda *rows: (0.25, 0.5, 0.6))


@pytest.fixture
def finished(config, tmp_path, always_useful):
    train_run(config(), tmp_path / "run")
    return tmp_path / "run"


def test_answers_are_mixed_with_the_probe(finished, texts_csv):
    trained = load_run(finished)
    pipeline, probe = trained.pipeline, trained.pipeline.linear_probe
    rows = trained.read(texts_csv("new.csv", 12, seed=9), require_answer=False)
    mixed = pipeline.predict_members(rows, "new").log_probs_MEC
    alone = dataclasses.replace(pipeline, linear_probe=None).predict_members(rows, "new").log_probs_MEC
    texts = encode_texts(pipeline.tokens, rows, pipeline.max_length)
    features = mean_states(pipeline.model, texts, probe.layers, pipeline.token_budget)
    np.testing.assert_allclose(mixed, mix(alone, probe.log_probs(features), 0.25), rtol=1e-9)
    assert abs(mixed - alone).max() > 1e-3
    np.testing.assert_allclose(np.exp(mixed).sum(axis=-1), 1)


def test_streams_of_rows_get_the_same_answers(finished, texts_csv):
    trained = load_run(finished)
    rows = trained.read(texts_csv("new.csv", 9, seed=9), require_answer=False)
    whole = trained.pipeline.predict_members(rows, "new")
    answers = list(trained.predict([row.question for row in rows], raw=True))
    assert {answer.choices for answer in answers} == {trained.labels}
    probs = [answer.probs for answer in answers]
    np.testing.assert_allclose(probs, np.exp(whole.log_probs_MEC).mean(axis=0), rtol=1e-6)


def test_the_calibration_is_of_the_mixture_with_the_probe(finished):
    trained = load_run(finished)
    record = trained.record
    assert record.linear_probe is not None
    assert trained.run.read_calibration(record) is not None  # of this record's digest
    assert dataclasses.replace(record, linear_probe=None).digest != record.digest
    events = [json.loads(line) for line in trained.run.events.read_text().splitlines()]
    (event,) = [one for one in events if one["event"] == "linear_probe"]
    assert event["weight"] == 0.25


def test_questions_that_are_asked_get_the_same_answers(finished, texts_csv):
    """The run's labels as a choice, in any order, next to another question with more options."""
    trained = load_run(finished)
    rows = trained.read(texts_csv("new.csv", 6, seed=9), require_answer=False)
    expected = [answer.probs for answer in trained.predict([row.question for row in rows])]
    own = Question("own", "choice", "", tuple(reversed(trained.labels)))
    other = Question("other", "choice", "Which?", ("a film", "a play", "a song"))
    for row, (mine, theirs), probs in zip(
        rows, trained.ask([row.question for row in rows], [own, other]), expected, strict=True
    ):
        np.testing.assert_allclose(mine.probs, probs[::-1], rtol=1e-6)
        plain = dataclasses.replace(trained, pipeline=dataclasses.replace(trained.pipeline, linear_probe=None))
        alone, same = plain.ask([row.question], [own, other])[0]
        assert np.abs(np.subtract(alone.probs, mine.probs)).max() > 1e-4
        np.testing.assert_allclose(same.probs, theirs.probs, rtol=1e-6)


def test_an_asked_question_has_no_early_exit(finished):
    trained = load_run(finished)
    own = Question("own", "choice", "", trained.labels)
    with pytest.raises(ConfigError, match="early exit: not with a linear probe"):
        Asker(trained).encode(Asked("the film was good", own, early_exit=ExitRule()))


def test_an_evaluation_is_of_the_mixture(finished):
    evaluate_run(load_run(finished))
    trained = load_run(finished)
    saved = trained.run.load_predictions(trained.record.task, "test", answered=True)
    plain = dataclasses.replace(trained.pipeline, linear_probe=None)
    assert saved.log_probs_MEC.shape[0] == plain.model.num_members


def test_a_changed_file_is_refused(finished):
    path = finished / "linear_probe.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CheckpointError, match="wrong checksum"):
        load_run(finished)


def test_a_useless_probe_is_left_out(config, tmp_path, monkeypatch, on_log):
    monkeypatch.setattr(linear_probe, "choose_weight", lambda *rows: (0.0, 0.6, 0.6))
    messages = []
    on_log(messages.append)
    train_run(config(), tmp_path / "run")
    assert any("linear probe: not used" in message for message in messages)
    assert not (tmp_path / "run/linear_probe.safetensors").exists()
    assert load_run(tmp_path / "run").record.linear_probe is None


def test_questions_with_choices_have_no_probe(run_config, questions_jsonl, tmp_path, on_log):
    messages = []
    on_log(messages.append)
    made = run_config(questions_jsonl(), train={"epochs": 1}, evaluate={"few_shot": 0})
    train_run(dataclasses.replace(made, mixture=MixtureConfig("auto")), tmp_path / "run")
    assert any("needs texts with labels" in message for message in messages)


def test_what_cannot_have_a_probe_is_refused(finished, config, texts_csv, tmp_path):
    trained: Ensemble = load_run(finished)
    with pytest.raises(ConfigError, match="early exit: not with a linear probe"):
        list(trained.predict(["the film was good"], early_exit="exact"))
    with pytest.raises(ConfigError, match="mixed with a linear probe, which a module does not have"):
        trained.as_module()
    with pytest.raises(ConfigError, match=r"mixture.linear_probe: auto, but a comparison fits no probe"):
        compare_methods(config(), ["one_lora"], tmp_path / "compared")


def test_runs_of_earlier_versions_have_none(finished):
    path = finished / "config.yaml"
    text = path.read_text()
    path.write_text(text[: text.index("mixture:")])
    assert load_run(finished).config.mixture == RunConfig().mixture
