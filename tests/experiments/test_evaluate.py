"""Evaluations of whole runs: what stands beside the ensemble, what is saved, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lorchestra.core import metrics, predictive
from lorchestra.errors import CheckpointError, ConfigError, DataError
from lorchestra.experiments.evaluate import evaluate_run
from lorchestra.experiments.load import load_run
from lorchestra.experiments.train import train_run
from lorchestra.store.predictions import load_predictions


@pytest.fixture
def trained(run_config, texts_csv, tmp_path):
    """Builds a finished run on texts with labels."""

    def build(**settings):
        files = {"val": str(texts_csv("val.csv", 20, seed=1)), "test": str(texts_csv("test.csv", 30, seed=2))}
        config = run_config(texts_csv(), **settings | {"data": files})
        return load_run(train_run(config, tmp_path / "run").run.root)

    return build


def test_everything_that_stands_beside_the_ensemble(trained, texts_csv):
    run = trained(adapt={"dropout": 0.1}, evaluate={"temperature": True})
    entry = evaluate_run(run, ood=[texts_csv("far.csv", 12, seed=7)])
    assert (entry["task"], entry["split"], entry["num_members"]) == ("reviews", "test", 3)
    assert set(entry["baselines"]) == {"base_zero_shot", "base_few_shot", "mc_dropout"}
    for part in (entry["ensemble"], entry["member_mean"], entry["best_member"], entry["majority"]):
        assert {"accuracy", "macro_f1", "nll", "ece", "signed_gap", "brier", "aurc"} <= set(part)
    assert entry["temperature"]["T"] > 0
    assert set(entry["ood"]) == {"far"}
    assert set(entry["ood"]["far"]["auroc"]) == {"max_prob", "entropy", "mutual_information"}
    saved = json.loads(run.run.metrics.read_text())
    assert saved["evaluations"] == [json.loads(json.dumps(entry))]
    assert {"train_s", "tokens", "tokens_per_s", "peak_bytes", "base_passes"} == set(saved["cost"])


def test_metrics_are_a_function_of_the_saved_predictions(trained):
    run = trained()
    entry = evaluate_run(run)
    predictions = load_predictions(run.run.predictions / "reviews.test.safetensors")
    mixture = predictive.mixture_log_probs(predictions.log_probs_MEC)
    assert entry["ensemble"]["nll"] == pytest.approx(metrics.nll(mixture, predictions.labels), rel=1e-12)
    assert entry["ensemble"]["accuracy"] == metrics.accuracy(mixture, predictions.labels)
    by_member = [metrics.nll(log_probs, predictions.labels) for log_probs in predictions.log_probs_MEC]
    assert entry["member_mean"]["nll"] == pytest.approx(np.mean(by_member))
    base = load_predictions(run.run.predictions / "reviews.test.base_zero_shot.safetensors")
    assert base.num_members == 1
    assert base.ids == predictions.ids


def test_the_base_alone_is_what_members_were_before_training(trained):
    """Zero-shot through the trained ensemble's model: adapters off."""
    run = trained()
    rows = run.read(run.config.data.test, require_answer=True)
    from lorchestra.methods import zero_shot

    found = zero_shot.predict(run.session, rows, "test").log_probs_MEC[0]
    run.session.model.bank.values.zero_()
    np.testing.assert_allclose(run.session.predict_members(rows, "test").log_probs_MEC[1], found, rtol=0, atol=1e-5)


def test_a_second_evaluation_replaces_the_first_and_others_stay(trained):
    run = trained()
    for split in ("test", "val", "test"):
        evaluate_run(run, split=split)
    saved = json.loads(run.run.metrics.read_text())
    assert sorted(e["split"] for e in saved["evaluations"]) == ["test", "val"]


def test_other_labelled_rows(trained, texts_csv):
    run = trained()
    entry = evaluate_run(run, data=texts_csv("others.csv", 15, seed=5))
    assert (entry["split"], entry["num_examples"]) == ("others", 15)


def test_mc_dropout_stands_in_only_where_it_was_trained_with_dropout(trained):
    assert "mc_dropout" not in evaluate_run(trained())["baselines"]


def test_a_few_shot_prompt_that_does_not_fit_is_left_out_and_told(run_config, texts_csv, tmp_path):
    """Sixteen examples before every question are more than a row may have; the rest of the evaluation goes on."""
    config = run_config(texts_csv(), data={"max_length": 60}, evaluate={"few_shot": 16})
    said = []
    run = load_run(train_run(config, tmp_path / "run").run.root, said.append)
    entry = evaluate_run(run)
    assert set(entry["baselines"]) == {"base_zero_shot"}
    assert any("base_few_shot is left out" in text and "5 of 5 rows" in text for text in said)


def test_rows_left_out_of_a_prediction_are_told(run_config, texts_csv, tmp_path):
    config = run_config(texts_csv(), data={"too_long": "drop", "max_length": 60})
    said = []
    run = load_run(train_run(config, tmp_path / "run").run.root, said.append)
    new = tmp_path / "new.csv"
    new.write_text("text\nthe film was good\n" + "long " * 80 + "\nthe play was dull\n")
    assert [row["id"] for row in run.predict(new)] == ["new-1", "new-3"]
    assert [text for text in said if "new.csv:3" in text]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.json", '{"evaluations": [{"task": "x"}]}', r"metrics\.json: evaluations\[0\]\.split is missing"),
        ("metrics.json", '{"cost": {}}', r"metrics\.json: evaluations is missing"),
        ("metrics.json", "[", r"metrics\.json: cannot be read"),
        ("splits.json", '{"train": true}', r"splits\.json: train is True, not an object"),
        ("splits.json", '{"train": {"digest": "x"}}', r"splits\.json: val is missing"),
    ],
)
def test_a_damaged_record_ends_an_evaluation_before_anything_is_computed(trained, name, text, message):
    run = trained()
    (run.run.root / name).write_text(text)
    seen = []
    with pytest.raises(CheckpointError, match=message):
        evaluate_run(run, progress=lambda what, done, total: seen.append(what))
    assert seen == []
    assert not run.run.predictions.exists()


def test_refusals(trained, texts_csv, tmp_path):
    run = trained()
    with pytest.raises(ConfigError, match=r"--split tset: no such split; did you mean 'test'\?"):
        evaluate_run(run, split="tset")
    unlabelled = tmp_path / "unlabelled.csv"
    unlabelled.write_text("text\nthe film was good\n")
    with pytest.raises(DataError, match=r"unlabelled\.csv:2"):
        evaluate_run(run, data=unlabelled)
    strange = tmp_path / "strange.csv"
    strange.write_text("text,label\nthe film was good,yess\n")
    with pytest.raises(DataError, match=r"label .yess. was not in the training file; the nearest is .yes."):
        evaluate_run(run, data=strange)
    (tmp_path / "sub").mkdir()
    twin = (tmp_path / "sub/far.csv", texts_csv("far.csv", 5, seed=6))
    twin[0].write_text(twin[1].read_text())
    with pytest.raises(DataError, match="another file or task is named far too"):
        evaluate_run(run, ood=twin)
    assert not run.run.metrics.exists()
