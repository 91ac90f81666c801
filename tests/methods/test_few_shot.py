"""The rows shown before a question: drawn from training rows by a seed, with even answers."""

from __future__ import annotations

from collections import Counter

import pytest

from lorchestra.errors import ConfigError
from lorchestra.methods import few_shot
from lorchestra.methods.few_shot import draw_shots
from lorchestra.types import Example

ROWS = [Example(str(n), f"q{n}", ("a", "b", "c"), min(n % 5, 2)) for n in range(60)]  # 12, 12 and 36 of each answer


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, 16])
def test_answers_are_as_even_as_their_number_allows(number):
    for seed in range(5):
        counts = Counter(row.answer for row in draw_shots(ROWS, number, seed))
        assert sum(counts.values()) == number
        assert max(counts.values()) - min(counts[a] for a in range(3)) <= 1


def test_the_seed_decides_which_and_in_which_order():
    assert draw_shots(ROWS, 6, 1) == draw_shots(ROWS, 6, 1)
    draws = [tuple(row.id for row in draw_shots(ROWS, 6, seed)) for seed in range(20)]
    assert len(set(draws)) == 20
    orders = {tuple(row.answer for row in draw_shots(ROWS, 6, seed)) for seed in range(20)}
    assert len(orders) > 5  # answers do not come in turns


def test_no_more_than_there_are():
    assert sorted(row.id for row in draw_shots(ROWS[:3], 10, 0)) == ["0", "1", "2"]
    assert draw_shots([], 4, 0) == []


def test_every_draw_shows_other_rows_and_shots_that_do_not_fit_are_refused(make_context):
    context, test = make_context()
    found = few_shot.fit(context, few_shot.Config(num_shots=2, draws=4)).predict(test, "test")
    assert found.num_members == 4
    assert len({draw.tobytes() for draw in found.log_probs_MEC}) == 4
    with pytest.raises(ConfigError, match=r"few_shot\.num_shots: with 40 rows before them, \d+ of \d+ rows have more"):
        few_shot.fit(context, few_shot.Config(num_shots=40)).predict(test, "test")
    with pytest.raises(ConfigError, match=r"few_shot\.draws: 0 is less than 1"):
        few_shot.fit(context, few_shot.Config(draws=0))


def test_a_row_is_not_shown_with_its_answer_before_it_is_asked(make_context):
    context, _ = make_context()
    fitted = few_shot.fit(context, few_shot.Config(num_shots=2, draws=1))
    assert few_shot.unasked(context.train, context.train[3:]) == list(context.train[:3])
    with pytest.raises(ConfigError, match="every training row is among the rows asked"):
        fitted.predict(context.train, "train")
