"""Rows with typed questions: how states and answers may be written, and what is refused."""

from __future__ import annotations

import datetime
import decimal
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorchestra.config.data import DataConfig, FieldsConfig
from lorchestra.data.readers.streams import FileRow
from lorchestra.data.typed_rows import TypedRowReader, answer_index
from lorchestra.errors import ConfigError, DataError
from lorchestra.questions import Question

QUEUE = Question("queue", "choice", "Which queue?", ("billing", "technical", "1", "2.0"))
URGENT = Question("urgent", "predicate", "It is urgent.")
SEVERITY = Question("severity", "score", "How severe?", ("low", "middle", "high"))
STARS = Question("stars", "score", "How many stars?", ("1", "2", "3", "4", "5"))
NAN = float("nan")


@pytest.mark.parametrize(
    ("question", "value", "index"),
    [
        (QUEUE, "billing", 0),
        (QUEUE, " technical\n", 1),
        (QUEUE, "Billing", None),
        (QUEUE, "bill", None),
        (QUEUE, "0", None),
        (QUEUE, 0, None),
        (QUEUE, "1", 2),
        (QUEUE, 1, 2),
        (QUEUE, 1.0, 2),
        (QUEUE, "1.0", None),
        (QUEUE, 2.0, 3),
        (QUEUE, 2, None),
        (QUEUE, True, None),
        (QUEUE, ["billing"], None),
        (URGENT, True, 1),
        (URGENT, False, 0),
        (URGENT, "TRUE", 1),
        (URGENT, " no ", 0),
        (URGENT, "Yes", 1),
        (URGENT, 1, 1),
        (URGENT, "0", 0),
        (URGENT, 0.0, 0),
        (URGENT, "1.0", 1),
        (URGENT, 2, None),
        (URGENT, "-1", None),
        (URGENT, "t", None),
        (URGENT, "perhaps", None),
        (SEVERITY, "middle", 1),
        (SEVERITY, " high", 2),
        (SEVERITY, "0", 0),
        (SEVERITY, 2, 2),
        (SEVERITY, 2.0, 2),
        (SEVERITY, "2.0", 2),
        (SEVERITY, 3, None),
        (SEVERITY, -1, None),
        (SEVERITY, 1.5, None),
        (SEVERITY, True, None),
        (STARS, "1", 0),
        (STARS, 5, 4),
        (STARS, 5.0, 4),
        (STARS, 0, None),
        (STARS, "0", None),
    ],
)
def test_an_answer_is_named_and_never_guessed(question, value, index):
    assert answer_index(question, value) == index


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([QUEUE, URGENT, SEVERITY, STARS]), JSON_VALUES)
def test_any_value_is_an_option_or_none(question, value):
    index = answer_index(question, value)
    assert index is None or 0 <= index < len(question.options)
    if index is not None and question.type == "choice":
        assert not isinstance(value, bool)
        assert float(value) == float(question.options[index]) or str(value).strip() == question.options[index]


def read(cells, answers="required", questions=(QUEUE, URGENT, SEVERITY), **fields):
    reader = TypedRowReader(DataConfig(fields=FieldsConfig(**fields)), questions, answers)
    return reader.examples(FileRow(7, cells, "rows.jsonl"), "r")


def test_a_row_is_one_example_per_question():
    queue, urgent, severity = read({"text": "It burns.", "queue": "technical", "urgent": "yes", "severity": None})
    assert [queue.id, urgent.id, severity.id] == ["r/queue", "r/urgent", "r/severity"]
    assert [queue.answer, urgent.answer, severity.answer] == [1, 1, None]
    assert {queue.question, urgent.question, severity.question} == {"It burns."}
    assert (queue.asked, queue.choices, queue.where) == (QUEUE, QUEUE.options, "rows.jsonl:7")


@pytest.mark.parametrize("value", [None, "", "  ", NAN])
def test_unanswered(value):
    for cells in ({"queue": value}, {"answers": {"queue": value}}, {}):
        assert [example.answer for example in read({"text": "x"} | cells)] == [None, None, None]


