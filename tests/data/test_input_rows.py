"""Rows to predict: read one by one, with their columns, and with their faults as values."""

from __future__ import annotations

import datetime
import decimal
import json

import numpy as np
import pytest

from lorchestra.config.data import DataConfig, FieldsConfig
from lorchestra.data.in_memory import entries_of
from lorchestra.data.input_rows import input_rows, read_input_rows
from lorchestra.errors import ConfigError, DataError, InputError
from lorchestra.questions import Question
from lorchestra.types import Example

LABELS = ("no", "yes")


@pytest.fixture
def ask(tmp_path):
    """Reads rows that are written as lines (strings unchanged)."""

    def run(rows, labels=LABELS, name="new.jsonl", **fields):
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return list(read_input_rows(path, DataConfig(fields=FieldsConfig(**fields)), labels))

    return run


def test_rows_are_read_lazily(tmp_path):
    path = tmp_path / "new.jsonl"
    path.write_text('{"text": "a film"}\n' * 5000)
    rows = read_input_rows(path, DataConfig(), LABELS)
    assert next(rows).id == "new-1"
    rows.close()


def test_numbers_ids_and_columns(ask):
    rows = ask([{"text": "a", "id": "u", "n": 1}, {"text": "b", "id": "u"}, {"text": "c"}])
    assert [row.number for row in rows] == [1, 2, 3]
    assert [row.id for row in rows] == ["u", "u", "new-3"]
    assert [row.kept for row in rows] == [{"text": "a", "n": 1}, {"text": "b"}, {"text": "c"}]
    assert rows[0].example == Example("u", "a", LABELS, None, rows[0].example.where)


def test_the_first_rows_may_be_faulty(ask):
    rows = ask(["{", {}, {"text": ""}, {"text": "a film"}])
    assert [row.example is None for row in rows] == [True, True, True, False]
    assert [row.fault is None for row in rows] == [False, False, False, True]
    assert all(row.fault is not None for row in ask(["{", "["]))


def test_where_none_of_the_first_rows_can_be_read_later_rows_say_so(ask):
    rows = ask(["{"] * 100 + [{"text": "a film"}])
    assert "invalid JSON" in rows[99].fault
    assert "new.jsonl:101: its columns are not known, since none of the first 100 rows" in rows[100].fault
    assert rows[100].cells == {"text": "a film"}


def test_columns_that_no_row_has_are_an_error_of_the_file(ask):
    with pytest.raises(DataError, match=r"--data\.fields"):
        ask([{"review": "a film"}] * 3)
    with pytest.raises(DataError, match="questions with choices"):
        ask([{"text": "a film"}], labels=None)
    with pytest.raises(ConfigError, match="are both the column"):
        ask([{"text": "a film"}], label="text")


def test_known_answers_are_read(ask):
    question = {"question": "q", "choices": ["a", "b"]}
    given = [0, 1, 2, -1, "?", None, "b", [1]]
    rows = ask([question | {"answer": answer} for answer in given], labels=None)
    assert [row.example.answer for row in rows] == [0, 1, None, None, None, None, 1, None]
    given = ["yes", "maybe", "", None, -1, 2.5]
    rows = ask([{"text": "a", "label": label} for label in given])
    assert [row.example.answer for row in rows] == [1, None, None, None, None, None]


def test_cells_of_any_type_are_kept_as_json(tmp_path):
    import pyarrow
    import pyarrow.parquet

    cells = {
        "text": "a film",
        "day": datetime.date(2026, 1, 2),
        "price": decimal.Decimal("1.50"),
        "data": b"x",
        "score": float("nan"),
        "list": [1, None],
    }
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([cells]), tmp_path / "new.parquet")
    (row,) = read_input_rows(tmp_path / "new.parquet", DataConfig(), LABELS)
    assert row.kept == {
        "text": "a film",
        "day": "2026-01-02",
        "price": "1.50",
        "data": "b'x'",
        "score": None,
        "list": [1, None],
    }
    json.dumps(row.kept, allow_nan=False)


def test_values_in_memory():
    def ask(values, labels=LABELS):
        return list(input_rows(entries_of(values, labels), DataConfig(), labels))

    assert [row.example.question for row in ask(["a", "b"])] == ["a", "b"]
    assert ask([]) == []
    (row,) = ask([{"text": "a", "n": np.int64(3)}])
    assert row.kept == {"text": "a", "n": 3}
    example = Example("x", "a", LABELS, None)
    assert ask([example])[0].example is example
    for values, message in (({"text": "a"}, "one dict"), ([3], r"rows\[0\] is 3"), ([example, "a"], "row 2 is str")):
        with pytest.raises(InputError, match=message):
            ask(values)
    with pytest.raises(InputError, match="pass dicts with both"):
        ask(["a"], labels=None)


