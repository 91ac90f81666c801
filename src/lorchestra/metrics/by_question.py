"""Predictions of rows with typed questions, question by question: each has its options and its kind of score."""

from __future__ import annotations

import numpy as np

from lorchestra.types import Predictions


def split_by_question(predictions: Predictions) -> dict[str, Predictions]:
    """The rows of each typed question by its name, in the order of the first rows; empty for rows without one.

    The choices of each part, axis `C`, are the question's options.

    Raises:
        ValueError: two rows of a question have different options.
    """
    rows_of: dict[str, list[int]] = {}
    for e, name in enumerate(predictions.questions):
        rows_of.setdefault(name, []).append(e)
    parts = {}
    for name, rows in rows_of.items():
        options = {predictions.options[e] for e in rows}
        if len(options) > 1:
            raise ValueError(f"rows of question {name!r} have different options")
        parts[name] = predictions.of_rows(np.array(rows), num_choices=len(options.pop()))
    return parts
