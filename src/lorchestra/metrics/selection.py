"""Weights of an ensemble's members by greedy forward selection on validation rows, and the weighted mixture.

Source: Caruana, Niculescu-Mizil, Crew and Ksikes, Ensemble Selection from Libraries of Models (ICML 2004), section 2:
selection with replacement, by the NLL of the selected members' mixture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lorchestra.metrics.predictive import TIE, FloatArray, IntArray, check_labels, log_mean_exp


@dataclass(frozen=True, slots=True)
class GreedySelection:
    """Members selected one after the other, and where the NLL was lowest."""

    order: tuple[int, ...]
    """The member that each round added, all rounds."""
    nll: tuple[float, ...]
    """NLL of the mixture after each round, in nats; infinite while an answer has probability zero."""
    num_rounds: int
    """Rounds up to the lowest NLL, the first of equals; the others are not in the weights."""
    weights: FloatArray
    """Share of these rounds that added each member, `[M]`; they sum to 1."""


def greedy_selection(log_probs_MEC: FloatArray, labels_E: IntArray, *, num_rounds: int = 100) -> GreedySelection:
    """Select members with replacement: each round adds the one whose addition gives the lowest NLL.

    Of members whose NLLs are equal up to `TIE` the first is added. While answers have probability zero, the number of
    these rows counts before the NLL of the others, so that members are added which make them possible.

    The NLL of the selected rows is optimistic; compare ensembles on others.

    Args:
        log_probs_MEC: the members' normalized log-probabilities on validation rows.
        labels_E: the answers.
        num_rounds: most members to add; weights are multiples of 1 / the rounds used.

    Raises:
        ValueError: no round or no member, or a label is unknown or out of range (see `check_labels`).
    """
    if num_rounds < 1:
        raise ValueError(f"num_rounds is {num_rounds}, less than 1")
    if log_probs_MEC.ndim != 3 or not len(log_probs_MEC):
        raise ValueError(f"log_probs has shape {log_probs_MEC.shape}, not [M, E, C] with at least one member")
    for log_probs_EC in log_probs_MEC:
        labels_E = check_labels(log_probs_EC, labels_E)
    answers_ME = log_probs_MEC[:, np.arange(len(labels_E)), labels_E]
    total_E = np.full(len(labels_E), -np.inf)
    order: list[int] = []
    scores: list[tuple[int, float]] = []
    for size in range(1, num_rounds + 1):
        totals_ME = np.logaddexp(total_E, answers_ME)
        candidates = [_score(totals_E - np.log(size)) for totals_E in totals_ME]
        best = _first_of_lowest(candidates)
        order.append(best)
        scores.append(candidates[best])
        total_E = totals_ME[best]
    used = _first_of_lowest(scores) + 1
    weights_M = np.bincount(order[:used], minlength=len(log_probs_MEC)) / used
    return GreedySelection(tuple(order), tuple(np.inf if zeros else nll for zeros, nll in scores), used, weights_M)


def weighted_mixture_log_probs(log_probs_MEC: FloatArray, weights_M: FloatArray) -> FloatArray:
    """Pool the members with weights: the log of the weighted mean of their normalized probabilities.

    `[M, E, C]` to `[E, C]`, normalized. Weights are divided by their sum; with equal ones this is
    `mixture_log_probs`, up to rounding. Permuting the members with their weights changes no bit.

    Raises:
        ValueError: not one weight per member, a negative or infinite weight, or only zeros.
    """
    weights_M = np.asarray(weights_M, dtype=np.float64)
    if weights_M.shape != log_probs_MEC.shape[:1]:
        raise ValueError(f"weights has shape {weights_M.shape}, not one per member of {log_probs_MEC.shape}")
    if not (np.isfinite(weights_M).all() and (weights_M >= 0).all() and weights_M.any()):
        raise ValueError(f"weights {weights_M.tolist()} are not finite numbers from 0 up, one of them positive")
    used_M = np.flatnonzero(weights_M)
    # relative to the largest first, so that the sum of huge or tiny weights is finite and positive; summed in sorted
    # order, as the mixture is
    relative_M = weights_M[used_M] / weights_M.max()
    factors_M = np.log(relative_M * (len(used_M) / np.sort(relative_M).sum()))
    return log_mean_exp(np.sort(log_probs_MEC[used_M] + factors_M[:, None, None], axis=0), axis=0)


def _score(log_probs_E: FloatArray) -> tuple[int, float]:
    """The number of answers of probability zero, and the NLL of the others, a sum over all rows divided by E."""
    zero_E = np.isneginf(log_probs_E)
    return int(zero_E.sum()), float(-np.where(zero_E, 0.0, log_probs_E).mean())


def _first_of_lowest(scores: list[tuple[int, float]]) -> int:
    """Index of the first score that equals the lowest."""
    zeros, lowest = min(scores)
    return next(i for i, score in enumerate(scores) if score[0] == zeros and score[1] <= lowest + TIE)
