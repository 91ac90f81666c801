"""Decisions of the lowest expected cost, and what they cost. NumPy only.

Axes: `E` example, `C` choice or class; of a cost matrix `costs_CC`, the first axis is the answer and the second the
truth. Costs are in the user's unit and per row; reported figures are per 1,000 rows.

Source: arXiv 2010.09686 (betting) for the interval of a mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from lorchestra.metrics.predictive import FloatArray, IntArray, check_labels
from lorchestra.types import Json, plain_values

ASK = -1
"""The answer of a row that is left to a person."""

_GRID = 1001
"""Candidate means of the interval; they are no more than this apart: a thousandth of the range of costs."""


@dataclass(frozen=True, slots=True)
class CostDecisions:
    """Decisions of the lowest expected cost.

    `answers` is int64 `[E]`, `ASK` where a person is asked. `expected_costs` is `[E]`, by the probabilities.
    """

    answers: IntArray
    expected_costs: FloatArray

    @property
    def share_asked(self) -> float:
        """Share of rows that are left to a person."""
        return float((self.answers == ASK).mean())

    @property
    def expected_per_1000(self) -> float:
        """Expected cost of 1,000 rows if the probabilities are right."""
        return float(1000 * self.expected_costs.mean())


@dataclass(frozen=True, slots=True)
class RealizedCosts:
    """What decisions cost on labelled rows, per 1,000 rows, with an interval of `confidence`."""

    per_1000: float
    interval: tuple[float, float]
    confidence: float
    share_asked: float
    num_rows: int


def zero_one_costs(num_classes: int, wrong: float = 1.0) -> FloatArray:
    """A matrix `[C, C]` in which every wrong answer costs the same and right ones nothing."""
    return np.asarray(wrong * (1.0 - np.eye(num_classes)))


def check_costs(costs_CC: FloatArray, ask: float, num_classes: int) -> FloatArray:
    """The cost matrix as float64 `[C, C]`.

    Raises:
        ValueError: it is not `[C, C]`, an entry or the cost of asking is negative or not finite, or a right answer
            costs more than a wrong one for the same truth, which suggests that the axes were exchanged.
    """
    costs_CC = np.asarray(costs_CC, dtype=np.float64)
    if costs_CC.shape != (num_classes, num_classes):
        raise ValueError(f"costs have shape {costs_CC.shape}, not {(num_classes, num_classes)} (answer, truth)")
    if (bad := np.argwhere(~np.isfinite(costs_CC) | (costs_CC < 0))).size:
        answer, truth = bad[0]
        raise ValueError(f"the cost of answer {answer} for truth {truth} is {costs_CC[answer, truth]}, not at least 0")
    if (bad := np.argwhere(costs_CC < np.diagonal(costs_CC))).size:
        answer, truth = bad[0]
        raise ValueError(
            f"answer {answer} costs {costs_CC[answer, truth]:g} for truth {truth}, less than the right answer"
            f" ({costs_CC[truth, truth]:g}); rows of the matrix are answers, columns are truths"
        )
    if not (np.isfinite(ask) and ask >= 0):
        raise ValueError(f"the cost of asking a person is {ask}, not at least 0")
    return costs_CC


def decide_by_cost(probs_EC: FloatArray, costs_CC: FloatArray, ask: float) -> CostDecisions:
    """For each row the answer of the lowest expected cost, or `ASK` where asking costs less than every answer.

    Args:
        probs_EC: calibrated probabilities.
        costs_CC: cost of each answer for each truth.
        ask: cost of asking a person, who is taken to be right.

    Raises:
        ValueError: as `check_costs`; the probabilities are not `[E, C]`, do not sum to 1, or there is no row.
    """
    probs_EC = np.asarray(probs_EC, dtype=np.float64)
    if probs_EC.ndim != 2 or not len(probs_EC):
        raise ValueError(f"probabilities have shape {probs_EC.shape}, not [E, C] with at least one row")
    costs_CC = check_costs(costs_CC, ask, probs_EC.shape[1])
    # NaN fails the comparison as well
    if (bad := np.flatnonzero(~((np.abs(probs_EC.sum(axis=1) - 1) < 1e-6) & (probs_EC >= 0).all(axis=1)))).size:
        raise ValueError(f"the probabilities of row {bad[0]} are negative or do not sum to 1")
    costs_EC = probs_EC @ costs_CC.T
    cheapest_E = costs_EC.argmin(axis=1)
    lowest_E = costs_EC[np.arange(len(costs_EC)), cheapest_E]
    return CostDecisions(
        answers=np.where(ask < lowest_E, ASK, cheapest_E).astype(np.int64), expected_costs=np.minimum(lowest_E, ask)
    )


def realized_costs(
    answers_E: IntArray, labels_E: IntArray, costs_CC: FloatArray, ask: float, confidence: float = 0.95
) -> RealizedCosts:
    """What the decisions cost on labelled rows.

    The interval holds for any number of rows, however rare and expensive some errors are: it knows the range of costs
    only. Percentiles of a bootstrap would miss errors that were not observed.

    Raises:
        ValueError: as `check_costs`; lengths differ, an answer or a label is out of range, or there is no row.
    """
    answers_E = np.asarray(answers_E, dtype=np.int64)
    costs_CC = check_costs(costs_CC, ask, len(costs_CC))
    labels_E = check_labels(np.zeros((len(answers_E), len(costs_CC))), labels_E)
    if answers_E.min() < ASK or answers_E.max() >= len(costs_CC):
        raise ValueError(f"an answer is neither {ASK} (ask) nor in 0..{len(costs_CC) - 1}")
    asked_E = answers_E == ASK
    costs_E = np.where(asked_E, ask, costs_CC[np.where(asked_E, 0, answers_E), labels_E])
    low, high = bounded_mean_interval(costs_E, 0.0, max(float(costs_CC.max()), ask), confidence)
    return RealizedCosts(
        per_1000=float(1000 * costs_E.mean()),
        interval=(1000 * low, 1000 * high),
        confidence=confidence,
        share_asked=float(asked_E.mean()),
        num_rows=len(costs_E),
    )


def bounded_mean_interval(
    values_E: FloatArray, lowest: float, highest: float, confidence: float
) -> tuple[float, float]:
    """Interval of the mean of independent values within a known range; valid for every number of rows.

    A gambler bets, row after row, that the mean is above m, another one that it is below; each starts with half of 1.
    If m is the mean, their wealth together is a martingale, so it ever reaches 1 / (1 - confidence) with probability at
    most 1 - confidence (Ville's inequality). The interval holds every m at which it does not. A bet on a row depends on
    the rows before it only: their mean and variance, each with one pseudo-observation.

    Raises:
        ValueError: a value is outside the range, or there is no value.

    Source: arXiv 2010.09686, theorem 3 with the bets of its section 4.4.
    """
    values_E = np.asarray(values_E, dtype=np.float64)
    if not len(values_E):
        raise ValueError("there are no values")
    if not (values_E.min() >= lowest and values_E.max() <= highest):
        raise ValueError(f"a value is outside [{lowest}, {highest}]")
    if highest == lowest:
        return lowest, lowest
    unit_E = (values_E - lowest) / (highest - lowest)
    counts_E = np.arange(1, len(unit_E) + 1)
    means_E = (0.5 + np.cumsum(unit_E)) / (counts_E + 1)
    variances_E = (0.25 + np.cumsum(np.square(unit_E - means_E))) / (counts_E + 1)
    before_E = np.append(0.25, variances_E[:-1])
    bets_E = np.sqrt(2 * np.log(2 / (1 - confidence)) / (len(unit_E) * before_E))
    m_K = np.linspace(0.0, 1.0, _GRID)
    log_up_K, log_down_K = np.zeros(_GRID), np.zeros(_GRID)
    peak_K = np.full(_GRID, -np.inf)
    for value, bet in zip(unit_E.tolist(), bets_E.tolist(), strict=True):
        gap_K = value - m_K
        log_up_K += np.log1p(np.minimum(bet, 0.5 / np.maximum(m_K, 1e-12)) * gap_K)
        log_down_K += np.log1p(-np.minimum(bet, 0.5 / np.maximum(1 - m_K, 1e-12)) * gap_K)
        peak_K = np.maximum(peak_K, np.logaddexp(log_up_K, log_down_K))
    kept = np.flatnonzero(peak_K - np.log(2) < -np.log(1 - confidence))
    mean = float(unit_E.mean())
    # one step of the grid further out: the ends lie between a kept and a dropped candidate
    low = max(0.0, min((float(m_K[kept[0]]) if kept.size else mean) - 1 / (_GRID - 1), mean))
    high = min(1.0, max((float(m_K[kept[-1]]) if kept.size else mean) + 1 / (_GRID - 1), mean))
    return lowest + low * (highest - lowest), lowest + high * (highest - lowest)


@dataclass(frozen=True, slots=True)
class PolicyCost:
    """What a policy costs per 1,000 rows.

    Attributes:
        policy: "by_cost" answers or asks, whichever has the lower expected cost; "by_threshold" asks below the
            threshold; "automate_all" gives the most probable answer to every row; "ask_always" gives none.
        per_1000: measured on the labelled rows.
        interval: of it, at the confidence of the comparison.
        expected_per_1000: by the probabilities.
        share_asked: share of rows that are left to a person.
    """

    policy: str
    per_1000: float
    interval: tuple[float, float]
    expected_per_1000: float
    share_asked: float


@dataclass(frozen=True, slots=True)
class CostComparison:
    """Policies on the same labelled rows, and the costs that they were judged by: `costs[answer][truth]`."""

    labels: tuple[str, ...]
    costs: tuple[tuple[float, ...], ...]
    ask: float
    confidence: float
    policies: tuple[PolicyCost, ...]

    def to_dict(self) -> Json:
        """The fields, as JSON holds them."""
        fields: Json = plain_values(asdict(self))
        return fields

    @classmethod
    def from_dict(cls, values: Json) -> CostComparison:
        """Read what `to_dict` returned."""
        policies = (PolicyCost(**{**one, "interval": tuple(one["interval"])}) for one in values["policies"])
        return cls(
            labels=tuple(values["labels"]),
            costs=tuple(map(tuple, values["costs"])),
            ask=values["ask"],
            confidence=values["confidence"],
            policies=tuple(policies),
        )


def compare_policies(
    probs_EC: FloatArray,
    labels_E: IntArray,
    costs_CC: FloatArray,
    ask: float,
    names: Sequence[str],
    automated_E: NDArray[np.bool_] | None = None,
    confidence: float = 0.95,
) -> CostComparison:
    """What deciding by cost saves against automating all rows, asking always, and a threshold.

    The interval of a threshold that was set on the same rows is a little too narrow; the others have nothing fitted.

    Args:
        probs_EC: calibrated probabilities.
        labels_E: answers.
        costs_CC: cost of each answer for each truth.
        ask: cost of asking a person.
        names: the classes.
        automated_E: rows above the threshold; None without one.
        confidence: of each interval.

    Raises:
        ValueError: as `decide_by_cost` and `realized_costs`.
    """
    decided = decide_by_cost(probs_EC, costs_CC, ask)
    costs_CC = check_costs(costs_CC, ask, probs_EC.shape[1])
    best_E = probs_EC.argmax(axis=1).astype(np.int64)
    answers = {"by_cost": decided.answers}
    if automated_E is not None:
        answers["by_threshold"] = np.where(automated_E, best_E, ASK)
    answers |= {"automate_all": best_E, "ask_always": np.full(len(best_E), ASK)}
    costs_EC = probs_EC @ costs_CC.T
    policies = []
    for policy, answers_E in answers.items():
        asked_E = answers_E == ASK
        expected_E = np.where(asked_E, ask, costs_EC[np.arange(len(answers_E)), np.where(asked_E, 0, answers_E)])
        realized = realized_costs(answers_E, labels_E, costs_CC, ask, confidence)
        expected = float(1000 * expected_E.mean())
        # what a person costs is known
        interval = realized.interval if policy != "ask_always" else (1000 * float(ask), 1000 * float(ask))
        policies.append(PolicyCost(policy, realized.per_1000, interval, expected, realized.share_asked))
    matrix = tuple(map(tuple, costs_CC.tolist()))
    return CostComparison(tuple(names), matrix, float(ask), confidence, tuple(policies))
