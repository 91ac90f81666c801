"""Early exit: when a row needs no more members. Pure NumPy functions of log-probabilities; axes as in `predictive`.

The members answer one after the other, each row by the first k of M. `ExitRule` decides for which rows k are enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lorchestra.errors import ConfigError
from lorchestra.metrics.calibrator import Calibrates, Calibration, pooled
from lorchestra.metrics.predictive import TIE, FloatArray, IntArray, mixture_log_probs
from lorchestra.metrics.result import EarlyExitScores
from lorchestra.metrics.scores import all_metrics
from lorchestra.types import EarlyExitPredictions, Json, Predictions, plain_values

ROUNDING = 1e-9
"""A mean lead must exceed the bound by this much: far more than the rounding of a mean over 10,000 members."""


class StopRule(Protocol):
    """When a row needs no more members: `ExitRule`, or the stages of a cascade."""

    def first_stop(self, num_members: int) -> int:
        """The least number of members after which a row can stop."""

    def next_stop(self, num_seen: int, num_members: int) -> int:
        """The next number of members, after `num_seen`, after which a row can stop."""

    def is_decided(self, log_probs_MEC: FloatArray, num_members: int) -> NDArray[np.bool_]:
        """Which rows need no further members, bool `[E]`; all of them once `num_members` have answered."""


@dataclass(frozen=True, slots=True)
class ExitRule:
    """When a row stops: once its answer is decided, or once it is confident enough.

    `confidence` None is the exact rule. k of M members have answered; s_c is the sum of their probabilities of choice
    c, and a the choice with the largest sum. The row stops if s_a - s_c > M - k for every other choice c.

    - The answer is then that of all members. Each further member adds p_a to s_a and p_c to s_c, both in [0, 1], so it
      reduces s_a - s_c by at most 1. After M - k of them s_a - s_c > 0 for every c: a is the argmax of the full sums,
      and so of the mean.
    - No smaller lead decides. If s_a - s_c < M - k for some c, and all further members give c probability 1, then c
      ends above a. At s_a - s_c = M - k the same members end in a tie; such a row continues, and the argmax over all
      members decides, the first of equals as usual.

    A lead is at most k, so no row stops before k > M / 2.

    With `confidence`, in (0, 1], the row stops once the mean s_a / k reaches it and two members have answered. The
    answer need not be that of all members.

    Both rules look at the members' probabilities as they are. A calibration is applied to the mixture of the members
    that answered; one that keeps the most probable choice keeps the exact rule exact.
    """

    confidence: float | None = None

    @classmethod
    def parse(cls, value: str | float, name: str = "--early-exit") -> ExitRule:
        """The rule named by "exact" or a confidence; `name` is that of the setting, for the error.

        Raises:
            ConfigError: neither of the two.
        """
        if value == "exact":
            return cls()
        try:
            confidence = float(value)
        except ValueError:
            confidence = math.nan
        if not 0 < confidence <= 1:
            raise ConfigError(f"{name}: {value} is neither exact nor a confidence in (0, 1]")
        return cls(confidence)

    def __str__(self) -> str:
        """The rule as `parse` reads it."""
        return "exact" if self.confidence is None else f"{self.confidence:g}"

    def check_calibration(self, calibration: Calibration) -> None:
        """Refuse a calibration after which the answer of a row that stopped could differ from that of all members.

        Raises:
            ConfigError: the rule is exact, and the calibration may change predictions.
        """
        if self.confidence is None and not calibration.keeps_predictions:
            raise ConfigError(
                "--early-exit exact: the run is calibrated by vector scaling, after which another answer than the"
                " members' may win, so nothing is decided before the last member; answer with the mixture as it is"
                " (--raw), or give a confidence"
            )

    def first_stop(self, num_members: int) -> int:
        """The least number of members after which a row can stop."""
        return num_members // 2 + 1 if self.confidence is None else min(2, num_members)

    def next_stop(self, num_seen: int, num_members: int) -> int:
        """One more member."""
        return min(num_seen + 1, num_members)

    def is_decided(self, log_probs_MEC: FloatArray, num_members: int) -> NDArray[np.bool_]:
        """Which rows need no further members, bool `[E]`.

        Args:
            log_probs_MEC: log-probabilities of the members seen so far, -inf past a row's number of choices.
            num_members: number of all members.
        """
        num_seen = len(log_probs_MEC)
        if num_seen < self.first_stop(num_members):
            return np.zeros(log_probs_MEC.shape[1], dtype=np.bool_)
        if num_seen == num_members:
            return np.ones(log_probs_MEC.shape[1], dtype=np.bool_)
        sums_EC = np.exp(log_probs_MEC).sum(axis=0)
        if self.confidence is not None:
            return np.asarray(sums_EC.max(axis=1) / num_seen >= self.confidence - TIE)
        # a choice of probability 0 is added, so that rows with a single choice have a second one
        second_E, first_E = np.sort(np.pad(sums_EC, ((0, 0), (1, 0))), axis=1)[:, -2:].T
        return np.asarray(first_E - second_E > num_members - num_seen + ROUNDING * num_members)

    def members_used(self, log_probs_MEC: FloatArray) -> IntArray:
        """The number of members that each row needs, int64 `[E]`, from the answers of all."""
        num_members, num_examples, _ = log_probs_MEC.shape
        used_E = np.full(num_examples, num_members, dtype=np.int64)
        for num_seen in range(num_members - 1, self.first_stop(num_members) - 1, -1):
            used_E[self.is_decided(log_probs_MEC[:num_seen], num_members)] = num_seen
        return used_E


def early_log_probs(log_probs_MEC: FloatArray, used_E: IntArray) -> FloatArray:
    """The mixture of each row's first `used_E` members, `[E, C]`."""
    mixtures_EC = np.empty(log_probs_MEC.shape[1:])
    for num_used in np.unique(used_E):
        rows = used_E == num_used
        mixtures_EC[rows] = mixture_log_probs(log_probs_MEC[:num_used, rows])
    return mixtures_EC


