"""Thresholds with a guarantee on the error of automated rows. NumPy and SciPy only.

A row is automated where its score is at least the threshold. A certificate states: with probability `confidence` over
the draw of the certification rows, the error rate among automated rows of the same kind is at most the target.

How it is computed and why it holds: `metrics.sequential`. The threshold must be used with the same scores. Nothing is
claimed about rows of another kind, nor about any single row.

Axes: `E` example, `K` threshold, `C` class.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lorchestra.metrics.binomial import exact_interval, fewest_rows, p_value, rows_for_rate, upper_bound
from lorchestra.metrics.predictive import FloatArray, IntArray, tie_groups
from lorchestra.metrics.sequential import (
    ThresholdSequence,
    check_reference,
    fixed_sequence,
    last_rejected,
    threshold_sequence,
    total_needed,
)
from lorchestra.types import Json, plain_values


@dataclass(frozen=True, slots=True)
class Certificate:
    """A threshold with its guarantee, or a refusal with its `reason`.

    Attributes:
        threshold: rows with a score of at least this are automated; None if refused.
        coverage: share of the certification rows that are automated; 0 if refused.
        coverage_interval: Clopper-Pearson's of it, at `confidence`; None if refused.
        error_bound: Clopper-Pearson's upper bound of the error at this threshold; at most `target_error`. The guarantee
            is the target: the bound is that of a threshold chosen beforehand. None if refused.
        errors: wrong ones among the automated certification rows.
        num_automated: automated certification rows.
        num_rows: all certification rows.
        target_error: the error rate that is guaranteed.
        confidence: probability of the guarantee; of several certificates made together, of all of them at once.
        error_of: "automated" for the share of wrong rows among automated ones; "all" for the share of all rows that are
            automated and wrong.
        reason: why there is no threshold.
        rows_needed: how many more labelled rows would do at the present error rate, in about half of all draws; None
            where no number would, or with a threshold.
    """

    threshold: float | None
    coverage: float
    coverage_interval: tuple[float, float] | None
    error_bound: float | None
    errors: int
    num_automated: int
    num_rows: int
    target_error: float
    confidence: float
    error_of: Literal["automated", "all"] = "automated"
    reason: str | None = None
    rows_needed: int | None = None

    def to_dict(self) -> Json:
        """The fields, as JSON holds them."""
        fields: Json = plain_values(asdict(self))
        return fields

    @classmethod
    def from_dict(cls, values: Json) -> Certificate:
        """Read what `to_dict` returned."""
        interval = values["coverage_interval"]
        return cls(**{**values, "coverage_interval": None if interval is None else tuple(interval)})


@dataclass(frozen=True, slots=True)
class ClassCertificates:
    """One certificate per predicted class; all of them hold together with the given confidence.

    `thresholds` has one entry per class, infinite where the class is refused: its rows are never automated.
    `num_tested` counts the classes that share the error budget.
    """

    certificates: tuple[Certificate, ...]
    num_tested: int

    @property
    def thresholds(self) -> FloatArray:
        """Threshold of each class, `[C]`, infinite where there is none."""
        return np.array([math.inf if one.threshold is None else one.threshold for one in self.certificates])


def certify(
    scores_E: FloatArray,
    correct_E: ArrayLike,
    target_error: float,
    confidence: float = 0.95,
    *,
    reference_scores_E: FloatArray | None = None,
) -> Certificate:
    """The lowest threshold whose error rate among automated rows is certified to be at most the target.

    Args:
        scores_E: scores of the certification rows; higher means more confident.
        correct_E: whether each answer is right.
        target_error: highest error rate among automated rows, in (0, 1).
        confidence: probability of the guarantee, in (0, 1).
        reference_scores_E: scores of other rows of the same kind, without labels; they determine which thresholds are
            tested. Nothing below the lowest of them is automated. Without them the thresholds are
            `FIXED_THRESHOLDS`, scores have to be in [0, 1], and the result is somewhat looser.

    Raises:
        ValueError: target or confidence is outside (0, 1), lengths differ, a score is not finite, or there are fewer
            rows than could ever certify.
    """
    scores_E, wrong_E = check_scored(scores_E, correct_E)
    check_shares(target_error, confidence)
    check_enough(len(scores_E), target_error, confidence)
    if reference_scores_E is None:
        sequence = fixed_sequence(scores_E, 1 - confidence)
    else:
        sequence = threshold_sequence(reference_scores_E, len(scores_E), target_error, 1 - confidence)
    return _certificate(scores_E, wrong_E, sequence, target_error, confidence)


def certify_by_class(
    scores_E: FloatArray,
    correct_E: ArrayLike,
    predicted_E: IntArray,
    num_classes: int,
    target_error: float,
    confidence: float = 0.95,
    *,
    reference_scores_E: FloatArray,
    reference_predicted_E: IntArray,
) -> ClassCertificates:
    """One threshold per predicted class; with probability `confidence` all of their guarantees hold.

    The error budget is divided equally (Bonferroni) among the classes that could pass with their number of rows. Given
    how many rows are predicted as each class, the rows of a class are independent draws, so a choice of classes by
    these numbers costs nothing.

    Args:
        scores_E: as in `certify`.
        correct_E: as in `certify`.
        predicted_E: class that is predicted for each row, 0..num_classes-1.
        num_classes: C.
        target_error: as in `certify`, for each class.
        confidence: of all guarantees together.
        reference_scores_E: as in `certify`.
        reference_predicted_E: the classes predicted for them; a class without reference rows takes the scores of all.

    Raises:
        ValueError: as `certify`; a class is out of range.
    """
    scores_E, wrong_E = check_scored(scores_E, correct_E)
    check_shares(target_error, confidence)
    check_enough(len(scores_E), target_error, confidence)
    predicted_E = _check_classes(predicted_E, len(scores_E), num_classes)
    reference_scores_E = check_reference(reference_scores_E)
    reference_predicted_E = _check_classes(reference_predicted_E, len(reference_scores_E), num_classes)
    rows_C = np.bincount(predicted_E, minlength=num_classes)
    tested = _classes_to_test(rows_C, target_error, 1 - confidence)
    level = (1 - confidence) / max(len(tested), 1)
    certificates = []
    for index in range(num_classes):
        rows = predicted_E == index
        if index not in tested:
            shared = (1 - confidence) / (len(tested) + 1)
            certificates.append(_too_few(wrong_E[rows], target_error, shared, confidence))
            continue
        reference = reference_scores_E[reference_predicted_E == index]
        sequence = threshold_sequence(
            reference if len(reference) else reference_scores_E, int(rows_C[index]), target_error, level
        )
        one = _certificate(scores_E[rows], wrong_E[rows], sequence, target_error, 1 - level)
        certificates.append(replace(one, confidence=confidence))
    return ClassCertificates(tuple(certificates), len(tested))


def certify_max_errors(
    scores_E: FloatArray, correct_E: ArrayLike, max_errors_per_1000: float, confidence: float = 0.95
) -> Certificate:
    """The lowest threshold with at most so many automated errors per 1,000 rows, counted over *all* rows.

    The share of rows that are automated and wrong can only grow as the threshold falls. So every score of the
    certification rows may be tried, without reference rows and without a correction: going from strict to lax, the
    first threshold whose true share is not below the limit is wrongly passed with probability at most 1 - confidence,
    and no laxer one is reached without it.

    Raises:
        ValueError: the limit is outside (0, 1000), or as `certify`.

    Source: arXiv 2101.02703 (risk-controlling prediction sets) for risks that are monotone.
    """
    scores_E, wrong_E = check_scored(scores_E, correct_E)
    if not 0 < max_errors_per_1000 < 1000:
        raise ValueError(f"max_errors_per_1000 is {max_errors_per_1000}, not in (0, 1000)")
    rate, num_rows = max_errors_per_1000 / 1000, len(scores_E)
    check_shares(rate, confidence)
    check_enough(num_rows, rate, confidence)
    order_E, starts_G = tie_groups(scores_E)
    errors_G = np.cumsum(np.add.reduceat(wrong_E[order_E].astype(np.int64), starts_G))
    passed_G = p_value(errors_G, num_rows, rate) <= 1 - confidence
    group = int(np.argmin(passed_G)) - 1 if not passed_G.all() else len(starts_G) - 1
    if group < 0:
        share = float(errors_G[0]) / num_rows
        total = float(rows_for_rate(share, rate, 1 - confidence))
        reason = (
            f"{errors_G[0]} of {num_rows} rows have the highest score and are wrong: {1000 * share:.3g} per 1,000 for a"
            f" limit of {max_errors_per_1000:g}"
        )
        needed = None if math.isinf(total) else max(int(total) - num_rows, 1)
        return _refusal(num_rows, rate, confidence, reason, needed, "all")
    ends_G = np.append(starts_G[1:], num_rows)
    threshold = float(scores_E[order_E[ends_G[group] - 1]])
    automated, errors = int(ends_G[group]), int(errors_G[group])
    bound = upper_bound(errors, num_rows, confidence)
    return _granted(threshold, automated, errors, num_rows, bound, rate, confidence, "all")


def check_scored(scores_E: FloatArray, correct_E: ArrayLike) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Scores as float64 `[E]`, and which rows are wrong, `[E]`.

    Raises:
        ValueError: lengths differ, there is no row, a score is not finite, or a correctness is neither 0 nor 1.
    """
    scores_E, correct_E = np.asarray(scores_E, dtype=np.float64), np.asarray(correct_E)
    if scores_E.ndim != 1 or scores_E.shape != correct_E.shape:
        raise ValueError(f"scores have shape {scores_E.shape} and correctness {correct_E.shape}, not [E] both")
    if not len(scores_E):
        raise ValueError("there are no rows")
    if (bad := np.flatnonzero(~np.isfinite(scores_E))).size:
        raise ValueError(f"the score of row {bad[0]} is {scores_E[bad[0]]}, not a finite number")
    if (bad := np.flatnonzero((correct_E != 0) & (correct_E != 1))).size:
        raise ValueError(f"the correctness of row {bad[0]} is {correct_E[bad[0]]}, neither right (1) nor wrong (0)")
    return scores_E, np.asarray(correct_E == 0)


