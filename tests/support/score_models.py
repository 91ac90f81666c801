"""Populations of scored answers whose true error above any threshold is known, for tests of certificates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorchestra.metrics.binomial import upper_bounds

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Population:
    """Scores in [0, 1] with an error rate each: a grid of `values` with their probabilities and errors.

    A smooth population has many values, so that ties are rare. True rates are sums over the grid.
    """

    values: FloatArray
    probs: FloatArray
    errors: FloatArray

    def draw(self, generator: np.random.Generator, num_rows: int) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Scores and which answers are wrong."""
        index = np.searchsorted(np.cumsum(self.probs), generator.random(num_rows) * self.probs.sum(), side="right")
        index = np.minimum(index, len(self.values) - 1)
        return self.values[index], generator.random(num_rows) < self.errors[index]

    def coverage(self, threshold: float) -> float:
        """Probability of a score of at least the threshold."""
        return float(self.probs[self.values >= threshold].sum())

    def wrong(self, threshold: float) -> float:
        """Probability of such a score with a wrong answer."""
        above = self.values >= threshold
        return float((self.probs * self.errors)[above].sum())

    def error(self, threshold: float) -> float:
        """Error rate among such scores."""
        return self.wrong(threshold) / self.coverage(threshold)

    def oracle(self, target: float) -> float:
        """The largest coverage of a threshold whose true error is at most the target; 0 if none is."""
        covered = np.cumsum(self.probs[::-1])
        rates = np.cumsum((self.probs * self.errors)[::-1]) / covered
        return float(covered[rates <= target].max(initial=0.0))

    def testable(self, target: float, num_rows: int, confidence: float) -> float:
        """The largest coverage at which one exact test of a known threshold passes with its expected errors."""
        covered = np.cumsum(self.probs[::-1])
        wrong = np.cumsum((self.probs * self.errors)[::-1])
        passes = upper_bounds(num_rows * wrong, num_rows * covered, confidence) <= target
        return float(covered[passes].max(initial=0.0))


def smooth(top: float, power: float, floor: float = 0.0) -> Population:
    """Uniform scores s with error floor + top (1 - s)^power."""
    values = (np.arange(20_000) + 0.5) / 20_000
    return Population(values, np.full(20_000, 1 / 20_000), floor + top * (1 - values) ** power)


def bumpy() -> Population:
    """Uniform scores whose most confident answers are the worst: the error is not monotone."""
    base = smooth(0.0, 1.0)
    errors = np.where(base.values > 0.93, 0.12, np.where(base.values > 0.35, 0.02, 0.25))
    return Population(base.values, base.probs, errors)


def tied(top: float, power: float, levels: int) -> Population:
    """Scores rounded to a few levels."""
    values = np.arange(1, levels + 1) / levels
    return Population(values, np.full(levels, 1 / levels), top * (1 - values) ** power)


def discrete() -> Population:
    """Shares of five agreeing members; the second level is barely too bad."""
    errors = np.array([0.6, 0.5, 0.35, 0.135, 0.03])
    return Population(np.arange(1, 6) / 5, np.array([0.02, 0.08, 0.15, 0.2, 0.55]), errors)


def saturated(error: float) -> Population:
    """Six of ten scores are exactly 1, the others uniform."""
    base = smooth(0.5, 1.0)
    return Population(np.append(base.values, 1.0), np.append(0.4 * base.probs, 0.6), np.append(base.errors, error))


def certain(error: float) -> Population:
    """All scores are exactly 1."""
    return Population(np.ones(1), np.ones(1), np.array([error]))
