"""Evaluations of whole runs: the baselines, what is saved, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lorchestra.errors import CheckpointError, ConfigError, DataError
from lorchestra.inference.predict import MemberPass
from lorchestra.metrics import predictive
from lorchestra.metrics import scores as metrics
from lorchestra.metrics.early_exit import ExitRule
from lorchestra.nn.packing import BASE
from lorchestra.report.html.tables import headline
from lorchestra.report.table import verdict
from lorchestra.runs.ensemble import load_run
from lorchestra.runs.evaluate import evaluate_run
from lorchestra.runs.train import train_run
from lorchestra.store.predictions import load_predictions
from lorchestra.training.callbacks import Callback


@pytest.fixture
def trained(run_config, texts_csv, tmp_path):
    """Builds a finished run on texts with labels."""

    def build(**settings):
        files = {"val": str(texts_csv("val.csv", 20, seed=1)), "test": str(texts_csv("test.csv", 30, seed=2))}
        config = run_config(texts_csv(), **settings | {"data": files})
        return load_run(train_run(config, tmp_path / "run").run.root)

    return build


def test_every_baseline_of_the_ensemble(trained, texts_csv):
    run = trained(adapt={"dropout": 0.1}, evaluate={"temperature": True})
    entry = evaluate_run(run, ood=[texts_csv("far.csv", 12, seed=7)])
    assert (entry["task"], entry["split"], entry["num_members"]) == ("reviews", "test", 3)
    assert set(entry["baselines"]) == {"base_zero_shot", "base_few_shot", "tfidf", "frozen", "mc_dropout"}
    for part in (entry["ensemble"], entry["member_mean"], entry["best_member"], entry["majority"]):
        assert {"accuracy", "macro_f1", "nll", "ece", "signed_gap", "brier", "aurc"} <= set(part)
    assert entry["calibration"]["kind"] == "temperature"
    assert set(entry["temperature"]) == {"best_member"}  # the ensemble has its calibration
    assert entry["temperature"]["best_member"]["T"] > 0
    assert set(entry["ood"]) == {"far"}
    assert set(entry["ood"]["far"]["auroc"]) == {"max_prob", "entropy", "mutual_information", "distance"}
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


@pytest.mark.parametrize("rule", [ExitRule(), ExitRule(0.6)], ids=str)
def test_what_early_exit_would_save_is_what_it_saves(trained, rule):
    """The reported savings against a prediction that stops early."""
    run = trained()
    entry = evaluate_run(run, early_exit=rule)
    rows = run.read(run.config.data.test, require_answer=True)
    early = run.pipeline.predict_early(rows, "test", rule)
    used = early.members_used
    assert entry["early_exit"]["mean_members"] == used.mean()
    assert entry["early_exit"]["histogram"] == [int((used == k).sum()) for k in (1, 2, 3)]
    answers = [row.prediction_index for row in run.predict(rows, early_exit=str(rule))]
    right = np.mean([answer == row.answer for answer, row in zip(answers, rows, strict=True)])
    assert entry["early_exit"]["accuracy"] == pytest.approx(right)
    full = [row.prediction_index for row in run.predict(rows)]
    assert entry["early_exit"]["agreement"] == pytest.approx(np.mean(np.equal(answers, full)))
    assert json.loads(run.run.metrics.read_text())["evaluations"][0]["early_exit"]["rule"] == str(rule)
    assert "early_exit" not in evaluate_run(run)


def test_rows_that_stop_early_hold_the_members_that_were_asked(trained):
    run = trained(train={"epochs": 6})
    rows = run.read(run.config.data.test, require_answer=True)
    full = list(run.predict(rows, raw=True))
    stopped = list(run.predict(rows, abstain_below=0.9, early_exit=0.7, raw=True))
    assert [row.id for row in stopped] == [row.id for row in full]
    assert {row.members_used for row in stopped} == {2, 3}
    for early, whole in zip(stopped, full, strict=True):
        used = early.members_used
        assert set(early.to_dict()) == set(whole.to_dict()) | {"members_used"}
        np.testing.assert_allclose(early.member_probs, whole.member_probs[:used], rtol=0, atol=1e-5)
        np.testing.assert_allclose(early.probs, np.mean(early.member_probs, axis=0), rtol=1e-12)
        assert early.confidence == max(early.probs)
        assert early.abstain == (early.confidence < 0.9)
        if used == 3:
            assert early.prediction == whole.prediction
    with pytest.raises(ConfigError, match=r"early_exit: 1\.5 is neither exact nor a confidence"):
        list(run.predict(rows, early_exit=1.5))


def test_the_base_alone_is_what_members_were_before_training(trained):
    """Zero-shot through the trained ensemble's model: adapters off."""
    run = trained()
    rows = run.read(run.config.data.test, require_answer=True)
    base = run.pipeline.predict(rows, [MemberPass(BASE)], "test").log_probs_MEC[0]
    run.pipeline.model.adapters.values.zero_()
    np.testing.assert_allclose(run.pipeline.predict_members(rows, "test").log_probs_MEC[1], base, rtol=0, atol=1e-5)


