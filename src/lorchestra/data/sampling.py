"""Seeded draws of rows with even answers."""

from __future__ import annotations

from collections.abc import Sequence

from lorchestra.core.seeding import permutation
from lorchestra.types import Example


def draw_even(rows: Sequence[Example], number: int, *stream: int | str) -> list[Example]:
    """`number` of the rows, drawn by the seed that `stream` names, with the answers as even as their numbers allow.

    They come dealt in turns, one of each answer; an answer with too few rows leaves its turns to the others.
    """
    by_answer: dict[int | None, list[Example]] = {}
    for place in permutation(len(rows), *stream):
        by_answer.setdefault(rows[place].answer, []).append(rows[place])
    turns = max((len(group) for group in by_answer.values()), default=0)
    dealt = [group[turn] for turn in range(turns) for group in by_answer.values() if turn < len(group)]
    return dealt[:number]