def check_shares(target_error: float, confidence: float) -> None:
    """Raise ValueError if one of the two is outside (0, 1)."""
    for name, value in (("target_error", target_error), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"{name} is {value}, not in (0, 1)")


def check_enough(num_rows: int, target_error: float, confidence: float) -> None:
    """Raise ValueError if not even rows that are all right could certify the target; the message says how many can."""
    fewest = fewest_rows(target_error, 1 - confidence)
    if num_rows < fewest:
        raise ValueError(
            f"{_rows(num_rows)} can never certify an error of at most {target_error:.4g} with confidence"
            f" {confidence:.4g}: at least {fewest} are needed, and more where one is wrong"
        )


def refusal_by_rates(
    errors_K: IntArray, automated_K: IntArray, num_rows: int, target_error: float, confidence: float
) -> Certificate:
    """A refusal, with how many more rows would pass one of the starts at its present error rate.

    Args:
        errors_K: wrong ones among the automated rows of each start.
        automated_K: their automated rows.
        num_rows: all certification rows.
        target_error: as in `certify`.
        confidence: as in `certify`.
    """
    errors_K, automated_K = errors_K[automated_K > 0], automated_K[automated_K > 0]
    needed = None
    if not len(errors_K):
        reason = "no certification row has a score as high as the reference rows that the thresholds come from"
        return _refusal(num_rows, target_error, confidence, reason, None)
    rates_K = errors_K / automated_K
    best = int(np.argmin(rates_K))
    lowest = f"{errors_K[best]} of {automated_K[best]} automated rows are wrong at the best threshold tested"
    total = total_needed(rates_K, automated_K / num_rows, target_error, 1 - confidence)
    if rates_K[best] >= target_error:
        reason = f"{lowest}, which is not below the target: not more rows but a better score or model is needed"
    elif math.isinf(total):
        reason = f"{lowest}, which is too close to the target for any number of rows"
    else:
        needed = max(int(total) - num_rows, 1)
        reason = f"too few rows: at the present error rate about {needed} more labelled rows are needed"
    return _refusal(num_rows, target_error, confidence, reason, needed)