@pytest.mark.parametrize("adapt", [{}, {"layers": "last:1"}], ids=["all layers", "last layer"])
def test_the_base_rides_in_the_members_pass(trained, adapt):
    """Saved predictions equal those of separate calls; the layers below run once for members and base together."""
    run = trained(adapt=adapt, evaluate={"few_shot": 0, "frozen": False})
    test, val = (run.read(path, require_answer=True) for path in (run.config.data.test, run.config.data.val))
    tokens = []
    first = run.pipeline.model.model.model.layers[0].mlp
    first.register_forward_hook(lambda module, args, output: tokens.append(args[0].shape[1]))

    def fed(work):
        tokens.clear()
        work()
        return sum(tokens)

    members, base = [], []
    with_members = fed(lambda: members.append(run.pipeline.predict_members(test, "test")))
    alone = fed(lambda: base.append(run.pipeline.predict(test, [MemberPass(BASE)], "test")))
    validation = fed(lambda: run.pipeline.predict_members(val, "val"))
    whole = fed(lambda: evaluate_run(run))
    assert alone > 0
    assert whole == with_members + validation if adapt else whole <= with_members + alone + validation
    for name, (expected,) in {"reviews.test": members, "reviews.test.base_zero_shot": base}.items():
        saved = load_predictions(run.run.predictions / f"{name}.safetensors")
        assert (saved.ids, saved.options, saved.texts) == (expected.ids, expected.options, expected.texts)
        np.testing.assert_array_equal(saved.labels, expected.labels)
        np.testing.assert_allclose(saved.log_probs_MEC, expected.log_probs_MEC, rtol=0, atol=1e-5)


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


def test_a_few_shot_prompt_that_does_not_fit_is_left_out_with_the_reason(on_log, run_config, texts_csv, tmp_path):
    """Sixteen examples before every question are more than a row may have; the rest of the evaluation goes on."""
    config = run_config(texts_csv(), data={"max_length": 60}, evaluate={"few_shot": 16})
    messages = []
    on_log(messages.append)
    run = load_run(train_run(config, tmp_path / "run").run.root)
    entry = evaluate_run(run)
    assert set(entry["baselines"]) == {"base_zero_shot", "tfidf", "frozen"}
    assert any("base_few_shot is left out" in text and "5 of 5 rows" in text for text in messages)
    assert set(entry["left_out"]) == {"base_few_shot"}
    assert "5 of 5 rows have more than 60 tokens" in entry["left_out"]["base_few_shot"]


