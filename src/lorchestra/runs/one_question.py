"""One typed question of a run, and the rows that ask it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorchestra.errors import ConfigError, did_you_mean
from lorchestra.questions import Question
from lorchestra.types import Example

if TYPE_CHECKING:
    from lorchestra.runs.ensemble import Ensemble


def question_of(trained: Ensemble, name: str | None) -> Question | None:
    """The run's typed question of this name; None for a run without typed questions.

    Raises:
        ConfigError: there is no such question, or none is named and the run has some.
    """
    questions = {question.name: question for question in trained.record.questions}
    if name is None and questions:
        raise ConfigError(f"question: the run has typed questions; name one of {', '.join(questions)}")
    if name is None:
        return None
    if name not in questions:
        hint = did_you_mean(name, questions) if questions else "the run has no typed questions: leave it out"
        raise ConfigError(f"question: the run has no question {name!r}; {hint}")
    return questions[name]


def rows_with(rows: Sequence[Example], asked: Question | None) -> tuple[Example, ...]:
    """The rows that ask a typed question; all of them without one."""
    return tuple(row for row in rows if asked is None or row.asked == asked)
