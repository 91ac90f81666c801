"""How much the members of an ensemble differ: in what they predict, and in what they add to the base's weights.

Pure numpy. Axes: `M` member, `E` example, `C` choice, `R` rank, `I`/`O` in/out features. Disagreement of the most
probable choices and mutual information are in `metrics.predictive`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from lorchestra.metrics.predictive import FloatArray

Update = Sequence[tuple[FloatArray, FloatArray]]
"""One member's A `[R, I]` and B `[O, R]` of every adapted map."""


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
        possible_MEC = probs_MEC > 0  # elsewhere, columns past a row's choices among them, p log p is 0
        gap_MEC = np.subtract(log_probs_MEC, log_probs_EC, out=np.zeros_like(log_probs_MEC), where=possible_MEC)
        total_E += (probs_MEC * gap_MEC).sum(axis=(0, 2))
    return np.maximum(total_E / (num_members * (num_members - 1)), 0.0)


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
    """Mean cosine, over pairs of members, of what each adds to the base: `B A` of all its maps as one vector.

    `B A` is never formed: `<B1 A1, B2 A2> = sum((B1^T B2) * (A1 A2^T))`, both `[R, R]`. Ranks may differ between
    members. NaN for one member, and where a member adds nothing.

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
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        rank = (np.cumsum(counts) - (counts - 1) / 2)[place]
        ranks.append(rank - rank.mean())
    scale = float(np.sqrt(np.square(ranks[0]).sum() * np.square(ranks[1]).sum()))
    return float(ranks[0] @ ranks[1]) / scale if scale > 0 else float("nan")


def _mean_of_pairs(values_MM: FloatArray) -> float:
    return float(values_MM[np.triu_indices(len(values_MM), 1)].mean())