def test_rows_left_out_of_a_prediction_are_logged(on_log, run_config, texts_csv, tmp_path):
    config = run_config(texts_csv(), data={"too_long": "drop", "max_length": 60})
    messages = []
    on_log(messages.append)
    run = load_run(train_run(config, tmp_path / "run").run.root)
    new = tmp_path / "new.csv"
    new.write_text("text\nthe film was good\n" + "long " * 80 + "\nthe play was dull\n")
    assert [row.id for row in run.predict(new)] == ["new-1", "new-3"]
    assert [text for text in messages if "new.csv:3" in text]


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

    class Seen(Callback):
        def on_progress(self, what, done, total):
            seen.append(what)

    with pytest.raises(CheckpointError, match=message):
        evaluate_run(run, callbacks=[Seen()])
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
    with pytest.raises(DataError, match=r"label .yess. is not in the training file; the closest is .yes."):
        evaluate_run(run, data=strange)
    (tmp_path / "sub").mkdir()
    twin = (tmp_path / "sub/far.csv", texts_csv("far.csv", 5, seed=6))
    twin[0].write_text(twin[1].read_text())
    with pytest.raises(ConfigError, match="another file or task is named far too"):
        evaluate_run(run, ood=twin)
    assert not run.run.metrics.exists()


def test_rows_that_trained_the_members_are_named_as_such(trained, texts_csv, tmp_path):
    run = trained()
    entry = evaluate_run(run, split="train")
    assert entry["seen"] == {"train": entry["num_examples"], "val": 0}
    assert entry["notes"][0].startswith("These rows trained the members: on them, the numbers say how well")
    assert verdict(entry).startswith(entry["notes"][0])
    assert headline(entry) == ("none", "It cannot be judged on rows that trained its members.")
    # a file of which some rows are training rows, written otherwise, and one is a validation row
    kept = [run.read(run.config.data.train, require_answer=True)[i] for i in range(3)]
    validation = run.read(run.config.data.val, require_answer=True)[0]
    lines = ["text,label", *(f"  {row.question.upper()},{row.choices[row.answer]}" for row in [*kept, validation])]
    fresh = texts_csv("fresh.csv", 30, seed=9).read_text().splitlines()[1:]
    mixed = tmp_path / "mixed.csv"
    mixed.write_text("\n".join([*lines, *fresh]) + "\n")
    entry = evaluate_run(run, data=mixed)
    seen = entry["seen"]
    assert seen["train"] >= 3
    assert seen["val"] >= 1
    rows = entry["num_examples"]
    assert entry["notes"][0].startswith(f"{seen['train']} of these {rows} rows trained the members")
    assert entry["notes"][1].startswith(f"{seen['val']} of these {rows} rows are validation rows")
    assert headline(entry)[1] != "It cannot be judged on rows that trained its members."


def test_validation_rows_that_decide_little_are_named_before_training_and_in_the_evaluation(
    on_log, run_config, texts_csv, tmp_path
):
    text = texts_csv("val.csv", 60, seed=1).read_text().splitlines()
    one = tmp_path / "one.csv"
    one.write_text("\n".join([text[0], *(line for line in text if line.endswith(",no"))][:13]) + "\n")
    data = {"val": str(one), "test": str(texts_csv("test.csv", 30, seed=2))}
    messages = []
    on_log(messages.append)
    run = train_run(run_config(texts_csv(), data=data, evaluate={"temperature": True}), tmp_path / "run").run
    few = "are chosen on 12 validation rows only: with fewer than 50, chance decides much of it."
    single = "All validation rows have the answer 'no': they cannot tell whether other answers are learned"
    assert [sum(words in line for line in messages) for words in (few, single)] == [1, 1]
    entry = evaluate_run(load_run(run.root))
    notes = " ".join(entry["notes"])
    assert few in notes
    assert single in notes
    assert "No temperature for the ensemble: all of the 12 validation rows have the answer 'no'" in notes
    assert entry["temperature"]["T"] is None
    assert "nll" not in entry["temperature"]
    assert "12 validation rows only" in verdict(entry)
