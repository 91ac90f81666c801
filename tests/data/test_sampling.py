"""Draws with balanced answers."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lorchestra.data.splits import draw_stratified
from lorchestra.types import Example


def rows(answers):
    return [Example(str(n), f"q{n}", ("a", "b", "c"), answer) for n, answer in enumerate(answers)]


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(0, 50), st.integers(0, 5))
def test_a_draw_is_balanced_and_without_repeats(answers, number, seed):
    drawn = draw_stratified(rows(answers), number, seed, "test")
    assert len(drawn) == min(number, len(answers))
    assert len({row.id for row in drawn}) == len(drawn)
    counts, all_counts = Counter(row.answer for row in drawn), Counter(answers)
    most = max(counts.values(), default=0)
    for answer, count in all_counts.items():
        assert counts[answer] >= min(count, most - 1)


def test_draws_from_sorted_rows_cover_the_whole_file():
    drawn = draw_stratified(rows([0] * 300 + [1] * 300), 200, "sorted")
    assert Counter(row.answer for row in drawn) == {0: 100, 1: 100}
    indices = sorted(int(row.id) for row in drawn)
    assert indices[0] < 30
    assert indices[-1] > 570
    assert drawn == draw_stratified(rows([0] * 300 + [1] * 300), 200, "sorted")
    assert drawn != draw_stratified(rows([0] * 300 + [1] * 300), 200, "another")
