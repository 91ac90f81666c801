"""How different the members of an ensemble are: in what they predict, and in what was added to the base.

Pure numpy. Disagreement and mutual information are in `core.predictive`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from lorchestra.core.predictive import FloatArray


def pairwise_kl(log_probs_MEC: FloatArray) -> float:
    """Mean `KL(p_i || p_j)` over ordered pairs of members and over rows, in nats; NaN for a single member.

    Columns past a row's choices hold -inf in every member and count nothing.
    """
    pairs = list(itertools.permutations(range(len(log_probs_MEC)), 2))
    if not pairs:
        return float("nan")
    present = np.isfinite(log_probs_MEC).all(axis=0)
    safe = np.where(present, log_probs_MEC, 0.0)
    probs = np.where(present, np.exp(safe), 0.0)
    return float(np.mean([(probs[i] * (safe[i] - safe[j])).sum(axis=-1).mean() for i, j in pairs]))


def pairwise_correlation(log_probs_MEC: FloatArray) -> float:
    """Mean Pearson correlation of two members' probabilities over all rows and choices; NaN for a single member."""
    present = np.isfinite(log_probs_MEC).any(axis=0)
    probs_MX = np.exp(log_probs_MEC[:, present])
    if len(probs_MX) < 2:
        return float("nan")
    found = np.corrcoef(probs_MX)
    return float(found[np.triu_indices(len(found), 1)].mean())


def update_cosine(members: Sequence[Sequence[tuple[FloatArray, FloatArray]]]) -> float:
    """Mean cosine, over pairs of members, of what they add to the base: `vec(B A)` of all adapted maps together.

    B A is never formed: `<B1 A1, B2 A2> = sum((B1^T B2) * (A1 A2^T))`, both `[R, R]`.

    Args:
        members: for each member, its A `[R, I]` and B `[O, R]` of every map, in one order.
    """
    number = len(members)
    products = np.zeros((number, number))
    for i, j in itertools.combinations_with_replacement(range(number), 2):
        products[i, j] = sum(
            ((B1.T @ B2) * (A1 @ A2.T)).sum() for (A1, B1), (A2, B2) in zip(members[i], members[j], strict=True)
        )
    norms = np.sqrt(np.diagonal(products))
    cosines = [products[i, j] / (norms[i] * norms[j]) for i, j in itertools.combinations(range(number), 2)]
    return float(np.mean(cosines)) if cosines else float("nan")
