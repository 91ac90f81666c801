"""Confidences with known values, and tokens of a request whose questions share a state."""

from __future__ import annotations

import pytest

from lorchestra.questions import Question
from lorchestra.runs.ask import Reply
from lorchestra.runs.predict import Answer
from lorchestra.server.wire import Answered, AskedQuestion, Usage, choice_confidence, score_confidence, usage


@pytest.mark.parametrize(
    ("probs", "expected"),
    [([0.5, 0.5], 0), ([1, 0], 1), ([0.75, 0.25], 0.5), ([0.5, 0.3, 0.2], 0.25), ([1 / 3] * 3, 0)],
)
def test_a_choices_confidence_is_its_distance_from_chance(probs, expected):
    assert choice_confidence(probs) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("probs", "expected"),
    [
        ([1, 0, 0], 1),
        ([0, 1, 0], 1),
        ([0, 0.5, 0.5], 1 - 0.5 / (2 / 3)),
        ([0.5, 0, 0.5], 0),  # the mean distance from the mode is 1, over that of equal probabilities
        ([0.4, 0.3, 0.2, 0.1], 0),
        ([0.6, 0.4], 0.2),
    ],
)
def test_a_scores_confidence_is_its_concentration(probs, expected):
    assert score_confidence(probs) == pytest.approx(expected)


@pytest.mark.parametrize("formula", [choice_confidence, score_confidence])
def test_confidences_are_those_of_the_conformance_suite(formula):
    validate = pytest.importorskip("jevcompat.validate", reason="jevcompat is not installed")
    for probs in ([0.9, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.3, 0.4], [0.05] * 19 + [0.05]):
        assert formula(probs) == pytest.approx(getattr(validate, formula.__name__)(probs))


def answered(*tokens):
    asked = AskedQuestion(Question("q", "predicate", "x"), (False, True), ())
    return [Answered(asked, None if one is None else Reply(Answer("", 1), *one)) for one in tokens]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], (0, 0, 0)),
        ([(12, 10, 0)], (12, 0, 0)),
        ([(12, 10, 0, 10), (15, 10, 0, 10)], (17, 0, 10)),
        ([(12, 10, 10, 0), (15, 10, 10, 0)], (17, 10, 0)),
        # cached by the request's first question
        ([(12, 10, 0, 10), (15, 10, 10, 0)], (17, 0, 10)),
        ([(12, 10, 10), None, (7, 0, 0)], (19, 10, 0)),
    ],
)
def test_the_tokens_of_a_state_count_once(tokens, expected):
    assert usage(answered(*tokens)) == Usage(*expected)
