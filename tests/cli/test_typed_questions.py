"""Typed questions from end to end: train on a file, read the run, answer rows without answers."""

from __future__ import annotations

import csv
import json
import random

import pytest
import yaml
from tiny_base import WORDS, save_tiny_base
from typed_rows import QUESTIONS

from lorchestra.cli import main as cli
from lorchestra.config.run import RunConfig
from lorchestra.metrics.by_question import split_by_question
from lorchestra.runs import predict as answers
from lorchestra.runs.ensemble import Ensemble
from lorchestra.runs.rows import read_ood, read_rows
from lorchestra.store.run import Run

CHUNK = 4
"""Lines of a chunk: no multiple of the number of questions, so that chunks end within a row."""


def rows(number, seed=0):
    draw = random.Random(seed)
    for i in range(number):
        words = draw.choices(WORDS, k=draw.randint(3, 8))
        genre = draw.choice(["film", "play", "song"])
        yield {
            "text": f"{i}: {genre} {' '.join(words)}",
            "genre": genre if i % 4 else None,
            "praised": ("no", "yes")["good" in words or "fine" in words],
            "length": min(len(words) // 3, 2) if i % 3 else None,
        }


@pytest.fixture(scope="module")
def typed_run(tmp_path_factory):
    """A run trained by the command line; its questions file is removed."""
    folder = tmp_path_factory.mktemp("typed")
    base = save_tiny_base(folder / "base")
    (folder / "q.yaml").write_text(yaml.safe_dump(QUESTIONS, sort_keys=False))
    with (folder / "reviews.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", *QUESTIONS])
        writer.writeheader()
        writer.writerows(rows(60))
    options = ["--base.name", base, "--adapt.members", 2, "--adapt.r", 2, "--train.epochs", 1, "--train.lr", 0.02]
    files = ["--data.questions", folder / "q.yaml", "--data.train", folder / "reviews.csv", "--out", folder / "run"]
    assert cli.main([str(part) for part in ("train", *options, *files)]) == 0
    (folder / "q.yaml").rename(folder / "moved.yaml")
    return folder / "run"


@pytest.fixture
def new_rows(tmp_path):
    path = tmp_path / "new.jsonl"
    states = [{"text": row["text"], "id": f"r{i}"} for i, row in enumerate(rows(7, seed=1))]
    states[3] = {"state": {"title": "a film", "pages": 3}, "answers": {"length": "long"}, "id": "r3"}
    states[5]["text"] = ""
    path.write_text("".join(json.dumps(state) + "\n" for state in states))
    return path


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(answers, "CHUNK_ROWS_CPU", CHUNK)


def test_a_run_has_its_questions(typed_run):
    record = json.loads((typed_run / "ensemble.json").read_text())
    assert record["questions"] == [{"name": name, **entry} for name, entry in QUESTIONS.items()]
    assert record["labels"] is None
    assert record["scoring"] == "tree"
    config = yaml.safe_load((typed_run / "config.yaml").read_text())
    assert config["data"]["read"]["questions"] == str(typed_run.parent / "q.yaml")
    splits = json.loads((typed_run / "splits.json").read_text())
    states = [{name.rpartition("/")[0] for name in splits[split]["ids"]} for split in ("train", "val", "test")]
    assert [len(part) for part in states] == [48, 6, 6]
    assert sum(part["num_examples"] for part in splits.values()) == 60 + 45 + 40


def test_one_line_per_row_and_question(lorchestra, typed_run, new_rows):
    code, out, err = lorchestra("predict", typed_run, "--data", new_rows)
    assert code == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["id"], line["row"]) for line in lines] == [
        (f"r{i}/{name}", i + 1) for i in range(7) for name in QUESTIONS
    ]
    for line in lines:
        assert line["question"] == line["id"].partition("/")[2]
        assert line["trained"] is True
        if line["row"] == 6:
            assert "the state ('text') is empty" in line["error"]
            assert (line["score"], line["probs"]) == (None, None)
        elif line["question"] == "length":
            assert line["score"] == pytest.approx(line["probs"][1] + 2 * line["probs"][2])
        else:
            assert line["score"] is None
    assert [line["choices"] for line in lines[:3]] == [
        ["film", "play", "song"],
        ["false", "true"],
        ["short", "middle", "long"],
    ]
    assert [line["label"] for line in lines[9:12]] == [None, None, "long"]
    assert lines[9]["input"] == {"state": {"title": "a film", "pages": 3}, "answers": {"length": "long"}}


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_an_interrupted_prediction_resumes_within_a_row(lorchestra, typed_run, new_rows, tmp_path, interrupt, name):
    command = ("predict", typed_run, "--data", new_rows, "--out")
    assert lorchestra(*command, tmp_path / f"whole-{name}")[0] == 0
    for chunks in (1, 2):
        interrupt(chunks)
        assert lorchestra(*command, tmp_path / name, "--if-exists", "resume")[0] == 130
    interrupt(-1)
    code, _, err = lorchestra(*command, tmp_path / name, "--if-exists", "resume")
    assert code == 0, err
    assert f"continuing after {3 * CHUNK} rows" in err
    assert (tmp_path / name).read_bytes() == (tmp_path / f"whole-{name}").read_bytes()