def first_members(predictions: Predictions, used_E: IntArray) -> EarlyExitPredictions:
    """Predictions of all members as those of each row's first `used_E` members."""
    parts, indices = [], []
    for num_used in np.unique(used_E):
        rows = np.flatnonzero(used_E == num_used)
        part = predictions.of_rows(rows)
        parts.append(replace(part, log_probs_MEC=part.log_probs_MEC[:num_used]))
        indices.append(rows)
    return EarlyExitPredictions(tuple(parts), tuple(indices), predictions.num_members)


def evaluate_early_exit(
    log_probs_MEC: FloatArray, labels_E: IntArray, rule: ExitRule, calibration: Calibrates | None = None
) -> Json:
    """What stopping early would have saved and changed, from the answers of all members; JSON of `EarlyExitScores`.

    Args:
        log_probs_MEC: of all members.
        labels_E: answers.
        rule: when a row stops.
        calibration: of the mixtures, after the rule; without one they stay as they are.

    Raises:
        ValueError: a label is unknown (-1) or out of range, or there is no row.
    """
    used_E = rule.members_used(log_probs_MEC)
    early_EC = early_log_probs(log_probs_MEC, used_E)
    if calibration is not None:
        early_EC = calibration.apply(early_EC)
    agrees_E = early_EC.argmax(axis=1) == pooled(log_probs_MEC, calibration).argmax(axis=1)
    return EarlyExitScores(
        rule=str(rule),
        metrics=plain_values(all_metrics(early_EC, labels_E)),
        mean_members=float(used_E.mean()),
        histogram=np.bincount(used_E, minlength=len(log_probs_MEC) + 1)[1:].tolist(),
        agreement=float(agrees_E.mean()),
    ).to_dict()
