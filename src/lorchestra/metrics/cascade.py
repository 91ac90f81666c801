"""A cascade: a cheap stage answers first, then an expensive one, then a person; with one certificate end to end.

A row is answered by the first stage where its score there is at least the first threshold, else by the second stage
where its score there is at least the second, else by a person. The guarantee is on the error among all automated rows,
by whichever stage. The pairs of thresholds are a path from strict to lax that is fixed on reference rows: along it
the second stage admits the rows whose estimated error is at most a tolerance, and the first stage those with at most a
fixed ratio of it. A low ratio leaves more rows to the better stage, a high one to the cheaper; it is chosen on the
reference rows too. The tests are those of `metrics.sequential`; they need no order between the errors, so a poor
estimate of the path costs coverage and not the guarantee.

Two members and then all of them, a small run and then a large one: the same rule. NumPy and SciPy only.

Axes: `E` example, `K` pair of thresholds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

from lorchestra.metrics.binomial import exact_interval, p_value, upper_bound
from lorchestra.metrics.certificates import Certificate, check_enough, check_scored, check_shares, refusal_by_rates
from lorchestra.metrics.predictive import FloatArray
from lorchestra.metrics.sequential import NUM_THRESHOLDS, last_rejected, start_budget

Costs = tuple[float, float, float]
"""Per row: of the first stage, which every row pays; of the second, in addition; of a person, in addition."""

_TILT = 1e-6
"""Slope added to the estimated error, per share of rows, so that rows of equal estimates keep the order of scores."""


RATIOS = (1.0, 0.5, 0.25, 0.1, 0.0)
"""Tolerances of the first stage, relative to the second's; with 0 the first stage answers no row."""

COVERAGE_LOSS = 0.02
"""Share of rows that the choice of the ratio gives up for lower cost."""


@dataclass(frozen=True, slots=True)
class CascadePath:
    """Pairs of thresholds from strict to lax.

    Attributes:
        tolerances: estimated errors that the second stage admits, `[K]`.
        first: thresholds of the first stage, `[K]`, infinite where it answers no row.
        second: thresholds of the second stage, `[K]`, infinite where it answers no row.
        coverage: share of the reference rows that is automated, `[K]`.
        ratio: tolerance of the first stage, relative to the second's.
    """

    tolerances: FloatArray
    first: FloatArray
    second: FloatArray
    coverage: FloatArray
    ratio: float


@dataclass(frozen=True, slots=True)
class CascadeCertificate:
    """A cascade with a guarantee on its errors, or a refusal.

    Attributes:
        certificate: end to end; its `threshold` is the tolerance of the path.
        first_threshold: of the first stage; None if it answers no row.
        second_threshold: of the second stage; None if it answers no row.
        share_first: of the certification rows, answered by the first stage.
        share_second: answered by the second stage.
        mean_cost: per row.
        cost_interval: of it, at the same confidence, for thresholds chosen beforehand.
    """

    certificate: Certificate
    first_threshold: float | None
    second_threshold: float | None
    share_first: float
    share_second: float
    mean_cost: float
    cost_interval: tuple[float, float]

    @property
    def share_person(self) -> float:
        """Share of the certification rows that are left to a person."""
        return 1.0 - self.share_first - self.share_second


