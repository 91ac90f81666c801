"""How much the members of an ensemble differ, in their predictions and in their updates of the base's weights.

Pure NumPy. Axes: `M` member, `E` example, `C` choice, `R` rank, `I`/`O` in/out features. Per-row disagreement and
mutual information are in `metrics.predictive`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from lorchestra.metrics.predictive import FloatArray

Update = Sequence[tuple[FloatArray, FloatArray]]
"""One member's A `[R, I]` and B `[O, R]` of every adapted linear map."""


def agreement(log_probs_MEC: FloatArray) -> FloatArray:
    """Share of rows on which two members give the same answer, `[M, M]`; 1 on the diagonal."""
    votes_ME = log_probs_MEC.argmax(axis=-1)
    return np.asarray((votes_ME[:, None] == votes_ME[None]).mean(axis=-1))


def pairwise_kl(log_probs_MEC: FloatArray) -> FloatArray:
    """Mean `KL(p_i || p_j)` in nats over ordered pairs of members, `[M, E, C]` to `[E]`; 0 for one member.

    Infinite where a member excludes a choice (probability zero) that another does not.
    """
    num_members, num_examples, _ = log_probs_MEC.shape
    total_E = np.zeros(num_examples)
    if num_members == 1:
        return total_E
    probs_MEC = np.exp(log_probs_MEC)
    for log_probs_EC in log_probs_MEC:
        possible_MEC = probs_MEC > 0  # p log p is 0 elsewhere, for instance in columns past a row's choices
        gap_MEC = np.subtract(log_probs_MEC, log_probs_EC, out=np.zeros_like(log_probs_MEC), where=possible_MEC)
        total_E += (probs_MEC * gap_MEC).sum(axis=(0, 2))
    return np.asarray(np.maximum(total_E / (num_members * (num_members - 1)), 0.0))


def symmetric_kl(log_probs_MEC: FloatArray) -> FloatArray:
    """Mean over rows of (KL(a || b) + KL(b || a)) / 2 of two members in nats, `[M, M]`; 0 on the diagonal.

    Infinite where one member excludes a choice that the other does not.
    """
    num_members = len(log_probs_MEC)
    divergences_MM = np.zeros((num_members, num_members))
    probs_MEC = np.exp(log_probs_MEC)
    for a in range(num_members):
        for b in range(a):
            # Choices to which neither gives a probability (columns past the row's choices) add nothing.
            shared = ~(np.isneginf(log_probs_MEC[a]) & np.isneginf(log_probs_MEC[b]))
            log_ratio = np.where(shared, log_probs_MEC[a], 0.0) - np.where(shared, log_probs_MEC[b], 0.0)
            difference = probs_MEC[a] - probs_MEC[b]
            # Equal probabilities may have an infinite log ratio, where one underflowed to the other's 0.
            terms = np.where(difference != 0, difference, 0.0) * np.where(difference != 0, log_ratio, 0.0)
            divergences_MM[a, b] = divergences_MM[b, a] = 0.5 * terms.sum(axis=-1).mean()
    return divergences_MM


def pairwise_correlation(log_probs_MEC: FloatArray) -> float:
    """Mean Pearson correlation of two members' probabilities, over all rows and their choices, over pairs of members.

    1 where all members predict the same; NaN for one member, and where a member's probabilities are all equal.
    """
    if len(log_probs_MEC) == 1:
        return float("nan")
    present_EC = ~np.isneginf(log_probs_MEC).all(axis=0)
    probs_MX = np.exp(log_probs_MEC[:, present_EC])
    probs_MX = probs_MX - probs_MX.mean(axis=1, keepdims=True)
    norms_M = np.sqrt(np.square(probs_MX).sum(axis=1))
    with np.errstate(invalid="ignore"):
        correlations_MM = (probs_MX @ probs_MX.T) / np.outer(norms_M, norms_M)
    return _mean_of_pairs(correlations_MM)


def update_cosine(members: Sequence[Update]) -> float:
    """Mean cosine, over pairs of members, of their updates: `B A` of all linear maps as one vector.

    `B A` is never formed: `<B1 A1, B2 A2> = sum((B1^T B2) * (A1 A2^T))`, both `[R, R]`. Ranks may differ between
    members. NaN for one member, and where an update is zero.

    Raises:
        ValueError: members have different numbers of maps.
    """
    if len(members) == 1:
        return float("nan")
    products_MM = np.empty((len(members), len(members)))
    for i, j in itertools.combinations_with_replacement(range(len(members)), 2):
        products_MM[i, j] = products_MM[j, i] = sum(
            float(((B1.T @ B2) * (A1 @ A2.T)).sum()) for (A1, B1), (A2, B2) in zip(members[i], members[j], strict=True)
        )
    norms_M = np.sqrt(np.diagonal(products_MM))
    with np.errstate(invalid="ignore", divide="ignore"):
        return _mean_of_pairs(products_MM / np.outer(norms_M, norms_M))


def spearman(x: FloatArray, y: FloatArray) -> float:
    """Rank correlation of two one-dimensional arrays, ties at their mean rank; NaN where one is constant."""
    ranks = []
    for values in (x, y):
        _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
        rank = (np.cumsum(counts) - (counts - 1) / 2)[index]
        ranks.append(rank - rank.mean())
    scale = float(np.sqrt(np.square(ranks[0]).sum() * np.square(ranks[1]).sum()))
    return float(ranks[0] @ ranks[1]) / scale if scale > 0 else float("nan")


def _mean_of_pairs(values_MM: FloatArray) -> float:
    return float(values_MM[np.triu_indices(len(values_MM), 1)].mean())
