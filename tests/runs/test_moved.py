"""Runs whose base or data have moved, are gone, or that cannot be written: what still works, and the messages."""

from __future__ import annotations

import errno
import json
import os
import shutil

import pytest
from untimed import untimed

from lorchestra.config.data import DataConfig
from lorchestra.errors import CheckpointError, ConfigError, DataError
from lorchestra.runs import evaluate
from lorchestra.runs.ensemble import load_run
from lorchestra.runs.evaluate import UnsavedEvaluationError, evaluate_run, with_files
from lorchestra.runs.export import export_run
from lorchestra.runs.train import train_run


@pytest.fixture
def messages(on_log):
    logged = []
    on_log(logged.append)
    return logged


@pytest.fixture
def trained(run_config, texts_csv, make_base, tmp_path, messages):
    """A finished run on a base and on files that can be moved; returns the function that loads it."""
    base = shutil.copytree(make_base(0), tmp_path / "base")
    config = run_config(texts_csv(), base=base, data={"test": str(texts_csv("test.csv", 30, seed=2))})
    root = train_run(config, tmp_path / "run").run.root
    return lambda **options: load_run(root, **options)


def test_a_moved_base_is_named(trained, make_base, texts_csv, tmp_path):
    new = texts_csv("new.csv", 5, seed=3)
    before, other = list(trained().predict(new)), make_base(1)
    moved = (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"Where the run's base has moved, --base names its new path or id"):
        trained()
    assert list(trained(base=moved).predict(new)) == before
    with pytest.raises(CheckpointError, match=rf"--base {other}: is another base than .*digest"):
        trained(base=other)
    run = tmp_path / "run"
    out = export_run(run, tmp_path / "out", card="", base=moved)
    config = json.loads((out / "member_00/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(moved)
    with pytest.raises(CheckpointError, match="is another base"):
        export_run(run, tmp_path / "other", card="", base=other)
    assert not (tmp_path / "other").exists()


def test_files_that_have_moved_are_given_anew(trained, texts_csv, tmp_path):
    run = trained()
    before = untimed(evaluate_run(run))
    moved = (tmp_path / "reviews.csv").rename(tmp_path / "renamed.csv")
    with pytest.raises(DataError, match=r"no such file.*give it with --data\.train FILE; .* --data FILE"):
        evaluate_run(run)
    assert untimed(evaluate_run(run, files={"train": moved})) == before
    test = (tmp_path / "test.csv").rename(tmp_path / "other.csv")
    with pytest.raises(DataError, match=r"give it with --data\.test FILE"):
        evaluate_run(run, files={"train": moved})
    files = {"train": moved, "test": test, "val": None}
    assert untimed(evaluate_run(run, files=files)) == before
    with pytest.raises(DataError, match="the train rows are not those this run was made with"):
        evaluate_run(run, files={"train": texts_csv("third.csv", 50, seed=8), "test": test})


def test_other_rows_are_evaluated_without_the_training_file(trained, texts_csv, tmp_path, messages):
    run, new = trained(), texts_csv("new.csv", 20, seed=5)
    (tmp_path / "reviews.csv").unlink()
    entry = evaluate_run(run, data=new)
    reason = "the training rows are not available"
    assert entry["left_out"] == dict.fromkeys(("base_few_shot", "tfidf", "frozen"), reason)
    assert entry["majority"]["index"] is entry["best_member"]["index"] is None
    assert any(line.startswith("evaluating without the run's training rows") for line in messages)
    assert any("the run has no saved predictions of validation rows" in line for line in messages)


def test_the_saved_validation_predictions_replace_the_rows(trained, texts_csv, tmp_path, messages):
    run, new = trained(), texts_csv("new.csv", 20, seed=5)
    with_rows = evaluate_run(run, data=new)
    (tmp_path / "reviews.csv").write_text("text,label\nother,yes\nrows,no\n")  # another file of that name
    entry = evaluate_run(run, data=new)
    assert entry["best_member"] == with_rows["best_member"]
    assert entry["ensemble"] == with_rows["ensemble"]
    assert any("on the predictions of validation rows that the run has saved" in line for line in messages)


def test_files_are_no_part_of_a_task_by_name(make_task, run_config, tmp_path):
    quiz = make_task("quiz")
    data = DataConfig(task="quiz", dir=str(quiz.directory), scoring="text")
    with pytest.raises(ConfigError, match=r"--data\.train: the run was trained on the task quiz"):
        with_files(data, {"train": "x.csv"})


def test_a_run_that_cannot_be_written_is_evaluated_and_the_result_is_kept(trained, messages, monkeypatch):
    run = trained()
    expected = evaluate_run(run, save=False)
    assert not run.run.metrics.exists()
    assert not run.run.predictions.exists()

    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(run.run.root / "x"))

    monkeypatch.setattr("lorchestra.store.run.NamedTemporaryFile", refuse)
    monkeypatch.setattr(
        evaluate, "_members_and_base", lambda *a, **o: messages.append("computing") or original(*a, **o)
    )
    with pytest.raises(
        UnsavedEvaluationError, match=r"no permission to write there.*The evaluation was not saved"
    ) as e:
        evaluate_run(run)
    assert untimed(e.value.entry) == untimed(expected)
    warned = next(number for number, line in enumerate(messages) if line.startswith("warning: "))
    assert warned < messages.index("computing")
    assert not run.run.metrics.exists()


original = evaluate._members_and_base


def test_the_result_is_kept_if_the_disk_fills_meanwhile(trained, monkeypatch):
    run = trained()
    expected = evaluate_run(run, save=False)

    def full(*arguments):
        raise CheckpointError("metrics.json: the disk is full.")

    monkeypatch.setattr("lorchestra.store.run.atomic_write_json", full)
    with pytest.raises(UnsavedEvaluationError, match=r"the disk is full\. The evaluation was not saved\.") as raised:
        evaluate_run(run)
    assert untimed(raised.value.entry) == untimed(expected)