def _certificate(
    scores_E: FloatArray,
    wrong_E: NDArray[np.bool_],
    sequence: ThresholdSequence,
    target_error: float,
    confidence: float,
) -> Certificate:
    num_rows, num_thresholds = len(scores_E), len(sequence.thresholds)
    # index of the strictest threshold that automates the row
    first_E = np.searchsorted(-sequence.thresholds, -scores_E)
    automated_K = np.bincount(first_E, minlength=num_thresholds + 1)[:num_thresholds].cumsum()
    errors_K = np.bincount(first_E[wrong_E], minlength=num_thresholds + 1)[:num_thresholds].cumsum()
    index = last_rejected(p_value(errors_K, automated_K, target_error), sequence.budget)
    if index is None:
        starts = sequence.budget > 0
        return refusal_by_rates(errors_K[starts], automated_K[starts], num_rows, target_error, confidence)
    automated, errors = int(automated_K[index]), int(errors_K[index])
    threshold, bound = float(sequence.thresholds[index]), upper_bound(errors, automated, confidence)
    return _granted(threshold, automated, errors, num_rows, bound, target_error, confidence)


def _classes_to_test(rows_C: IntArray, target_error: float, level: float) -> set[int]:
    """The most classes that can all pass if they share the budget equally: those with the most rows."""
    order_C = np.argsort(-rows_C, kind="stable")
    able = [
        number
        for number in range(1, len(rows_C) + 1)
        if rows_C[order_C[number - 1]] >= fewest_rows(target_error, level / number)
    ]
    return set(order_C[: max(able, default=0)].tolist())


