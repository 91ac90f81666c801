"""The distance of evaluated and OOD rows from the training rows, in whole evaluations on the tiny base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lorchestra.metrics.evaluation import ood_scores
from lorchestra.runs import distance
from lorchestra.runs.distance import distances_to_training
from lorchestra.runs.ensemble import load_run
from lorchestra.runs.evaluate import evaluate_run, rows_of_run
from lorchestra.runs.train import train_run
from lorchestra.training.callbacks import Callback
from lorchestra.types import Example


@pytest.fixture
def run(run_config, texts_csv, tmp_path):
    """A finished run on texts with labels."""
    files = {"val": str(texts_csv("val.csv", 20, seed=1)), "test": str(texts_csv("test.csv", 30, seed=2))}
    return load_run(train_run(run_config(texts_csv(), data=files), tmp_path / "run").run.root)


@pytest.fixture
def other_csv(tmp_path):
    """Texts of other characters than those of `texts_csv`."""
    path = tmp_path / "other.csv"
    path.write_text("text\n" + "".join(f"{'Q' * (n + 5)}\n" for n in range(20)))
    return path


def splits_of(run):
    return rows_of_run(run, run.config.data).task.splits


def examples(*texts):
    return [Example(str(n), text, ("no", "yes"), None, f"given:{n}") for n, text in enumerate(texts)]


def test_texts_of_other_characters_are_more_distant(run, other_csv, texts_csv):
    entry = evaluate_run(run, ood=[other_csv, texts_csv("same.csv", 20, seed=7)])
    aurocs = {name: scores["auroc"]["distance"] for name, scores in entry["ood"].items()}
    assert aurocs["other"] > 0.9
    assert 0.2 < aurocs["same"] < 0.8
    assert "distance" not in entry["ood"]["other"]["member_mean"]["auroc"]
    splits = splits_of(run)
    rows = run.read(other_csv, require_answer=False)
    pair = distances_to_training(run.pipeline, splits["train"], splits["test"], {"o": rows}, 0, Callback())["o"]
    assert [len(side) for side in pair] == [30, 20]
    predictions = run.pipeline.predict_members(splits["test"], "test"), run.pipeline.predict_members(rows, "o")
    assert ood_scores(*predictions, distances=pair)["auroc"]["distance"] == aurocs["other"]


def test_nothing_is_computed_without_ood_rows_or_training_rows(run, other_csv, texts_csv, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("states were computed")

    monkeypatch.setattr(distance, "text_states", fail)
    assert "distance" not in str(evaluate_run(run)["ood"])
    Path(run.config.data.train).unlink()
    entry = evaluate_run(run, data=texts_csv("new.csv", 12, seed=9), ood=[other_csv])
    assert set(entry["ood"]["other"]["auroc"]) == {"max_prob", "entropy", "mutual_information"}


def test_evaluated_rows_are_not_compared_with_themselves(run, monkeypatch):
    """The training rows are those that are left, at most a number, always the same ones."""
    train, seen = splits_of(run)["train"], []
    compute = distance.text_states

    def note(model, tokens, max_length, token_budget, rows, *rest):
        seen.append(len(rows))
        return compute(model, tokens, max_length, token_budget, rows, *rest)

    monkeypatch.setattr(distance, "text_states", note)
    far = {"far": examples("what is it", "the sky is blue")}

    def measure(rows, seed=0):
        return distances_to_training(run.pipeline, train, rows, far, seed, Callback()).get("far")

    assert measure(train[:5]) is not None
    assert measure(train) is None
    assert seen == [len(train) + 2, len(train) + 2]
    monkeypatch.setattr(distance, "MAX_TRAINING_ROWS", 10)
    first, same, other = measure(train[:5]), measure(train[:5]), measure(train[:5], seed=1)
    assert seen[2:] == [10 + 5 + 2] * 3
    np.testing.assert_array_equal(first[0], same[0])
    assert not np.array_equal(first[0], other[0])


def test_why_there_is_no_distance_is_logged(run, on_log, monkeypatch):
    messages = []
    on_log(messages.append)
    rows = examples("the film was good")
    not_finite = np.full((len(rows) + len(splits_of(run)["train"]) + len(rows), 3), np.nan)
    monkeypatch.setattr(distance, "text_states", lambda *arguments: not_finite)
    assert distances_to_training(run.pipeline, splits_of(run)["train"], rows, {"far": rows}, 0, Callback()) == {}
    assert "hidden states of the base are not finite" in messages.pop()
    monkeypatch.undo()
    assert distances_to_training(run.pipeline, (), rows, {"far": rows}, 0, Callback()) == {}
    assert messages == [
        "without the distance of OOD rows from the training rows (a covariance needs at least two different training"
        " rows)"
    ]


def test_rows_that_predictions_drop_have_no_distance(run):
    pipeline = replace(run.pipeline, data=replace(run.pipeline.data, too_long="drop"))
    rows = examples("the film was good", "long " * 2000, "the play was dull")
    train = splits_of(run)["train"]
    pair = distances_to_training(pipeline, train, rows, {"far": rows}, 0, Callback())["far"]
    assert [len(side) for side in pair] == [2, 2]
    assert pipeline.predict_members(rows, "far").num_examples == 2
