"""The training rows that are most similar to a text, by TF-IDF of words and pairs of words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lorchestra.errors import DataError
from lorchestra.methods.tfidf import make_words
from lorchestra.runs.evaluate import rows_of_run
from lorchestra.runs.rows import with_directory
from lorchestra.types import Example

if TYPE_CHECKING:
    from lorchestra.runs.ensemble import Ensemble

_MAX_FEATURES = 100_000


@dataclass(frozen=True, slots=True)
class SimilarRow:
    """A training row: its text, the distinct answers by question, and the cosine similarity, between 0 and 1."""

    text: str
    answers: dict[str, list[str]]
    similarity: float


class SimilarRows:
    """An index of training rows.

    Args:
        examples: the rows; those with the same text are one.
        name: of the question of rows without a typed one.

    Raises:
        DataError: no row has a word.
    """

    def __init__(self, examples: Sequence[Example], name: str) -> None:
        answers: dict[str, dict[str, list[str]]] = {}
        for row in examples:
            of_text = answers.setdefault(row.question, {})
            if row.answer is None:
                continue
            given = of_text.setdefault(name if row.asked is None else row.asked.name, [])
            if row.choices[row.answer] not in given:
                given.append(row.choices[row.answer])
        self._texts, self._answers = list(answers), list(answers.values())
        self._vectorizer = make_words(_MAX_FEATURES)
        try:
            self._features_EF = self._vectorizer.fit_transform(self._texts)
        except ValueError as error:
            raise DataError(f"the training rows have no words to compare: {error}") from error

    @classmethod
    def of_run(cls, trained: Ensemble) -> SimilarRows:
        """The training rows of a run, read from its files and verified to be unchanged.

        Raises:
            ConfigError, DataError: they cannot be read, or have changed.
        """
        rows = rows_of_run(trained, with_directory(trained.config.data, None), otherwise="")
        return cls(rows.task.splits["train"], trained.record.task)

    def nearest(self, text: str, number: int) -> list[SimilarRow]:
        """At most `number` rows that share words with a text, the most similar first."""
        features_1F = self._vectorizer.transform([text])
        similarity_E = (self._features_EF @ features_1F.T).toarray()[:, 0]
        order = np.argsort(-similarity_E, kind="stable")[:number]
        return [
            SimilarRow(self._texts[e], self._answers[e], min(1.0, float(similarity_E[e])))
            for e in order.tolist()
            if similarity_E[e] > 0
        ]
