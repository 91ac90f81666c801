"""What `/metrics` reports about each question that a run was trained on: confidence, decisions and drift."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from lorchestra.metrics.drift import shift_of_numbers
from lorchestra.runs.ask import Reply
from lorchestra.server.registry import ServedRun

_RECENT, _FEWEST = 1000, 20
"""Drift is that of the most recent answers, and unknown (NaN) for fewer than the second number."""
_CONFIDENCES = tuple(round(0.05 * step, 2) for step in range(1, 21))


class QuestionMetrics:
    """Counts answers to trained questions.

    Args:
        registry: receives the metrics.
        runs: those that are served; the names of their questions are in labels, names that clients give are not.
    """

    def __init__(self, registry: CollectorRegistry, runs: Sequence[ServedRun]) -> None:
        labels = ("run", "question")
        self._confidence = Histogram(
            "lorchestra_confidence",
            "Calibrated probability of the prediction",
            labels,
            buckets=_CONFIDENCES,
            registry=registry,
        )
        self._decisions = Counter(
            "lorchestra_decisions",
            "Answers by decision (none without a certificate)",
            (*labels, "decision"),
            registry=registry,
        )
        drift = Gauge(
            "lorchestra_confidence_drift",
            f"Population stability index of the last {_RECENT} confidences against those of the rows that certified",
            labels,
            registry=registry,
        )
        self._recent: dict[tuple[str, str], deque[float]] = {}
        for run in runs:
            for question, reference in run.references.items():
                recent = self._recent[run.name, question] = deque(maxlen=_RECENT)
                drift.labels(run.name, question).set_function(_Drift(reference, recent))

    def count(self, run: str, reply: Reply) -> None:
        """Count an answer of a run's ensemble, if the run was trained on the question."""
        confidence = reply.answer.confidence
        if reply.question is None or confidence is None:
            return
        self._confidence.labels(run, reply.question).observe(confidence)
        self._decisions.labels(run, reply.question, reply.answer.decision or "none").inc()
        recent = self._recent.get((run, reply.question))
        if recent is not None:
            recent.append(confidence)


class _Drift:
    """The stability index of recent confidences when it is called."""

    def __init__(self, reference: Sequence[float], recent: deque[float]) -> None:
        self._reference, self._recent = np.array(reference), recent

    def __call__(self) -> float:
        recent = np.array(self._recent)
        return math.nan if len(recent) < _FEWEST else shift_of_numbers(self._reference, recent).psi