def test_a_table_of_pandas():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"text": ["a film", None], "n": pandas.array([1, None], dtype="Int64")})
    first, second = input_rows(entries_of(table, LABELS), DataConfig(), LABELS)
    assert (first.example.question, first.kept) == ("a film", {"text": "a film", "n": 1})
    assert "text" in second.fault
    assert second.kept == {"text": None, "n": None}
    (row,) = input_rows(entries_of(pandas.Series(["a play"]), LABELS), DataConfig(), LABELS)
    assert row.example.question == "a play"


def test_what_was_assumed_about_a_file_is_logged(tmp_path, on_log):
    path = tmp_path / "new.csv"
    path.write_text("stem;A;B\nWhat?;x;y\n")
    logged = []
    on_log(logged.append)
    assert [row.fault for row in read_input_rows(path, DataConfig(), None)] == [None]
    assert logged == [
        f"{path}: read as semicolon-separated",
        f"{path}: read as questions with choices by their columns (question: stem; choices: A, B)",
    ]


ASKED = (Question("urgent", "predicate", "x"), Question("severity", "score", "x", ("low", "high")))


@pytest.fixture
def ask_typed(tmp_path):
    """Reads rows for typed questions."""

    def run(rows, name="new.jsonl", **fields):
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return list(read_input_rows(path, DataConfig(fields=FieldsConfig(**fields)), None, ASKED))

    return run


def test_every_typed_question_is_asked_of_every_row(ask_typed):
    rows = ask_typed([{"text": "a", "id": "u", "n": 1, "severity": "high"}, {"state": {"b": 1}}])
    assert [(row.number, row.id) for row in rows] == [
        *((1, "u/urgent"), (1, "u/severity")),
        *((2, "new-2/urgent"), (2, "new-2/severity")),
    ]
    assert [row.asked for row in rows] == [*ASKED, *ASKED]
    assert [row.example.question for row in rows] == ["a", "a", '{"b": 1}', '{"b": 1}']
    assert [row.example.answer for row in rows] == [None, 1, None, None]
    assert rows[0].kept == {"text": "a", "n": 1, "severity": "high"}
    assert rows[3].kept == {"state": {"b": 1}}


def test_faults_of_typed_rows_are_those_of_all_their_questions(ask_typed):
    rows = ask_typed(["{", {"text": ""}, {"text": "a", "urgent": "perhaps"}, {"text": "a", "id": "u", "answers": 5}])
    assert [row.number for row in rows] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert [row.fault is None for row in rows] == [False] * 4 + [True] * 4
    assert [row.id for row in rows[:3]] == ["new-1/urgent", "new-1/severity", "new-2/urgent"]
    assert rows[2].fault == rows[3].fault
    assert "the state ('text') is empty" in rows[2].fault


def test_typed_rows_need_the_column_of_the_state(ask_typed):
    with pytest.raises(DataError, match="no column 'text' or 'state'"):
        ask_typed([{"body": "a"}])
    assert len(ask_typed([{"body": "a"}], text="body")) == 2
    assert [row.fault is None for row in ask_typed([{"n": 1}, {"text": "a"}])] == [False, False, True, True]


def test_csv_cells_of_typed_rows_are_text(tmp_path):
    path = tmp_path / "new.csv"
    path.write_text('text,label\n"{""a"": 1}",1.50\n')
    question = Question("label", "choice", "x", ("1.50", "2.50"))
    (row,) = read_input_rows(path, DataConfig(), None, (question,))
    assert (row.example.question, row.example.answer, row.kept["label"]) == ('{"a": 1}', 0, "1.50")


def test_typed_rows_in_memory():
    entries = entries_of(["a", "b"], None, typed=True)
    assert [row.example.question for row in input_rows(entries, DataConfig(), None, ASKED)] == ["a", "a", "b", "b"]
    frame = [{"text": "a", "severity": np.int64(1), "urgent": np.float64("nan")}, {"state": {"b": np.float32(1)}}]
    rows = list(input_rows(entries_of(frame, None, typed=True), DataConfig(), None, ASKED))
    assert [row.example.answer for row in rows] == [None, 1, None, None]
    assert rows[2].example.question == '{"b": 1}'
    lazy = input_rows(entries_of(iter(["a"]), None, typed=True), DataConfig(), None, ASKED)
    assert [row.id for row in lazy] == ["rows-1/urgent", "rows-1/severity"]


def test_examples_in_memory_ask_the_questions_of_the_run():
    example = Example("e", "a", ASKED[1].options, 0, asked=ASKED[1])
    (row,) = input_rows([example], DataConfig(), None, ASKED)
    assert (row.id, row.asked, row.example) == ("e", ASKED[1], example)
    other = Example("e", "a", ("no", "yes"), 0, asked=Question("other", "choice", "x", ("no", "yes")))
    with pytest.raises(InputError, match="row 1 asks question 'other', which the run was not trained on"):
        list(input_rows([other], DataConfig(), None, ASKED))
    with pytest.raises(InputError, match="row 1 asks no typed question"):
        list(input_rows([Example("e", "a", ("no", "yes"), 0)], DataConfig(), None, ASKED))