def cascade_path(
    first_scores_E: FloatArray,
    first_correct_E: ArrayLike,
    second_scores_E: FloatArray,
    second_correct_E: ArrayLike,
    target_error: float,
    *,
    costs: Costs = (1.0, 1.0, 0.0),
) -> CascadePath:
    """The path of thresholds, from reference rows that both stages answered.

    The error at a score is estimated by isotonic regression in each stage. Of the ratios whose estimated coverage at
    the target is at most `COVERAGE_LOSS` below the best, the cheapest is taken.

    Args:
        first_scores_E: of the reference rows.
        first_correct_E: whether the first stage's answer is right.
        second_scores_E: as the first stage's.
        second_correct_E: as the first stage's.
        target_error: the error that will be certified.
        costs: as in `certify_cascade`.

    Raises:
        ValueError: lengths differ, there is no row, a score or a cost is not finite, or the target is outside (0, 1).
    """
    check_shares(target_error, 0.5)
    _check_stage_costs(costs)
    first_scores_E, first_wrong_E = check_scored(first_scores_E, first_correct_E)
    second_scores_E, second_wrong_E = check_scored(second_scores_E, second_correct_E)
    _check_same(first_scores_E, second_scores_E)
    first_error_E = _estimated_error(first_scores_E, first_wrong_E)
    second_error_E = _estimated_error(second_scores_E, second_wrong_E)
    estimates = [_at_target(first_error_E, second_error_E, ratio, target_error, costs) for ratio in RATIOS]
    best = max(coverage for coverage, _ in estimates)
    able = [index for index, (coverage, _) in enumerate(estimates) if coverage >= best - COVERAGE_LOSS]
    ratio = RATIOS[min(able, key=lambda index: estimates[index][1])]
    admitted_E = np.sort(_admitted_from(first_error_E, second_error_E, ratio))
    ranks = np.ceil(np.arange(1, NUM_THRESHOLDS + 1) * len(admitted_E) / NUM_THRESHOLDS - 1e-9).astype(np.int64)
    tolerances_K = np.unique(admitted_E[ranks - 1])
    return CascadePath(
        tolerances=tolerances_K,
        first=_thresholds(first_scores_E, first_error_E, ratio * tolerances_K),
        second=_thresholds(second_scores_E, second_error_E, tolerances_K),
        coverage=np.searchsorted(admitted_E, tolerances_K, side="right") / len(admitted_E),
        ratio=ratio,
    )


def certify_cascade(
    path: CascadePath,
    first_scores_E: FloatArray,
    first_correct_E: ArrayLike,
    second_scores_E: FloatArray,
    second_correct_E: ArrayLike,
    target_error: float,
    confidence: float = 0.95,
    *,
    costs: Costs = (1.0, 1.0, 0.0),
) -> CascadeCertificate:
    """The laxest pair of thresholds on the path whose end-to-end error is certified to be at most the target.

    Args:
        path: from `cascade_path` on other rows.
        first_scores_E: of the certification rows, which both stages answer.
        first_correct_E: whether the first stage's answer is right.
        second_scores_E: as the first stage's.
        second_correct_E: as the first stage's.
        target_error: highest error rate among automated rows, in (0, 1).
        confidence: probability of the guarantee, in (0, 1).
        costs: see `Costs`.

    Raises:
        ValueError: as `certify`; a cost is negative or not finite.
    """
    check_shares(target_error, confidence)
    first_scores_E, first_wrong_E = check_scored(first_scores_E, first_correct_E)
    second_scores_E, second_wrong_E = check_scored(second_scores_E, second_correct_E)
    _check_same(first_scores_E, second_scores_E)
    _check_stage_costs(costs)
    num_rows = len(first_scores_E)
    check_enough(num_rows, target_error, confidence)
    by_first_KE = first_scores_E >= path.first[:, None]
    by_second_KE = ~by_first_KE & (second_scores_E >= path.second[:, None])
    automated_K = (by_first_KE | by_second_KE).sum(axis=1)
    errors_K = (by_first_KE & first_wrong_E).sum(axis=1) + (by_second_KE & second_wrong_E).sum(axis=1)
    budget_K = start_budget(path.coverage, num_rows, target_error, 1 - confidence)
    index = last_rejected(p_value(errors_K, automated_K, target_error), budget_K)
    if index is None:
        starts = budget_K > 0
        refusal = refusal_by_rates(errors_K[starts], automated_K[starts], num_rows, target_error, confidence)
        nothing_E = np.zeros(num_rows, dtype=np.bool_)
        return _result(refusal, math.inf, math.inf, nothing_E, nothing_E, costs)
    automated, errors = int(automated_K[index]), int(errors_K[index])
    certificate = Certificate(
        threshold=float(path.tolerances[index]),
        coverage=automated / num_rows,
        coverage_interval=exact_interval(automated, num_rows, confidence),
        error_bound=upper_bound(errors, automated, confidence),
        errors=errors,
        num_automated=automated,
        num_rows=num_rows,
        target_error=target_error,
        confidence=confidence,
    )
    first, second = float(path.first[index]), float(path.second[index])
    return _result(certificate, first, second, by_first_KE[index], by_second_KE[index], costs)


