"""Splits of rows with typed questions: by state, whatever is asked about it."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorchestra.data.splits import content_digest, make_splits, num_shared, split_digest, split_key
from lorchestra.errors import DataError
from lorchestra.questions import Question
from lorchestra.types import Example

QUESTIONS = (
    Question("queue", "choice", "Which queue?", ("billing", "technical", "other")),
    Question("dringend?", "predicate", "It is urgent."),
    Question("geöffnet", "predicate", "It is open."),
)


def example(state, question, answer, name=None):
    name = f"{name or state}/{question.name}"
    return Example(name, state, question.options, answer, asked=question)


def rows(states, answers=lambda state, question: (state + len(question.name)) % 2):
    return [example(f"state {s}", q, answers(s, q)) for s in states for q in QUESTIONS]


def states(examples):
    return {row.question for row in examples}


def test_all_questions_about_a_state_are_in_one_split():
    splits, report = make_splits(rows(range(100)), None, None, seed=0)
    parts = [states(splits[name]) for name in ("train", "val", "test")]
    assert [len(part) for part in parts] == [80, 10, 10]
    assert len(set.union(*parts)) == 100
    assert [len(splits[name]) for name in splits] == [240, 30, 30]
    assert report.num_states == {"train": 80, "val": 10, "test": 10}
    assert report.sentences()[0] == "val is a stratified part of the training rows: 10 state(s) with 30 answers"


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2), st.integers(0, 1)), min_size=60, max_size=200))
def test_any_answers_are_split_by_state(cells):
    every = [example(f"  State {s}", QUESTIONS[q], a, f"{i}") for i, (s, q, a) in enumerate(cells)]
    every += [example(f"new {i}", QUESTIONS[i % 3], 0) for i in range(20)]
    splits, _ = make_splits(every, None, None, seed=1)
    assert Counter(row.id for part in splits.values() for row in part) == Counter(row.id for row in every)
    keys = [set(map(split_key, part)) for part in splits.values()]
    assert sum(map(len, keys)) == len(set.union(*keys))
    assert all(keys)


def test_the_order_of_rows_moves_nothing():
    every = rows(range(60))
    one, _ = make_splits(every, None, None, seed=3)
    other, _ = make_splits(every[::-1], None, None, seed=3)
    assert [set(part) for part in one.values()] == [set(part) for part in other.values()]


def test_states_are_stratified_by_their_rarest_answer():
    """One state in ten is of the queue `other`: so is one in ten of each part, and never all of them."""
    splits, _ = make_splits(rows(range(200), lambda s, q: 2 if q.name == "queue" and s % 10 == 0 else 0), None, None, 0)
    for name, number in (("train", 16), ("val", 2), ("test", 2)):
        assert sum(row.answer == 2 for row in splits[name]) == number


def test_an_answer_that_occurs_once_is_trained_on():
    splits, _ = make_splits(rows(range(50), lambda s, q: int(s == 7 and q.name == "queue")), None, None, 0)
    assert "state 7" in states(splits["train"])


def test_many_questions_about_few_states():
    """Every state has an answer of its question that no other has: no stratum has two states."""
    questions = [Question(f"q{i}", "predicate", "x") for i in range(30)]
    every = [example(f"state {i}", question, 0) for i, question in enumerate(questions)]
    splits, _ = make_splits(every, None, None, seed=0)
    assert [len(part) for part in splits.values()] == [24, 3, 3]
    with pytest.raises(DataError, match="3 distinct states"):
        make_splits(every[:3], None, None, seed=0)


def test_a_state_of_a_given_test_set_leaves_the_training_rows():
    test = [example("STATE  3", QUESTIONS[0], 1)]
    splits, report = make_splits(rows(range(40)), None, test, seed=0)
    assert "state 3" not in states(splits["train"]) | states(splits["val"])
    assert report.sentences()[-1] == "3 answer(s) were removed from train, as their states are also in test"
    assert num_shared(test, rows(range(40))) == 1
    assert num_shared(test, rows(range(3))) == 0


def test_repeated_answers_are_counted_by_question():
    """Two predicates about one state have the same options, and are not the same row."""
    every = rows(range(10))
    _, report = make_splits([*every, example("State 1", QUESTIONS[1], 0, "again")], rows([10]), rows([11]), seed=0)
    assert report.repeated == {"train": 1}


def test_the_digest_includes_what_is_asked():
    row = example("x", QUESTIONS[1], 1)
    plain = dataclasses.replace(row, asked=None)
    reworded = dataclasses.replace(row, asked=Question("dringend?", "predicate", "It is very urgent."))
    assert len({split_digest([one]) for one in (row, plain, reworded)}) == 3
    assert split_key(plain) == content_digest(plain) == content_digest(row)
    assert split_key(row) == split_key(reworded) != split_key(plain)
    assert json.dumps(QUESTIONS[1].content)
