"""Rows of the data as the page shows them: question, answers, and the members' probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorchestra.metrics import predictive
from lorchestra.metrics.predictive import FloatArray
from lorchestra.report.html.measures import confident_mistakes, contested
from lorchestra.types import Predictions

MAX_CHARACTERS = 700
"""A longer text is truncated on the page, which says so."""

MAX_OPTIONS = 8
"""With more choices, the most probable ones and the right one are shown."""


@dataclass(frozen=True, slots=True)
class Option:
    """A choice of a row with its probability, and the probabilities that the members give it."""

    text: str
    prob: float
    member_probs: tuple[float, ...]
    predicted: bool
    right: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """A row; `cut` counts the truncated characters of its text, `hidden` the choices that are not shown."""

    id: str
    text: str
    cut: int
    options: tuple[Option, ...]
    hidden: int
    confidence: float
    mutual_information: float
    right: bool


@dataclass(frozen=True)
class Examples:
    """A titled list of rows, and the rule by which they were picked."""

    title: str
    rule: str
    rows: tuple[Shown, ...]


def pick(predictions: Predictions, mixture_EC: FloatArray, most: int) -> list[Examples]:
    """The most confident mistakes and the most contested rows, at most `most` each; empty lists are left out.

    `mixture_EC` is the ensemble's distribution, which may be calibrated.
    """
    mistakes = _shown(predictions, mixture_EC, confident_mistakes(mixture_EC, predictions.labels, most))
    lists = [Examples("The most confident mistakes", "wrong answers by the ensemble's confidence", mistakes)]
    predicted = predictions.predicted_information is not None
    if predicted or predictions.num_members > 1:
        rule = "rows by mutual information: members are sure, but of different answers"
        if predicted:
            rule = "rows by mutual information, as predicted for the ensemble that taught this member"
        rows = _shown(predictions, mixture_EC, contested(predictions, most))
        lists.append(Examples("The most contested rows", rule, rows))
    return [examples for examples in lists if examples.rows]


def _shown(predictions: Predictions, mixture_EC: FloatArray, rows: Sequence[int]) -> tuple[Shown, ...]:
    if not rows:
        return ()
    log_probs_MEC = predictions.log_probs_MEC[:, list(rows)]
    probs_EC = np.exp(mixture_EC[list(rows)])
    information_E = predictive.information(predictions)
    return tuple(
        _row(predictions, e, np.exp(log_probs_MEC[:, i]), probs_EC[i], float(information_E[e]))
        for i, e in enumerate(rows)
    )


def _row(
    predictions: Predictions, e: int, member_probs_MC: FloatArray, probs_C: FloatArray, information: float
) -> Shown:
    options, label, best = predictions.options[e], int(predictions.labels[e]), int(probs_C.argmax())
    order = sorted(range(len(options)), key=lambda c: -probs_C[c])
    kept = {*order[:MAX_OPTIONS], label} if len(options) > MAX_OPTIONS else set(range(len(options)))
    text = predictions.texts[e] if predictions.texts else ""
    return Shown(
        id=predictions.ids[e],
        text=text[:MAX_CHARACTERS],
        cut=max(0, len(text) - MAX_CHARACTERS),
        options=tuple(
            Option(options[c], float(probs_C[c]), tuple(float(p) for p in member_probs_MC[:, c]), c == best, c == label)
            for c in range(len(options))
            if c in kept
        ),
        hidden=len(options) - len(kept),
        confidence=float(probs_C[best]),
        mutual_information=information,
        right=best == label,
    )
