"""What a ranking by confidence is worth: shares of rows that can be automated, and the area under its curve.

Rows are answered from the most confident on; the others go to a person. Rows of equal score are answered together.
Every function works on resamples that hold row e `counts_RE[r, e]` times, as in `scores.resampled_metrics`.

Axes: `E` example, `R` resample, `G` group of equal score.

Source: Geifman, Uziel and El-Yaniv, arXiv 1805.08206, for the excess over the ideal order (E-AURC).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lorchestra.metrics.predictive import FloatArray, tie_groups
from lorchestra.metrics.table import AUTOMATED

CONFIDENT = 0.9
"""A wrong answer of at least this probability is a confident error."""

_ROUNDING = 1e-9
"""Rows; 5 % of 20 rows are one error, whatever the product rounds to."""


@dataclass(frozen=True, slots=True)
class _Groups:
    """Rows, and errors, of each group of equal score, most confident first; both `[R, G]`."""

    size_RG: FloatArray
    errors_RG: FloatArray

    @classmethod
    def of(cls, scores_E: FloatArray, correct_E: FloatArray, counts_RE: FloatArray) -> _Groups:
        order_E, starts_G = tie_groups(scores_E)
        sorted_RE = counts_RE[:, order_E]
        size_RG = np.add.reduceat(sorted_RE, starts_G, axis=1)
        errors_RG = np.add.reduceat(sorted_RE * (1.0 - correct_E[order_E]), starts_G, axis=1)
        return cls(size_RG, errors_RG)


def selective_metrics(confidence_E: FloatArray, correct_E: FloatArray, counts_RE: FloatArray) -> dict[str, FloatArray]:
    """The metrics of a ranking by confidence by key, each `[R]`: shares automated, AURC and its excess."""
    groups = _Groups.of(confidence_E, correct_E, counts_RE)
    answered_RG, wrong_RG = np.cumsum(groups.size_RG, axis=1), np.cumsum(groups.errors_RG, axis=1)
    aurc_R = _aurc(groups, answered_RG, wrong_RG)
    return {
        **{key: _share(answered_RG, wrong_RG, target) for key, target in AUTOMATED.items()},
        "aurc": aurc_R,
        "excess_aurc": np.maximum(aurc_R - _ideal_aurc(wrong_RG[:, -1], answered_RG[:, -1]), 0.0),
    }


def share_automated(scores_E: FloatArray, correct_E: FloatArray, counts_RE: FloatArray, target: float) -> FloatArray:
    """Largest share of rows, highest scores first, whose error is at most `target`, `[R]`; 0 if there is none.

    The error may be above the target for smaller shares. The share is of these rows: a threshold with a guarantee for
    other rows is lower.
    """
    groups = _Groups.of(scores_E, correct_E, counts_RE)
    return _share(np.cumsum(groups.size_RG, axis=1), np.cumsum(groups.errors_RG, axis=1), target)


def resampled_aurc(scores_E: FloatArray, correct_E: FloatArray, counts_RE: FloatArray) -> FloatArray:
    """AURC `[R]` of rows ranked by any score, higher first: mean of the error over all numbers of answered rows."""
    groups = _Groups.of(scores_E, correct_E, counts_RE)
    return _aurc(groups, np.cumsum(groups.size_RG, axis=1), np.cumsum(groups.errors_RG, axis=1))


def _share(answered_RG: FloatArray, wrong_RG: FloatArray, target: float) -> FloatArray:
    allowed_RG = wrong_RG <= target * answered_RG + _ROUNDING
    return np.asarray(np.where(allowed_RG, answered_RG, 0.0).max(axis=1) / answered_RG[:, -1])


def _aurc(groups: _Groups, answered_RG: FloatArray, wrong_RG: FloatArray) -> FloatArray:
    """Summed group by group of equal scores.

    Within a group of c rows with mean error e, after n rows with S errors, the risks are (S + (k - n) e) / k for
    k = n+1..n+c. They sum to c e + (S - n e) (H(n+c) - H(n)) with the harmonic numbers H: no loop over rows.
    """
    before_RG, wrong_before_RG = answered_RG - groups.size_RG, wrong_RG - groups.errors_RG
    total = int(answered_RG[0, -1])
    harmonic = _harmonic(total)
    spread_RG = harmonic[answered_RG.astype(np.int64)] - harmonic[before_RG.astype(np.int64)]
    mean_error_RG = groups.errors_RG / np.maximum(groups.size_RG, 1.0)
    sums_RG = groups.errors_RG + (wrong_before_RG - before_RG * mean_error_RG) * spread_RG
    return np.asarray(sums_RG.sum(axis=1) / total)


def _ideal_aurc(wrong_R: FloatArray, total_R: FloatArray) -> FloatArray:
    """AURC of an order with all right answers first, `[R]`: the mean of 1 - right / k over the last rows k."""
    harmonic = _harmonic(int(total_R[0]))
    right_R = total_R - wrong_R
    spread_R = harmonic[total_R.astype(np.int64)] - harmonic[right_R.astype(np.int64)]
    return np.asarray((wrong_R - right_R * spread_R) / total_R)


def _harmonic(total: int) -> FloatArray:
    """The harmonic numbers H(0) to H(total)."""
    return np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, total + 1))])
