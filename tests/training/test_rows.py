"""Weights of training rows with typed questions."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorchestra.config.data import DataConfig, ReadConfig
from lorchestra.data.encode import EncodedSplit
from lorchestra.questions import Question
from lorchestra.training.rows import question_weights, row_weights
from lorchestra.types import Example

QUESTIONS = [Question(name, "predicate", "x") for name in "abc"]


def rows(numbers):
    return [Example(str(i), "s", ("false", "true"), 0, asked=QUESTIONS[number]) for i, number in enumerate(numbers)]


def test_a_known_answer():
    """Four rows, two questions: 4 / (2 * 3) for three of them, 4 / (2 * 1) for the fourth."""
    assert question_weights(rows([0, 0, 2, 0])) == pytest.approx([2 / 3, 2 / 3, 2, 2 / 3])


@given(st.lists(st.integers(0, 2), min_size=1, max_size=50))
def test_every_question_weighs_the_same_and_the_mean_is_one(numbers):
    sums = defaultdict(Fraction)
    for number, weight in zip(numbers, question_weights(rows(numbers)), strict=True):
        sums[number] += Fraction(weight)
    assert [float(total) for total in sums.values()] == pytest.approx([len(numbers) / len(sums)] * len(sums))


@pytest.mark.parametrize(("setting", "weights"), [("even", [2.0, 2 / 3, 2 / 3, 2 / 3]), ("rows", None)])
def test_the_setting_decides_about_the_rows_that_are_kept(setting, weights):
    train = rows([1, 0, 0, 0, 0, 0])
    encoded = EncodedSplit(rows=(), kept=(0, 2, 3, 5))
    pipeline = SimpleNamespace(data=DataConfig(read=ReadConfig(question_weights=setting)))
    assert row_weights(pipeline, train, encoded, None) == (weights and pytest.approx(weights))
