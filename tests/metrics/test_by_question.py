"""Predictions of several typed questions, taken apart."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lorchestra.metrics.by_question import split_by_question
from lorchestra.metrics.early_exit import first_members
from lorchestra.types import Predictions

YES, LEVELS = ("false", "true"), ("low", "middle", "high")


def predictions():
    """Two members; rows of a score, a predicate, the score again."""
    probs = np.array([[[0.5, 0.3, 0.2], [0.4, 0.6, 0], [0, 0, 1]], [[0.1, 0.1, 0.8], [1, 0, 0], [0.25, 0.5, 0.25]]])
    with np.errstate(divide="ignore"):
        log_probs = np.log(probs)
    return Predictions(
        log_probs,
        np.array([2, 1, -1]),
        ("a/severity", "a/urgent", "b/severity"),
        (LEVELS, YES, LEVELS),
        "tickets",
        "test",
        ("state a", "state a", "state b"),
        ("severity", "urgent", "severity"),
    )


def test_each_question_has_its_rows_and_options():
    every = predictions()
    parts = split_by_question(every)
    assert list(parts) == ["severity", "urgent"]
    severity, urgent = parts.values()
    assert severity.log_probs_MEC.tolist() == every.log_probs_MEC[:, [0, 2]].tolist()
    assert urgent.log_probs_MEC.tolist() == every.log_probs_MEC[:, [1], :2].tolist()
    assert (severity.ids, urgent.ids) == (("a/severity", "b/severity"), ("a/urgent",))
    assert severity.labels.tolist() == [2, -1]
    assert severity.options == (LEVELS, LEVELS)
    assert severity.texts == ("state a", "state b")
    assert severity.questions == ("severity", "severity")
    assert (severity.task, severity.split) == ("tickets", "test")
    assert sum(part.num_examples for part in parts.values()) == 3


def test_rows_without_typed_questions():
    assert split_by_question(dataclasses.replace(predictions(), questions=())) == {}


def test_a_question_has_one_set_of_options():
    with pytest.raises(ValueError, match="'severity' have different options"):
        split_by_question(dataclasses.replace(predictions(), questions=("severity",) * 3))


def test_one_name_per_row():
    with pytest.raises(ValueError, match="questions has 2 entries for 3 examples"):
        dataclasses.replace(predictions(), questions=("severity", "urgent"))


def test_early_exit_keeps_the_names():
    parts = first_members(predictions(), np.array([1, 2, 1])).parts
    assert [part.questions for part in parts] == [("severity", "severity"), ("urgent",)]
    assert [part.num_members for part in parts] == [1, 2]