def test_answers_in_an_object():
    cells = {"state": {"a": [1, None], "b": "ü"}, "answers": {"severity": 2, "queue": None}}
    examples = read(cells)
    assert [example.answer for example in examples] == [None, None, 2]
    assert json.loads(examples[0].question) == cells["state"]
    # an empty object leaves the columns
    assert read({"text": "x", "answers": None, "queue": "billing"})[0].answer == 0
    assert read({"text": "x", "answers": {"urgent": True}, "queue": "billing"})[0].answer == 0


def test_states():
    assert read({"text": '{"a": 1}'})[0].question == '{"a": 1}'
    assert read({"text": ' {"a":  1}'})[0].question == ' {"a":  1}'
    assert read({"text": ["ü", 1]})[0].question == '["ü", 1]'
    day = {"text": {"day": datetime.date(2026, 1, 2), "price": decimal.Decimal("1.50")}}
    assert read(day)[0].question == '{"day": "2026-01-02", "price": "1.50"}'
    assert read({"body": "x"}, text="body")[0].question == "x"
    assert read({"title": "x", "body": "y"}, text="title,body")[0].question == "title: x\nbody: y"
    # the configured column, not the other
    assert read({"text": "x", "state": "y"})[0].question == "x"


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"queue": "billing"}, "no column 'text' or 'state' with the state; the columns are: 'queue'"),
        ({"texts": "x"}, "if 'texts' is the state: --data.fields.text texts"),
        ({"text": ""}, r"the state \('text'\) is empty"),
        ({"text": NAN}, r"the state \('text'\) is empty"),
        ({"state": None}, r"the state \('state'\) is empty"),
        ({"text": 5}, r"the state \('text'\) is 5, neither text nor"),
        ({"text": True}, "is True, neither text nor"),
        ({"text": "\ud800"}, "lone surrogate"),
        ({"text": {"a": "\ud800"}}, "lone surrogate"),
        (
            {"text": "x", "queue": "biling"},
            "'queue' is 'biling', which is not an answer; the closest option is 'billing'",
        ),
        ({"text": "x", "queue": "zzz"}, "its options are 'billing', 'technical', '1', '2.0': write one of them"),
        ({"text": "x", "queue": float("inf")}, "'queue' is inf, which is not an answer"),
        ({"text": "x", "urgent": "perhaps"}, "'urgent' is 'perhaps'.* write true or false"),
        ({"text": "x", "severity": 3}, "'severity' is 3.* or its index, 0 to 2"),
        ({"text": "x", "severity": "hihg"}, "the closest level is 'high'"),
        ({"text": "x", "answers": "billing"}, "'answers' is 'billing', not an object"),
        ({"text": "x", "answers": {"quue": "billing"}}, "'answers' has 'quue'; did you mean 'queue'"),
        ({"text": "x", "queue": "billing", "answers": {"queue": "billing"}}, "'queue' is answered twice"),
    ],
)
def test_wrong_rows_name_file_line_and_value(cells, message):
    for answers in ("required", "optional"):
        with pytest.raises(DataError, match=message) as caught:
            read(cells, answers)
        assert str(caught.value).startswith("rows.jsonl:7: ")


def test_integer_levels_have_no_index():
    with pytest.raises(DataError, match=r"'stars' is 0.*its levels are '1', '2'") as caught:
        read({"text": "x", "stars": 0}, questions=(STARS,))
    assert "index" not in str(caught.value)


def test_answers_may_be_anything_where_they_do_not_matter():
    wrong = {"text": "x", "queue": "zzz", "urgent": True, "answers": {"nothing": 1, "severity": "high"}}
    assert [example.answer for example in read(wrong, "lenient")] == [None, 1, 2]
    assert [example.answer for example in read(wrong | {"answers": 3}, "lenient")] == [None, 1, None]
    assert [example.answer for example in read(wrong, "ignored")] == [None, None, None]


@pytest.mark.parametrize(
    ("name", "fields", "column"),
    [
        ("text", {}, "state"),
        ("state", {}, "state"),
        ("answers", {}, "answers"),
        ("id", {}, "id"),
        ("body", {"text": "title,body"}, "state"),
        ("key", {"id": "key"}, "id"),
    ],
)
def test_a_question_cannot_have_the_name_of_another_column(name, fields, column):
    with pytest.raises(ConfigError, match=f"question '{name}' has the name of the column with the {column}"):
        read({}, questions=(Question(name, "predicate", "x"),), **fields)
