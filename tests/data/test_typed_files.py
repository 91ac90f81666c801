"""Files with typed questions: every format, what is left out, and what is noted."""

from __future__ import annotations

import csv
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorchestra.config.data import DataConfig, FieldsConfig
from lorchestra.data.typed_files import read_typed_file
from lorchestra.data.typed_rows import answer_index
from lorchestra.errors import DataError
from lorchestra.questions import Question

QUEUE = Question("queue", "choice", "Which queue?", ("billing", "technical"))
URGENT = Question("urgent", "predicate", "It is urgent.")
SEVERITY = Question("severity", "score", "How severe?", ("0.50", "1.50", "[2]"))
QUESTIONS = (QUEUE, URGENT, SEVERITY)
ROWS = [
    {"id": "a", "text": "one", "queue": "billing", "urgent": True, "severity": "0.50"},
    {"id": "b", "text": "two", "queue": None, "urgent": False, "severity": "[2]"},
    {"id": "c", "text": "three", "queue": "technical", "urgent": None, "severity": None},
    {"id": "d", "text": "four", "queue": None, "urgent": None, "severity": None},
]
ANSWERS = [("a/queue", 0), ("a/urgent", 1), ("a/severity", 0), ("b/urgent", 0), ("b/severity", 2), ("c/queue", 1)]


def read(path, questions=QUESTIONS, *, require_answer=True, ignore_answers=False, **fields):
    config = DataConfig(fields=FieldsConfig(**fields))
    return read_typed_file(path, config, questions, require_answer=require_answer, ignore_answers=ignore_answers)


def write(path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def answers_of(file):
    return [(example.id, example.answer) for example in file.examples]


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.csv", "r.parquet"])
def test_every_format_has_the_same_answers(tmp_path, name):
    file = read(write(tmp_path / name, ROWS))
    assert answers_of(file) == ANSWERS
    assert (file.labels, file.questions) == (None, QUESTIONS)
    assert file.notes == (
        f"{file.path}: 4 rows with 6 answers to 3 questions: queue (2), urgent (2), severity (2)",
        f"{file.path}: 1 row(s) answer no question, and are left out",
    )


@pytest.mark.parametrize("name", ["r.jsonl", "r.parquet"])
def test_answers_in_objects_are_those_of_columns(tmp_path, name):
    rows = [
        {"id": row["id"], "state": row["text"], "answers": {q.name: row[q.name] for q in QUESTIONS}} for row in ROWS
    ]
    assert answers_of(read(write(tmp_path / name, rows))) == ANSWERS


def test_cells_of_a_csv_file_stay_as_they_are_written(tmp_path):
    """Columns that hold labels or answers in other files are converted there: 1.50 to a number, [2] to a list."""
    question = Question("label", "choice", "x", ("1.50", "[2]"))
    path = write(tmp_path / "r.csv", [{"text": '{"a": 1}', "label": "1.50"}, {"text": "[1]", "label": "[2]"}])
    file = read(path, (question,))
    assert [(example.question, example.answer) for example in file.examples] == [('{"a": 1}', 0), ("[1]", 1)]
    assert [example.id for example in file.examples] == ["r-1/label", "r-2/label"]


def test_without_required_answers_every_question_is_asked(tmp_path):
    path = write(tmp_path / "r.jsonl", ROWS[:2])
    assert [answer for _, answer in answers_of(read(path, require_answer=False))] == [0, 1, 0, None, 0, 2]
    ignored = read(path, require_answer=False, ignore_answers=True)
    assert [answer for _, answer in answers_of(ignored)] == [None] * 6
    assert read(path, require_answer=False).notes == ()


def test_a_question_without_a_column_is_noted(tmp_path):
    rows = [{"text": row["text"], "queue": row["queue"], "Urgent": row["urgent"]} for row in ROWS]
    file = read(write(tmp_path / "r.jsonl", rows))
    assert file.notes[-1] == f"{file.path}: no column for question(s) 'urgent', 'severity'; is 'Urgent' 'urgent'?"


def test_files_without_answers_are_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"none of the 3 question\(s\) has a column.*'quue', 'text'; is 'quue' 'queue'\?"
    ):
        read(write(tmp_path / "r.jsonl", [{"text": "x", "quue": "billing"}]))
    with pytest.raises(DataError, match=r"the columns are: 'text'\. Name columns as the questions: 'queue', 'urgent'"):
        read(write(tmp_path / "r.jsonl", [{"text": "x"}]))
    with pytest.raises(DataError, match="no row answers a question"):
        read(write(tmp_path / "r.jsonl", ROWS[3:]))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="the file has no rows; it needs one state per row"):
        read(tmp_path / "empty.jsonl")


def test_faults_name_file_and_line(tmp_path):
    with pytest.raises(DataError, match=r"r\.jsonl:2: 'queue' is 'biling'"):
        read(write(tmp_path / "r.jsonl", [ROWS[0], ROWS[1] | {"queue": "biling"}]))
    with pytest.raises(DataError, match=r"r\.jsonl:2: id 'a' is already used by line 1"):
        read(write(tmp_path / "r.jsonl", [ROWS[0], ROWS[1] | {"id": "a"}]))
    path = tmp_path / "twice.jsonl"
    path.write_text('{"text": "x", "queue": "billing", "queue": "technical"}\n')
    with pytest.raises(DataError, match=r"twice\.jsonl:1: duplicate key 'queue'"):
        read(path)
    path.write_text('{"text": "x", "answers": {"queue": "billing", "queue": "technical"}}\n')
    with pytest.raises(DataError, match=r"twice\.jsonl:1: question 'queue' is answered twice"):
        read(path)


def test_likely_mistakes_are_warned_about(tmp_path):
    rows = [{"text": "one", "queue": "billing", "urgent": True}, {"text": "One ", "queue": "billing", "urgent": False}]
    same, different = read(write(tmp_path / "r.jsonl", rows)).warnings
    assert "every answer to 'queue' is 'billing'" in same
    assert "1 row(s) have a different answer than an earlier row with the same text" in different
    assert "urgent" in different


CELLS = st.none() | st.sampled_from(["billing", "technical", "yes", "0", "1", "0.50", "x", "", "[2]", "nan", "2"])


@given(st.lists(st.fixed_dictionaries({"text": st.text(max_size=5), "queue": CELLS, "urgent": CELLS}), max_size=4))
def test_any_cells_are_read_or_refused_with_their_line(tmp_path_factory, rows):
    path = write(tmp_path_factory.mktemp("any") / "r.jsonl", rows)
    answers = [(question, row[question.name]) for row in rows for question in (QUEUE, URGENT)]
    given_answers = [(question, cell) for question, cell in answers if (cell or "").strip()]
    fits = all(answer_index(question, cell) is not None for question, cell in given_answers)
    if fits and given_answers and all(row["text"].strip() for row in rows):
        assert [(e.asked, e.answer) for e in read(path).examples] == [(q, answer_index(q, c)) for q, c in given_answers]
    else:
        with pytest.raises(DataError, match=f"^{re.escape(str(path))}:"):
            read(path)
