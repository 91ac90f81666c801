"""A worker's parts, made in this process without a cluster: the bytes of `predict`, for several kinds of rows."""

from __future__ import annotations

import json
import pickle

import pyarrow
import pyarrow.parquet
import pytest
import torch

from lorchestra.cli import main as cli
from lorchestra.cli.predict_arguments import PredictArguments, data_settings, made_with
from lorchestra.config.data import ReadConfig
from lorchestra.data.chunks import full_chunks
from lorchestra.data.input_rows import read_input_rows
from lorchestra.errors import CheckpointError, DataError
from lorchestra.report.answers import AnswerFormat
from lorchestra.runs import predict as answering
from lorchestra.runs.build import torch_threads
from lorchestra.runs.cluster.answers import AnswerJob, AnswerSettings, AnswerWorker
from lorchestra.runs.train import train_run
from lorchestra.store.answer_parts import AnswerParts, AnswerSource, Part
from lorchestra.store.run import Run

CHUNK, PART = 4, 8


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(answering, "CHUNK_ROWS_CPU", CHUNK)


def parts_of(run, path, out, parsed, **options):
    """The parts of a file's rows, which reach the worker as a pickle, as from another process; the last part first."""
    form = AnswerFormat("jsonl", early_exit=parsed.early_exit is not None)
    data = data_settings(parsed.reading, Run(run).read_config().data)
    job = AnswerJob(str(run), data, made_with(parsed, form), form, AnswerSettings(**options))
    parts = AnswerParts.start(out, AnswerSource(job.of, [(str(path), None)], CHUNK, PART))
    record = Run(run).read_ensemble()
    chunks = list(full_chunks(read_input_rows(path, data, record.labels, record.questions), PART))
    with torch_threads(None):
        worker = AnswerWorker(pickle.loads(pickle.dumps(job)), parts, torch.get_num_threads())
        worker.load()
        for number, rows in reversed(list(enumerate(chunks))):
            worker.answer(
                Part(number * PART + 1, number * PART + len(rows)), pickle.loads(pickle.dumps(rows)), "digest"
            )
    return b"".join(path.read_bytes() for path in sorted(out.glob("part-*.jsonl")))


def predict(run, path, out, *options):
    assert cli.main(["predict", str(run), "--data", str(path), "--out", str(out), *options]) == 0
    return out.read_bytes()


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ((), {}),
        (("--early-exit", "0.9"), {"early_exit": "0.9"}),
        (("--raw", "--top", "1", "--abstain-below", "0.6"), {"raw": True, "top": 1, "abstain_below": 0.6}),
    ],
)
def test_questions_of_a_parquet_file(run_config, questions_jsonl, tmp_path, options, settings):
    run = train_run(run_config(questions_jsonl(), train={"epochs": 1}), tmp_path / "run").run.root
    rows = [json.loads(line) for line in questions_jsonl("new.jsonl", 30, seed=5).read_text().splitlines()]
    rows[10]["choices"] = ["one"]
    rows[20]["question"] = None
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "new.parquet")
    expected = predict(run, tmp_path / "new.parquet", tmp_path / "local.jsonl", *options)
    assert expected.count(b"new.parquet:") == 2
    parsed = PredictArguments(str(run), str(tmp_path / "new.parquet"), **settings)
    assert parts_of(run, tmp_path / "new.parquet", tmp_path / "out", parsed, **settings) == expected


def test_typed_questions_of_one_row_may_be_in_two_parts(run_config, tmp_path):
    """With three questions per row and eight lines per part."""
    levels = ["cosmetic", "annoying"]
    questions = {
        "queue": {"type": "choice", "instructions": "Which queue?", "options": ["billing", "technical"]},
        "urgent": {"type": "predicate", "instructions": "Is it urgent?"},
        "severity": {"type": "score", "instructions": "How severe?", "levels": levels},
    }
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    rows = [
        {"state": f"ticket {i}", "answers": {"queue": "billing", "urgent": i % 2 == 0, "severity": levels[i % 2]}}
        for i in range(24)
    ]
    path = tmp_path / "tickets.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"read": ReadConfig(questions=str(tmp_path / "questions.json")), "scoring": "auto"}
    run = train_run(run_config(path, data=data, train={"epochs": 1}), tmp_path / "run").run.root
    expected = predict(run, path, tmp_path / "local.jsonl")
    assert expected.count(b"\n") == 72
    assert parts_of(run, path, tmp_path / "out", PredictArguments(str(run), str(path))) == expected


def test_what_a_worker_refuses(run_config, texts_csv, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="ray is not installed (extra ray)")
    path = texts_csv()
    run = train_run(run_config(path, train={"epochs": 1}), tmp_path / "run").run.root
    (tmp_path / "new.jsonl").write_text('{"text": "a film"}\n{"text": 7}\n')
    parsed = PredictArguments(str(run), str(tmp_path / "new.jsonl"))
    with pytest.raises(DataError, match=r"new\.jsonl:2: the text is 7"):
        parts_of(run, tmp_path / "new.jsonl", tmp_path / "out", parsed, on_error="fail")
    with pytest.raises(CheckpointError, match=r"must be on a file system that all nodes see"):
        parts_of(run, tmp_path / "new.jsonl", tmp_path / "out", parsed, base=str(tmp_path / "no base"))
    monkeypatch.setattr("lorchestra.runs.cluster.answers.version", lambda name: "0.0.1")
    with pytest.raises(CheckpointError, match=r"lorchestra 0\.0\.1 is installed, and the command is of"):
        parts_of(run, tmp_path / "new.jsonl", tmp_path / "out", parsed)
