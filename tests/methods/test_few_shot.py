"""The rows shown before a question: drawn from training rows by seed, with balanced answers."""

from __future__ import annotations

from collections import Counter

import pytest

from lorchestra.errors import ConfigError
from lorchestra.methods import few_shot
from lorchestra.methods.few_shot import draw_shots
from lorchestra.types import Example

ROWS = [Example(str(n), f"q{n}", ("a", "b", "c"), min(n % 5, 2)) for n in range(60)]  # 12, 12 and 36 of each answer


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, 16])
def test_answers_are_as_balanced_as_their_number_allows(number):
    for seed in range(5):
        counts = Counter(row.answer for row in draw_shots(ROWS, number, seed))
        assert sum(counts.values()) == number
        assert max(counts.values()) - min(counts[a] for a in range(3)) <= 1


def test_seed_determines_shots_and_their_order():
    assert draw_shots(ROWS, 6, 1) == draw_shots(ROWS, 6, 1)
    draws = [tuple(row.id for row in draw_shots(ROWS, 6, seed)) for seed in range(20)]
    assert len(set(draws)) == 20
    orders = {tuple(row.answer for row in draw_shots(ROWS, 6, seed)) for seed in range(20)}
    assert len(orders) > 5  # answers do not simply alternate


def test_fewer_rows_than_requested():
    assert sorted(row.id for row in draw_shots(ROWS[:3], 10, 0)) == ["0", "1", "2"]
    assert draw_shots([], 4, 0) == []


def test_draws_differ_and_too_many_shots_are_refused(make_context):
    context, test = make_context()
    predictions = few_shot.fit(context, few_shot.Config(num_shots=2, draws=4)).predict(test, "test")
    assert predictions.num_members == 4
    assert len({draw.tobytes() for draw in predictions.log_probs_MEC}) == 4
    with pytest.raises(ConfigError, match=r"few_shot\.num_shots: with 40 shots, \d+ of \d+ rows have more"):
        few_shot.fit(context, few_shot.Config(num_shots=40)).predict(test, "test")
    with pytest.raises(ConfigError, match=r"few_shot\.draws: 0 is less than 1"):
        few_shot.fit(context, few_shot.Config(draws=0))


def test_predicted_rows_are_not_shown_with_their_answers(make_context):
    context, _ = make_context()
    fitted = few_shot.fit(context, few_shot.Config(num_shots=2, draws=1))
    assert few_shot.excluding(context.train, context.train[3:]) == list(context.train[:3])
    with pytest.raises(ConfigError, match="every training row is among the predicted rows"):
        fitted.predict(context.train, "train")
