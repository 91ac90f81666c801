"""Tasks by name in whole runs: trained on, evaluated on another, detected as OOD; results are saved by name."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from stopping import StopWhen
from untimed import untimed

from lorchestra.config.data import DataConfig
from lorchestra.config.mappings import read_recipe
from lorchestra.config.run import RunConfig
from lorchestra.data.tasks import table
from lorchestra.data.tasks.spec import ExpectedRows
from lorchestra.errors import ConfigError, DataError
from lorchestra.runs.ensemble import load_run
from lorchestra.runs.evaluate import evaluate_run
from lorchestra.runs.train import train_run
from lorchestra.store.predictions import load_predictions
from lorchestra.training.callbacks import Interrupted


@pytest.fixture
def named_config(run_config):
    """The configuration of a run on a task by name."""

    def build(name, directory=None, **settings):
        config = run_config("none", train={"epochs": 1}, **settings)
        data = DataConfig(task=name, dir=None if directory is None else str(directory), scoring="text")
        return dataclasses.replace(config, data=data)

    return build


@pytest.fixture
def trained(named_config, make_task, tmp_path):
    """A finished run on a made-up task, loaded, and the task."""
    quiz = make_task()
    root = train_run(named_config("quiz", quiz.directory), tmp_path / "run").run.root
    return load_run(root), quiz


def test_training_on_a_name(trained):
    run, quiz = trained
    record = json.loads(run.run.ensemble.read_text())
    assert (record["task"], record["labels"]) == ("quiz", None)
    assert record["prompt_template"] == "Question: {question}\nAnswer:"
    splits = json.loads(run.run.splits.read_text())
    assert {split: values["num_examples"] for split, values in splits.items()} == {"train": 40, "val": 8, "test": 12}
    saved = read_recipe(run.run.config, RunConfig)
    assert (saved.data.task, saved.data.dir, saved.data.train) == ("quiz", str(quiz.directory), None)
    entry = evaluate_run(run)
    assert (entry["task"], entry["split"], entry["num_examples"]) == ("quiz", "test", 12)


def test_the_splits_of_a_name_do_not_depend_on_the_runs_seed(named_config, make_task, tmp_path):
    quiz = make_task(val=None, splits={split: ExpectedRows(99) for split in ("train", "val", "test")})
    records = []
    for seed in (0, 1):
        config = named_config("quiz", quiz.directory)
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
        records.append(json.loads(train_run(config, tmp_path / f"run{seed}").run.splits.read_text()))
    assert records[0] == records[1]


def test_an_evaluation_on_another_task_is_filed_under_its_name(trained, make_task):
    run, _ = trained
    make_task("other", numbers=(10, 8, 20), first=1000)
    first = evaluate_run(run)
    entry = evaluate_run(run, task="other")
    assert (entry["task"], entry["split"], entry["num_examples"]) == ("other", "test", 20)
    saved = json.loads(run.run.metrics.read_text())["evaluations"]
    assert [(e["task"], e["split"]) for e in saved] == [("quiz", "test"), ("other", "test")]
    assert saved[0] == json.loads(json.dumps(first))
    loaded = load_predictions(run.run.predictions / "other.test.safetensors")
    assert (loaded.task, loaded.num_examples) == ("other", 20)
    assert load_predictions(run.run.predictions / "quiz.test.safetensors").num_examples == 12
    assert (run.run.predictions / "other.test.base_few_shot.safetensors").is_file()
    # the member is chosen on the run's validation rows
    assert entry["best_member"]["index"] == first["best_member"]["index"]
    assert evaluate_run(run, task="other", split="val")["num_examples"] == 8
    assert evaluate_run(run, task="quiz")["num_examples"] == 12  # the run's test rows


def test_other_tasks_as_out_of_distribution(trained, make_task, texts_csv, questions_jsonl):
    run, _ = trained
    make_task("other", choices="abcdef", numbers=(10, 8, 20), first=1000)
    entry = evaluate_run(run, ood=["other", questions_jsonl("far.jsonl", 9)])
    assert {name: scores["num_examples"]["ood"] for name, scores in entry["ood"].items()} == {"other": 20, "far": 9}
    loaded = load_predictions(run.run.predictions / "quiz.ood_other.safetensors")
    assert set(loaded.labels) == {-1}
    assert {len(options) for options in loaded.options} == {6}
    assert (entry["task"], entry["split"]) == ("quiz", "test")


def test_a_run_on_texts_with_labels(named_config, make_task, run_config, tmp_path):
    """OOD rows get the labels of the run, which can be evaluated only on tasks with these labels."""
    labels = ("0 a", "0 b")
    films = make_task("films", choices="ab", labels=labels, parts={}, splits={})

    def with_labels(task):
        rows = {part: [{**row, "choices": list(labels)} for row in loaded] for part, loaded in task.rows.items()}
        for part, loaded in rows.items():
            task.write(part, loaded)
        known = {part: task.known(loaded) for part, loaded in rows.items()}
        splits = {"train": known["train"], "val": known["dev"], "test": known["test"]}
        spec = dataclasses.replace(table.TASKS[task.name], parts=known, splits=splits, labels=labels, template="sst2")
        table.TASKS[task.name] = spec

    with_labels(films)
    plays = make_task("plays", choices="ab", first=500)
    with_labels(plays)
    quiz = make_task("quiz", first=3000)
    run = load_run(train_run(named_config("films", films.directory), tmp_path / "run").run.root)
    assert run.record.labels == labels
    assert run.record.prompt_template.startswith("Review: {question}")
    assert evaluate_run(run, task="plays")["task"] == "plays"
    evaluate_run(run, ood=["quiz"])
    loaded = load_predictions(run.run.predictions / "films.ood_quiz.safetensors")
    assert set(loaded.options) == {labels}
    with pytest.raises(DataError, match=r"--task quiz: its rows have questions with choices.*--ood quiz"):
        evaluate_run(run, task="quiz")
    assert quiz.name == "quiz"


def test_refusals(trained, make_task, named_config, texts_csv, tmp_path):
    run, quiz = trained
    make_task("other", first=1000)
    cases = [
        ({"task": "othr"}, ConfigError, r"'othr' is not a named task; did you mean 'other'\?"),
        ({"task": "other", "data": "x.csv"}, ConfigError, r"--task other and --data x\.csv: give .* not both"),
        ({"task": "other", "split": "tset"}, ConfigError, "task other has no tset split; it has: train, val, test"),
        ({"split": "tset"}, ConfigError, r"--split tset: no such split; did you mean 'test'\?"),
        ({"ood": ["othr"]}, ConfigError, r"'othr' is neither a file nor a task known by name; did you mean 'other'\?"),
        ({"ood": ["gone.csv"]}, DataError, r"gone\.csv: no such file"),
        ({"ood": ["other", "other"]}, ConfigError, "another file or task is named other too"),
        ({"task": "other", "data_dir": str(tmp_path / "none")}, DataError, "none does not exist; use a directory"),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            evaluate_run(run, **arguments)
    assert not run.run.metrics.exists()
    config = named_config("quiz", quiz.directory)
    both = dataclasses.replace(config, data=dataclasses.replace(config.data, train=str(texts_csv()), val="v.csv"))
    with pytest.raises(
        ConfigError, match=r"data\.task 'quiz' and data\.train, data\.val: a task by name comes with its rows"
    ):
        train_run(both, tmp_path / "both")
    with pytest.raises(ConfigError, match=r"did you mean 'quiz'\?"):
        train_run(named_config("quizz", quiz.directory), tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_a_file_named_as_a_task_is_not_mixed_up_with_it(run_config, make_task, questions_jsonl, tmp_path):
    make_task("other", first=1000)
    config = run_config(questions_jsonl("other.jsonl"), train={"epochs": 1})
    root = train_run(dataclasses.replace(config, data=dataclasses.replace(config.data)), tmp_path / "run").run.root
    run = load_run(root)
    with pytest.raises(ConfigError, match="results on the run's rows, from a file, have that name"):
        evaluate_run(run, task="other", data_dir=str(tmp_path / "data"))


def test_the_directory_may_move_and_the_rows_may_not(trained, tmp_path, monkeypatch):
    run, quiz = trained
    entry = untimed(evaluate_run(run))
    moved = quiz.directory.rename(tmp_path / "moved")
    with pytest.raises(DataError, match="no source has its published train rows"):
        evaluate_run(run)
    assert untimed(evaluate_run(run, data_dir=str(moved))) == entry
    monkeypatch.setenv("LORCHESTRA_DATA_DIR", str(moved))
    assert untimed(evaluate_run(run)) == entry
    (moved / "quiz/train.jsonl").write_text("".join((moved / "quiz/train.jsonl").read_text().splitlines(True)[1:]))
    with pytest.raises(DataError, match="39 rows, but the published train rows of quiz are 40"):
        evaluate_run(run)


def test_a_run_resumes_with_the_rows_from_another_directory(named_config, make_task, tmp_path):
    quiz = make_task()
    config = named_config("quiz", quiz.directory)
    whole = train_run(config, tmp_path / "whole").run.root
    stops = iter([False, False, True])
    with pytest.raises(Interrupted):
        train_run(config, tmp_path / "run", callbacks=[StopWhen(lambda: next(stops))])
    moved = quiz.directory.rename(tmp_path / "moved")
    again = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=str(moved)))
    root = train_run(again, tmp_path / "run", if_exists="resume").run.root
    for name in ("member_00", "member_02"):
        weights = f"members/{name}/adapter_model.safetensors"
        assert (root / weights).read_bytes() == (whole / weights).read_bytes()


def test_training_rows_are_not_shown_with_their_answers_before_they_are_asked(trained, on_log):
    run, _ = trained
    messages = []
    on_log(messages.append)
    assert "base_few_shot" not in evaluate_run(run, split="train")["baselines"]
    assert any("every training row is among the evaluated ones" in text for text in messages)


def test_a_file_named_like_a_split_does_not_replace_the_split(trained, tmp_path):
    run, quiz = trained
    first = evaluate_run(run)
    other = tmp_path / "test.jsonl"
    shutil.copy(quiz.directory / "quiz/dev.jsonl", other)
    assert evaluate_run(run, data=other)["split"] == "file_test"
    saved = json.loads(run.run.metrics.read_text())["evaluations"]
    assert [(e["split"], e["num_examples"]) for e in saved] == [("test", 12), ("file_test", 8)]
    assert saved[0] == json.loads(json.dumps(first))


@pytest.mark.shared
def test_training_and_evaluating_on_real_tasks(named_config, shared_data, no_other_sources, tmp_path):
    """One member, one short epoch on the tiny base, with rows cut to fit; sizes and names are what is looked at."""
    config = named_config("winogrande_s", shared_data, adapt={"members": 1})
    data = dataclasses.replace(config.data, scoring="letter", max_length=150, too_long="drop")
    config = dataclasses.replace(
        config, data=data, evaluate=dataclasses.replace(config.evaluate, few_shot=0, resamples=0)
    )
    run = load_run(train_run(config, tmp_path / "run").run.root)
    splits = json.loads(run.run.splits.read_text())
    assert {split: values["num_examples"] for split, values in splits.items()} == {
        "train": 576,
        "val": 64,
        "test": 1267,
    }
    assert run.record.prompt_template.startswith("Sentence: {question}")
