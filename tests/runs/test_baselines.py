"""The baselines next to every run: fitted, reused, left out with a reason, and limited in what they cost."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

import lorchestra.runs.baselines
from lorchestra.methods.registry import parse_name
from lorchestra.metrics.result import Evaluation
from lorchestra.report.table import verdict
from lorchestra.runs import evaluation_cost
from lorchestra.runs.compare import method_context
from lorchestra.runs.ensemble import load_run
from lorchestra.runs.evaluate import evaluate_run, rows_of_run
from lorchestra.runs.evaluation_cost import CostLimit
from lorchestra.runs.train import train_run
from lorchestra.store.predictions import load_predictions

LINEAR = {"tfidf", "frozen"}


@pytest.fixture
def trained(run_config, texts_csv, tmp_path):
    """Builds a finished run on texts with labels, or on another file."""

    def build(file=None, **settings):
        files = {"val": str(texts_csv("val.csv", 60, seed=1)), "test": str(texts_csv("test.csv", 60, seed=2))}
        data = settings.pop("data", {}) if file else files | settings.pop("data", {})
        config = run_config(file or texts_csv(), **settings | {"data": data})
        return load_run(train_run(config, tmp_path / "run").run.root)

    return build


def test_baselines_are_those_of_compare_with_a_temperature(trained):
    """The same predictions as the methods of a comparison on the same rows."""
    run = trained(evaluate={"few_shot": 0})
    entry = evaluate_run(run)
    task = rows_of_run(run, run.config.data).task
    context = method_context(run.config, task)
    for name in LINEAR:
        named = parse_name(f"{name}+temperature")
        fitted = named.wrap(context, named.fit(context))
        expected = fitted.predict(task.splits["test"], "test")
        saved = load_predictions(run.run.predictions / f"reviews.test.{name}.safetensors")
        assert (saved.ids, saved.options, saved.num_members) == (expected.ids, expected.options, 1)
        np.testing.assert_allclose(saved.log_probs_MEC, expected.log_probs_MEC, rtol=0, atol=1e-4)
        scores = entry["baselines"][name]
        assert scores["T"] == pytest.approx(fitted.chosen["temperature"], rel=1e-3)
        assert scores["num_rows"] == 60
        assert scores["validation_nll"] > 0
        assert len(scores["ensemble_minus"]["aurc"]) == 2
        assert entry["seconds"][name] >= 0
    assert entry["baselines"]["tfidf"]["accuracy"] > 0.7
    assert "the best baseline without adapters" in verdict(entry)


def test_a_second_evaluation_takes_the_fits_of_the_first(trained, monkeypatch, on_log):
    run = trained(evaluate={"few_shot": 0})
    first = evaluate_run(run)
    fits = []
    fit = lorchestra.runs.baselines._fit_linear
    monkeypatch.setattr(lorchestra.runs.baselines, "_fit_linear", lambda *a: fits.append(a[1]) or fit(*a))
    messages = []
    on_log(messages.append)
    second = evaluate_run(run)
    assert fits == []
    assert sum("taken from the run's earlier evaluation" in text for text in messages) == 2
    assert json.dumps(second["baselines"]) == json.dumps(first["baselines"])
    assert {name: second["seconds"][name] for name in LINEAR} == {name: first["seconds"][name] for name in LINEAR}
    # other rows of the same name, or damaged predictions, are fitted again
    (run.run.predictions / "reviews.test.tfidf.safetensors").write_bytes(b"?")
    evaluate_run(run)
    assert fits == ["tfidf"]
    evaluate_run(run, split="val")
    assert fits == ["tfidf", *("tfidf", "frozen")]


def test_baselines_may_be_turned_off(trained):
    entry = evaluate_run(trained(evaluate={"tfidf": False, "frozen": False, "few_shot": 0}))
    assert set(entry["baselines"]) == {"base_zero_shot"}
    assert "without adapters" not in verdict(entry)


def test_questions_have_no_classifiers_and_one_line_says_so(trained, questions_jsonl, on_log):
    run = trained(questions_jsonl(number=60), evaluate={"few_shot": 0})
    messages = []
    on_log(messages.append)
    entry = evaluate_run(run)
    assert set(entry["left_out"]) == LINEAR
    assert [text for text in messages if "left out" in text] == [
        "tfidf and frozen are left out: a classifier needs texts with labels, and here every row brings its choices"
    ]


def unbalanced(path, seed=0):
    """Twelve rows of a label to 80 of another."""
    draw = np.random.default_rng(seed)
    words = ["film", "play", "song", "long", "dull", "fine", "very"]
    rows = [(" ".join(draw.choice(words, size=5)) + (" bad" if n < 12 else " good"), n < 12) for n in range(92)]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *((text, "rare" if rare else "often") for text, rare in rows)])
    return path


def test_unbalanced_labels_have_their_recall(trained, tmp_path):
    files = [unbalanced(tmp_path / f"{name}.csv", seed) for seed, name in enumerate(("some", "held", "new"))]
    data = {"val": str(files[1]), "test": str(files[2])}
    run = trained(files[0], data=data, evaluate={"few_shot": 0})
    entry = evaluate_run(run)
    classes = entry["classes"]
    assert sorted(classes["labels"]) == ["often", "rare"]
    assert sorted(classes["train_rows"]) == [12, 80]
    assert set(classes["recall"]) == {"ensemble", "base_zero_shot", "tfidf", "frozen"}
    assert not classes["weighted"]
    assert Evaluation.from_dict(entry).to_dict() == entry
    assert "unbalanced (12 to 80 rows): --data.class-weights" in verdict(entry)
    assert "class-weights" not in verdict(entry | {"classes": classes | {"weighted": True}})


def test_the_base_is_left_out_where_it_costs_more_than_a_quarter_of_the_training(trained, monkeypatch, on_log):
    run = trained(evaluate={"full": False, "tfidf": False, "frozen": False})
    messages = []
    on_log(messages.append)
    assert set(evaluate_run(run)["baselines"]) == {"base_zero_shot", "base_few_shot"}  # it takes a second
    assert sum(" takes about " in text and "the training took" in text for text in messages) == 2
    monkeypatch.setattr(evaluation_cost, "MIN_S", 0.0)
    monkeypatch.setattr(evaluation_cost, "SHARE", 0.0)
    entry = evaluate_run(run)
    assert entry["baselines"] == {}
    for name in ("base_zero_shot", "base_few_shot"):
        assert "more than a quarter of the training's" in entry["left_out"][name]
        assert "--full" in entry["left_out"][name]
        assert any(name in text and "left out" in text for text in messages)
    assert set(evaluate_run(run, full=True)["baselines"]) == {"base_zero_shot", "base_few_shot"}


def test_seconds_follow_from_the_cost_of_the_training(trained):
    """300 s for 1,000 tokens in one of three layers, forward and backward: 0.45 s per token of a whole pass."""
    run = trained(adapt={"layers": "last:1"})
    cost = {"train_s": 300.0, "tokens": 1000}
    limit = CostLimit.of(run.pipeline, cost, full=False)
    assert limit.seconds(100) == pytest.approx(45.0)
    assert limit.reason("it", 100) is None
    assert "about 90 s" in limit.reason("it", 200)
    assert CostLimit.of(run.pipeline, cost, full=True).reason("it", 200) is None
    for unknown in (None, {}, {"train_s": None, "tokens": None}):
        assert CostLimit.of(run.pipeline, unknown, full=False).reason("it", 1e9) is None