def test_a_table_has_the_question_and_its_score(lorchestra, typed_run, new_rows, tmp_path):
    assert lorchestra("predict", typed_run, "--data", new_rows, "--out", tmp_path / "a.csv")[0] == 0
    with (tmp_path / "a.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["question"] for line in table] == [*QUESTIONS] * 7
    assert [bool(line["score"]) for line in table[:3]] == [False, False, True]


def test_rows_in_memory_and_other_files_use_the_questions_of_the_run(typed_run, tmp_path):
    run = Ensemble.load(typed_run)
    assert [question.to_dict() for question in run.record.questions] == [*QUESTIONS.values()]
    from_text = list(run.predict(["a good film"]))
    assert [answer.question for answer in from_text] == [*QUESTIONS]
    from_dict = list(run.predict([{"text": "a good film", "praised": True}]))
    assert [answer.probs for answer in from_dict] == [answer.probs for answer in from_text]
    assert [answer.label for answer in from_dict] == [None, "true", None]
    path = tmp_path / "more.jsonl"
    path.write_text('{"text": "a song", "genre": "song", "length": 0}\n')
    assert [example.answer for example in run.read(path, require_answer=True)] == [2, 0]


def test_evaluate_reads_the_training_files_without_the_questions_file(lorchestra, typed_run):
    code, out, err = lorchestra("evaluate", typed_run)
    assert code == 0, err
    assert "ensemble" in out
    predictions = Run.at(typed_run).load_predictions("reviews", "test")
    assert predictions.questions == tuple(name.partition("/")[2] for name in predictions.ids)
    parts = split_by_question(predictions)
    assert {name: part.log_probs_MEC.shape[2] for name, part in parts.items()} == {
        "genre": 3,
        "praised": 2,
        "length": 3,
    }


def test_every_question_is_asked_of_ood_rows(typed_run, tmp_path):
    run = Ensemble.load(typed_run)
    (tmp_path / "other.jsonl").write_text('{"text": "a song", "genre": "a wrong answer"}\n{"text": "a play"}\n')
    record = run.record
    (examples,) = read_ood([tmp_path / "other.jsonl"], run.config.data, record.labels, record.questions).values()
    assert [(row.question, row.asked.name, row.answer) for row in examples] == [
        (state, name, None) for state in ("a song", "a play") for name in QUESTIONS
    ]


def test_a_task_by_name_has_no_typed_questions(lorchestra, typed_run):
    for option in (("--task", "arc_easy"), ("--ood", "arc_easy")):
        code, _, err = lorchestra("evaluate", typed_run, *option)
        assert code == 2
        assert "does not answer the run's typed questions" in " ".join(err.split())


def test_other_instructions_are_other_rows(lorchestra, typed_run):
    """A training resumed after the questions file was edited would go on with another prompt."""
    other = {**QUESTIONS, "praised": {"type": "predicate", "instructions": "It is not praised."}}
    file = typed_run.parent / "q.yaml"
    file.write_text(yaml.safe_dump(other, sort_keys=False))
    try:
        code, _, err = lorchestra("train", "--out", typed_run, "--if-exists", "resume")
    finally:
        file.unlink()
    assert code == 2
    assert "are not those this run was made with" in " ".join(err.split())


def test_splits_are_those_of_the_questions_given(typed_run):
    """`read_rows` takes a run's questions instead of reading their file, which no longer exists."""
    config: RunConfig = Run.at(typed_run).read_config()
    task = read_rows(config.data, config.train.seed, Ensemble.load(typed_run).record.questions).task
    assert [question.name for question in task.questions] == [*QUESTIONS]
    assert len({row.question for part in task.splits.values() for row in part}) == 60
