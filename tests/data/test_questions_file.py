"""Questions files: YAML and JSON, their limits, and errors that name the file, the question and the value."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lorchestra.data.questions_file import MAX_BYTES, MAX_QUESTIONS, read_questions
from lorchestra.errors import ConfigError
from lorchestra.questions import MAX_CHARACTERS, Question

QUEUE = {"type": "choice", "instructions": "Which queue?", "options": {"billing": "invoices", "technical": None}}
URGENT = {"type": "predicate", "instructions": "It is urgent.", "true": "within the hour"}
SEVERITY = {"type": "score", "instructions": "How severe?", "levels": ["cosmetic", "annoying", "blocking"]}
EXPECTED = (
    Question("queue", "choice", "Which queue?", ("billing", "technical"), ("invoices", None)),
    Question("urgent", "predicate", "It is urgent.", descriptions=(None, "within the hour")),
    Question("severity", "score", "How severe?", ("cosmetic", "annoying", "blocking")),
)


@pytest.fixture
def write(tmp_path):
    def build(content, name="q.yaml"):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return build


@pytest.mark.parametrize("name", ["q.yaml", "q.yml", "q.json", "q"])
def test_the_three_types_are_read(write, name):
    assert read_questions(write({"queue": QUEUE, "urgent": URGENT, "severity": SEVERITY}, name)) == EXPECTED


def test_yaml_is_read_by_the_rules_of_recipes(write):
    text = """
queue: {type: choice, instructions: "Which queue?", options: [yes, no, on, 1.0, 010, 1e3, 12:30]}
done:
  type: predicate
  instructions: It is done.
  true: finished
  False: open
5: {type: score, levels: [1, 2, 3]}
"""
    queue, done, five = read_questions(write(text))
    assert queue.options == ("yes", "no", "on", "1.0", "010", "1e3", "12:30")
    assert done.descriptions == ("open", "finished")
    assert (five.name, five.options) == ("5", ("1", "2", "3"))


def test_json_numbers_keep_their_notation_and_emoji_stay_whole(write):
    path = write('{"q": {"type": "choice", "options": [1.0, 1e3, 7, "\\ud83d\\ude00"]}}', "q.json")
    assert read_questions(path)[0].options == ("1.0", "1e3", "7", "\U0001f600")


def test_a_byte_order_mark_is_no_character(write):
    assert read_questions(write(b"\xef\xbb\xbf" + json.dumps({"severity": SEVERITY}).encode())) == EXPECTED[2:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "questions are None"),
        ("[1, 2]", r"questions are \['1', '2'\]"),
        ("a: b: c", "cannot be read"),
        ({"q": None}, "'q' is None; give it a type"),
        ({"q": {"type": "text"}}, "'q': type is 'text'; use choice, predicate or score"),
        ({"q": QUEUE | {"labels": []}}, "'q': a choice has no field 'labels'; its fields are"),
        ({"q": {"type": "choice", "options": "red"}}, "'q': options is 'red'; give a list"),
        ({"q": {"type": "choice", "options": ["red"]}}, "'q': it has 1 option; a choice has 2 to 255"),
        ({"q": {"type": "choice", "options": ["red", " red "]}}, "'q': option 'red' occurs twice"),
        ({"q": {"type": "choice", "options": [True, False]}}, "'q': one of the options is True, not a string; put it"),
        ({"q": {"type": "choice", "options": {"a": 1.5, "b": True}}}, "'q': the description of 'b' is True"),
        ({"q": {"type": "score", "levels": list("abcdefghijk")}}, "'q': it has 11 levels"),
        ({"q": URGENT | {"instructions": ["x"]}}, "'q': instructions is"),
        ({"q": {"type": "predicate"}}, "'q': it has no instructions"),
        ({"q": URGENT | {"instructions": "x" * (MAX_CHARACTERS + 1)}}, "'q': a text has 20,001 characters"),
        ({" q": URGENT}, "' q': its name has blanks around it"),
        ({"a\nb": URGENT}, "not printable"),
        ({"": URGENT}, "a question is named ''"),
        ({"q" * 201: URGENT}, "its name has 201 characters; use at most 200"),
        ({f"q{i}": URGENT for i in range(MAX_QUESTIONS + 1)}, "has 401 questions, and at most 400"),
        ("q: {type: choice, instructions: Which?, options: [a, b]}", "put text with a question mark in quotes"),
        ("q: {type: predicate, instructions: a}\nq: {type: predicate, instructions: b}", "q is set twice"),
        ("q: {type: predicate, true: a, instructions: b, 'true': c}", "true is set twice"),
        ("q: &q {type: predicate, instructions: a}\nr: *q", "write out the value instead"),
        ("!!python/object/apply:os.getcwd []", "cannot be read"),
        (b"q: \xff", "cannot be read as a questions file"),
        (b" " * (MAX_BYTES + 1), "more than 4,000,000 bytes"),
    ],
)
def test_errors_name_the_file_and_the_question(write, content, message):
    path = write(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_questions(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"q": 1, "q": 2}', "'q' is set twice"),
        ('{"q": {"type": "choice", "options": ["a", NaN]}}', "NaN is not a value"),
        ('{"q": {"type": "choice", "options": ["a", "\\ud800"]}}', "lone surrogate"),
        ('{"\\ud800": {"type": "predicate", "instructions": "x"}}', "not printable"),
    ],
)
def test_errors_of_json_files(write, content, message):
    path = write(content, "q.json")
    with pytest.raises(ConfigError, match=message) as caught:
        read_questions(path)
    assert str(caught.value).startswith(str(path))


def test_files_that_are_none(tmp_path):
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(ConfigError, match=str(path)):
            read_questions(path)


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20).filter(
    lambda text: text == text.strip() and text.isprintable()
)


@st.composite
def any_question(draw):
    name, instructions = draw(TEXTS), draw(TEXTS)
    kind = draw(st.sampled_from(["choice", "predicate", "score"]))
    options = ("false", "true")
    if kind != "predicate":
        options = tuple(draw(st.lists(TEXTS, min_size=2, max_size=10, unique=True)))
    descriptions = tuple(draw(st.none() | TEXTS) for _ in options)
    return Question(name, kind, instructions, options, descriptions)


@given(st.lists(any_question(), min_size=1, max_size=4, unique_by=lambda question: question.name))
def test_what_is_written_is_read_back(tmp_path_factory, questions):
    entries = {question.name: question.to_dict() for question in questions}
    folder = tmp_path_factory.mktemp("questions")
    (folder / "q.json").write_text(json.dumps(entries), encoding="utf-8")
    quoted = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, default_style='"')
    (folder / "q.yaml").write_text(quoted, encoding="utf-8")
    assert read_questions(folder / "q.json") == tuple(questions)
    assert read_questions(folder / "q.yaml") == tuple(questions)