def _too_few(wrong_E: NDArray[np.bool_], target_error: float, level: float, confidence: float) -> Certificate:
    """The refusal of a class with fewer rows than could ever pass."""
    num_rows, errors, fewest = len(wrong_E), int(wrong_E.sum()), fewest_rows(target_error, level)
    reason = f"{_rows(num_rows)} predicted as this class; at least {fewest} are needed, and more where one is wrong"
    if exact_interval(errors, num_rows, confidence)[0] > target_error:
        reason = f"{errors} of {_rows(num_rows)} predicted as this class are wrong: too many for any number of rows"
        return _refusal(num_rows, target_error, confidence, reason, None)
    total = float(rows_for_rate(errors / max(num_rows, 1), target_error, level))
    needed = max(fewest if math.isinf(total) else int(total), fewest) - num_rows
    return _refusal(num_rows, target_error, confidence, reason, max(needed, 1))


def _granted(
    threshold: float,
    num_automated: int,
    errors: int,
    num_rows: int,
    error_bound: float,
    target_error: float,
    confidence: float,
    error_of: Literal["automated", "all"] = "automated",
) -> Certificate:
    return Certificate(
        threshold=threshold,
        coverage=num_automated / num_rows,
        coverage_interval=exact_interval(num_automated, num_rows, confidence),
        error_bound=error_bound,
        errors=errors,
        num_automated=num_automated,
        num_rows=num_rows,
        target_error=target_error,
        confidence=confidence,
        error_of=error_of,
    )


def _refusal(
    num_rows: int,
    target_error: float,
    confidence: float,
    reason: str,
    rows_needed: int | None,
    error_of: Literal["automated", "all"] = "automated",
) -> Certificate:
    return Certificate(None, 0.0, None, None, 0, 0, num_rows, target_error, confidence, error_of, reason, rows_needed)


def _check_classes(predicted_E: IntArray, num_rows: int, num_classes: int) -> IntArray:
    predicted_E = np.asarray(predicted_E)
    if predicted_E.shape != (num_rows,):
        raise ValueError(f"predicted classes have shape {predicted_E.shape} for {_rows(num_rows)}")
    if num_rows and not (predicted_E.min() >= 0 and predicted_E.max() < num_classes):
        raise ValueError(f"a predicted class is outside 0..{num_classes - 1}")
    return predicted_E.astype(np.int64)


def _rows(number: int) -> str:
    return "one row" if number == 1 else f"{number} rows"