def _result(
    certificate: Certificate,
    first: float,
    second: float,
    by_first_E: NDArray[np.bool_],
    by_second_E: NDArray[np.bool_],
    costs: Costs,
) -> CascadeCertificate:
    num_rows = len(by_first_E)
    beyond_first = num_rows - int(by_first_E.sum())
    asked = beyond_first - int(by_second_E.sum())
    # two exact intervals, each at half of the error probability
    half = (1 + certificate.confidence) / 2
    ends = zip(exact_interval(beyond_first, num_rows, half), exact_interval(asked, num_rows, half), strict=True)
    low, high = (costs[0] + costs[1] * beyond + costs[2] * person for beyond, person in ends)
    return CascadeCertificate(
        certificate=certificate,
        first_threshold=first if math.isfinite(first) else None,
        second_threshold=second if math.isfinite(second) else None,
        share_first=1 - beyond_first / num_rows,
        share_second=(beyond_first - asked) / num_rows,
        mean_cost=costs[0] + (costs[1] * beyond_first + costs[2] * asked) / num_rows,
        cost_interval=(low, high),
    )


def _admitted_from(first_error_E: FloatArray, second_error_E: FloatArray, ratio: float) -> FloatArray:
    """The tolerance from which each row is automated, `[E]`."""
    return np.minimum(first_error_E / ratio, second_error_E) if ratio > 0 else second_error_E


def _at_target(
    first_error_E: FloatArray, second_error_E: FloatArray, ratio: float, target_error: float, costs: Costs
) -> tuple[float, float]:
    """Coverage and mean cost at the largest tolerance whose estimated end-to-end error is at most the target."""
    best = (0.0, sum(costs))
    admitted_E = _admitted_from(first_error_E, second_error_E, ratio)
    for tolerance in np.quantile(admitted_E, np.linspace(0, 1, NUM_THRESHOLDS + 1), method="lower"):
        by_first_E = first_error_E <= ratio * tolerance
        automated_E = by_first_E | (second_error_E <= tolerance)
        if np.where(by_first_E, first_error_E, second_error_E)[automated_E].mean() <= target_error:
            asked = 1 - float(automated_E.mean())
            best = (1 - asked, costs[0] + costs[1] * (1 - float(by_first_E.mean())) + costs[2] * asked)
    return best


def _estimated_error(scores_E: FloatArray, wrong_E: ArrayLike) -> FloatArray:
    """Estimated error of each row, `[E]`; it falls strictly with the score.

    Isotonic regression, linear between the centers of its blocks: with its steps alone the path would have few pairs.
    A block counts half an error and half a right answer more than it has, so that a short run of right answers at the
    top of a poor stage does not pass for certainty.
    """
    _, index_E, counts = np.unique(-scores_E, return_inverse=True, return_counts=True)
    rates = np.bincount(index_E, weights=np.asarray(wrong_E, dtype=np.float64)) / counts
    fitted = optimize.isotonic_regression(rates, weights=counts)
    starts, ranks = fitted.blocks[:-1], np.cumsum(counts) - (counts - 1) / 2
    sizes = np.add.reduceat(counts, starts)
    centers = np.add.reduceat(ranks * counts, starts) / sizes
    cautious = optimize.isotonic_regression((fitted.x[starts] * sizes + 0.5) / (sizes + 1), weights=sizes).x
    smooth = np.interp(ranks, centers, cautious) + _TILT * ranks / len(scores_E)
    return np.asarray(smooth[index_E])


def _thresholds(scores_E: FloatArray, errors_E: FloatArray, tolerances_K: FloatArray) -> FloatArray:
    """The lowest threshold of a stage whose rows all have an estimated error within each tolerance, `[K]`."""
    descending = np.unique(scores_E)[::-1]
    lowest = descending[-1] - 1e-9 * max(1.0, abs(float(descending[-1])))
    # halfway to the next lower score, as in `threshold_sequence`
    halfway = np.append((descending[:-1] + descending[1:]) / 2, lowest)
    admitted_K = np.searchsorted(np.unique(errors_E), tolerances_K, side="right")
    return np.asarray(np.append(np.inf, halfway)[admitted_K])


def _check_same(first_scores_E: FloatArray, second_scores_E: FloatArray) -> None:
    if len(first_scores_E) != len(second_scores_E):
        raise ValueError(f"the first stage has {len(first_scores_E)} rows and the second {len(second_scores_E)}")


def _check_stage_costs(costs: Costs) -> None:
    if len(costs) != 3 or not all(math.isfinite(cost) and cost >= 0 for cost in costs):
        raise ValueError(f"costs are {costs}, not three numbers of at least 0")
