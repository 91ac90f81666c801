"""Differences between methods, and what their intervals say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorchestra.metrics.result import MethodScores
from lorchestra.metrics.table import Metric

ROUNDING = 1e-9
"""Differences up to this are rounding in float64."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method with its key, its name for people, and its scores."""

    key: str
    name: str
    scores: MethodScores


def covers_zero(ends: Sequence[float]) -> bool:
    """Whether an interval of a difference includes 0."""
    return ends[0] <= ROUNDING and ends[1] >= -ROUNDING


def judged(metric: Metric, ends: Sequence[float]) -> str:
    """What an interval of the ensemble minus another says: better, worse or unclear.

    Where both ends round to 0 in the digits shown, no reader could see a difference.
    """
    if covers_zero(ends) or all(float(metric.number(end)) == 0 for end in ends):
        return "unclear"
    return "better" if ends[0] * metric.direction > 0 else "worse"


def size_text(metric: Metric, value: float, ends: Sequence[float]) -> str:
    """A difference with its interval: +5.0 points; +1.0 to +9.0."""
    shown, low, high = (metric.number(number, signed=True) for number in (value, *ends))
    return f"{shown}{' points' if metric.unit == '%' else ''}; {low} to {high}"
