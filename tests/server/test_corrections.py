"""Corrections: what is written, that it stays within limits, and that the commands read it."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
import yaml
from live_server import served, serving
from monitored_runs import WORDS

from lorchestra.cli import main as cli
from lorchestra.config.data import DataConfig, FieldsConfig, ReadConfig
from lorchestra.data.row_writer import RowWriter
from lorchestra.errors import ConfigError
from lorchestra.questions import Question
from lorchestra.runs.ensemble import Ensemble
from lorchestra.runs.rows import read_like
from lorchestra.server.corrections import Correction, Corrections
from lorchestra.server.errors import CorrectionsFullError, EngineError
from lorchestra.server.registry import ServedRun

JSON = {"content-type": "application/json"}
STATE = 'He said "no"\n<b>\u2028 🙂'
QUESTIONS = {
    "genre": {"type": "choice", "instructions": "Which?", "options": {"film": "on a screen", "song": None}},
    "praised": {"type": "predicate", "instructions": "It is praised."},
    "length": {"type": "score", "instructions": "How long?", "levels": ["short", "middle", "long"]},
}


def run_of(engine, typed=False, **settings):
    config = DataConfig(train="train.csv", **settings)
    return dataclasses.replace(served(engine), writer=RowWriter(config, typed=typed))


def texts(number, seed=5):
    draw = random.Random(seed)
    return [f"{i}: {' '.join(draw.choices(WORDS, k=6))}" for i in range(number)]


def test_a_correction_is_one_line_with_what_is_known_of_it(engine, tmp_path):
    file = tmp_path / "corrections.jsonl"
    body = {"model": "fake", "state": STATE, "question": "label", "answer": "yes", "prediction": "no"}
    fields = FieldsConfig(text="review", label="verdict")
    with serving([run_of(engine, fields=fields)], corrections=str(file)) as server:
        assert server.get("/v1/x_runs").json()["saves_corrections"] is True
        assert server.post("/v1/x_corrections", body, headers=JSON).json() == {"saved": True}
        del body["prediction"]
        assert server.post("/v1/x_corrections", body, headers=JSON).status_code == 201
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").removesuffix("\n").split("\n")]
    assert [(line["review"], line["verdict"]) for line in lines] == [(STATE, "yes")] * 2
    first, second = (line["correction"] for line in lines)
    assert (first["question"], first["prediction"], first["key"]) == ("label", "no", None)
    assert second["prediction"] is None
    datetime.strptime(first["time"], "%Y-%m-%dT%H:%M:%SZ")
    assert "\u2028" not in file.read_text(encoding="utf-8")


def test_many_at_once_are_all_saved(engine, tmp_path):
    file = tmp_path / "corrections.jsonl"
    with serving([run_of(engine)], corrections=str(file)) as server, ThreadPoolExecutor(8) as pool:

        def send(number):
            body = {"model": "fake", "state": f"{number} " + "x" * 9000, "question": "label", "answer": "no"}
            return server.post("/v1/x_corrections", body, headers=JSON).status_code

        assert set(pool.map(send, range(60))) == {201}
    states = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    assert sorted(int(state.split()[0]) for state in states) == list(range(60))


def test_a_full_file_and_one_that_cannot_be_written_are_errors(engine, tmp_path):
    run = run_of(engine)
    correction = Correction("A text.", run.questions[0], 1, None, "")
    corrections = Corrections(str(tmp_path / "full.jsonl"), [run], max_bytes=200)
    corrections.save(correction)
    with pytest.raises(CorrectionsFullError, match="full"):
        corrections.save(correction)
    assert len((tmp_path / "full.jsonl").read_text().splitlines()) == 1
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(EngineError, match="could not be saved"):
        Corrections(str(tmp_path / "folder.jsonl"), [run]).save(correction)


def test_a_body_over_the_limit_is_refused(engine, tmp_path):
    file = tmp_path / "corrections.jsonl"
    body = {"model": "fake", "state": "x" * 2000, "question": "label", "answer": "no"}
    with serving([run_of(engine)], corrections=str(file), max_body_bytes=1000) as server:
        assert server.post("/v1/x_corrections", body, headers=JSON).status_code == 413
    assert not file.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"read": ReadConfig(format="csv")}, "reads every file as csv"),
        ({"read": ReadConfig(encoding="cp1252")}, "reads every file as cp1252"),
        ({"fields": FieldsConfig(text="premise,hypothesis")}, "joined from the columns"),
    ],
)
def test_a_run_that_would_not_read_the_rows_is_refused(engine, settings, message):
    with pytest.raises(ConfigError, match=message):
        Corrections("c.jsonl", [run_of(engine, **settings)])


@pytest.mark.parametrize(
    ("name", "message"), [("rows.csv", "end it with .jsonl"), ("missing/rows.jsonl", "there is no such folder")]
)
def test_a_file_that_could_not_be_read_or_written_is_refused(engine, tmp_path, name, message):
    with pytest.raises(ConfigError, match=message):
        Corrections(str(tmp_path / name), [run_of(engine)])


def test_names_of_labels_are_read_as_labels(tmp_path):
    config = DataConfig(train="train.csv", read=ReadConfig(label_names=("0=no", "1=yes")))
    question = Question("label", "choice", "", ("no", "yes"))
    lines = [RowWriter(config, typed=False).line(f"text {i}", question, i, {}) for i in range(2)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    rows = read_like(tmp_path / "rows.jsonl", config, question.options, require_answer=True).examples
    assert [(row.question, row.answer) for row in rows] == [("text 0", 0), ("text 1", 1)]


def test_several_runs_and_runs_without_labels_are_refused(engine):
    run = run_of(engine)
    with pytest.raises(ConfigError, match="rows of one run"):
        Corrections("c.jsonl", [run, dataclasses.replace(run, name="other")])
    with pytest.raises(ConfigError, match="separate choices"):
        Corrections("c.jsonl", [dataclasses.replace(run, questions=(), writer=None)])


def test_calibrate_and_monitor_read_corrections_of_texts_with_labels(tiny_run, tmp_path, capsys):
    root, file = tmp_path / "run", tmp_path / "corrections.jsonl"
    shutil.copytree(tiny_run, root)
    served_run = ServedRun.load(str(root))
    corrections, (question,) = Corrections(str(file), [served_run]), served_run.questions
    for text in texts(60):
        corrections.save(Correction(text, question, int("good" in text), 0, "anna"))
    assert cli.main(["monitor", str(root), "--data", str(file)]) in (0, 1), capsys.readouterr().err
    assert "60" in capsys.readouterr().out
    options = ["--target-error", "0.4", "--score", "max_prob"]
    assert cli.main(["calibrate", str(root), "--data", str(file), *options]) in (0, 1), capsys.readouterr().err
    rows = Ensemble.load(root).decisions.rows
    assert (rows.source, rows.num_rows) == (file.name, 60)
    answers = [example.answer for example in Ensemble.load(root).read(file, require_answer=True)]
    assert answers == [int("good" in text) for text in texts(60)]


@pytest.fixture(scope="module")
def typed_run(tiny_base, tmp_path_factory):
    """A run on three typed questions."""
    folder = tmp_path_factory.mktemp("typed")
    (folder / "q.yaml").write_text(yaml.safe_dump(QUESTIONS, sort_keys=False))
    rows = [
        {"state": text, "answers": {"genre": ("film", "song")[i % 2], "praised": "good" in text, "length": i % 3}}
        for i, text in enumerate(texts(60, seed=1))
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--base.name", tiny_base, "--adapt.members", 2, "--adapt.r", 2, "--train.epochs", 1, "--train.lr", 0.02]
    files = ["--data.questions", folder / "q.yaml", "--data.train", folder / "rows.jsonl", "--out", folder / "run"]
    assert cli.main([str(part) for part in ("train", *options, *files)]) == 0
    return folder / "run"


def test_calibrate_and_monitor_read_corrections_of_typed_questions(typed_run, tmp_path, capsys):
    file = tmp_path / "corrections.jsonl"
    served_run = ServedRun.load(str(typed_run), show_training_rows=True)
    assert [question.name for question in served_run.questions] == list(QUESTIONS)
    assert set(served_run.similar.nearest("good film", 1)[0].answers) == set(QUESTIONS)
    corrections = Corrections(str(file), [served_run])
    for i, text in enumerate(texts(60)):
        for index, question in enumerate(served_run.questions):
            corrections.save(Correction(text, question, (i + index) % len(question.options), None, ""))
    assert json.loads(file.read_text().splitlines()[1])["answers"] == {"praised": True}
    for name in QUESTIONS:
        options = ["--question", name, "--data", str(file)]
        assert cli.main(["calibrate", str(typed_run), *options, "--target-error", "0.9"]) in (0, 1)
        assert Ensemble.load(typed_run).decisions_by_question[name].rows.num_rows == 60, capsys.readouterr().err
        assert cli.main(["monitor", str(typed_run), *options]) in (0, 1), capsys.readouterr().err
    entry = ServedRun.load(str(typed_run)).to_dict()
    assert all(entry["questions"][name]["certificate"]["guarantee"] for name in QUESTIONS)
    assert entry["questions"]["length"]["order"] == ["short", "middle", "long"]


def test_described_levels_of_a_trained_score_reach_the_model(live):
    levels = {"type": "score", "instructions": "How?", "criteria": ["low", "high"]}

    def score(**fields):
        body = {"model": "fake", "state": "A text.", "questions": {"q": levels | fields}}
        return live.post("/v1/systemone", body)

    assert score().json() == score(x_descriptions=[None, None]).json()
    assert score().json() != score(x_descriptions=["calm", None]).json()
    assert score(x_descriptions=["calm"]).status_code == 422
    fault = score(x_descriptions=["calm", 3]).json()["detail"][0]
    assert fault["loc"] == ["body", "questions", "q", "x_descriptions", 1]
