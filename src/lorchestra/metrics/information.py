"""A small head that predicts the mutual information of an ensemble from the states of the one member it has taught.

Axes: `E` example, `C` choice, `D` feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorchestra.metrics.predictive import FloatArray, entropy

STRENGTHS: tuple[float, ...] = tuple(10.0**exponent for exponent in range(-4, 4))
"""Strengths of the ridge penalty to choose from, per row and relative to features of variance 1."""
_TINY = 1e-12


@dataclass(frozen=True)
class InformationRows:
    """Rows of which the member's outputs and the ensemble's mutual information are known.

    Attributes:
        states_ED: the member's input of the output head at the answer position.
        log_probs_EC: its log-probabilities of the choices, -inf past a row's choices.
        information_E: the ensemble's mutual information, in nats.
    """

    states_ED: NDArray[np.float32]
    log_probs_EC: FloatArray
    information_E: FloatArray


@dataclass(frozen=True)
class InformationHead:
    """Ridge regression of the root of the mutual information; a negative prediction counts as 0.

    The root, since mutual information grows with the square of the members' spread: near 0, where most rows are, it is
    flat in every direction. Features are the state and the entropy of the member's answer: the state is nearly linear
    in the logits, and mutual information, like entropy, is largest between the labels. The entropy has no penalty, so
    that the strongest penalty on the state leaves the best function of the entropy alone.

    Attributes:
        mean_D, scale_D: of the features.
        weights_D: of the standardized features.
        intercept: the root at their mean.
    """

    mean_D: FloatArray
    scale_D: FloatArray
    weights_D: FloatArray
    intercept: float

    def predict(self, states_ED: NDArray[np.float32], log_probs_EC: FloatArray) -> FloatArray:
        """The mutual information of rows, in nats, `[E]`, at least 0; see `InformationRows` for the arguments."""
        standardized_ED = (_features(states_ED, log_probs_EC) - self.mean_D) / self.scale_D
        roots_E = np.maximum(standardized_ED @ self.weights_D + self.intercept, 0.0)
        return np.asarray(roots_E**2)


@dataclass(frozen=True)
class InformationFit:
    """A fitted head, and how well it does on the validation rows.

    Attributes:
        head: the head.
        strength: of its penalty, chosen on the validation rows.
        num_rows: rows that it was fitted on.
        correlation: Spearman's, of predicted and true mutual information on the validation rows; None where one of
            them is constant.
        r_squared: share of the variance there that is explained; negative where the mean would do better.
    """

    head: InformationHead
    strength: float
    num_rows: int
    correlation: float | None
    r_squared: float | None


def fit_information(
    rows: InformationRows, val: InformationRows, strengths: Sequence[float] = STRENGTHS
) -> InformationFit:
    """Fit a head on rows, its strength chosen on validation rows by the squared error of the root.

    Raises:
        ValueError: there are no rows, or a number is not finite.
    """
    for part in (rows, val):
        if not len(part.states_ED):
            raise ValueError("there are no rows to fit or to validate the prediction of mutual information on")
        if not (np.isfinite(part.states_ED).all() and np.isfinite(part.information_E).all()):
            raise ValueError("hidden states or mutual information are not finite")
    features_ED = _features(rows.states_ED, rows.log_probs_EC)
    mean_D, scale_D = features_ED.mean(axis=0), features_ED.std(axis=0)
    scale_D = np.where(scale_D > _TINY, scale_D, 1.0)
    features_ED = (features_ED - mean_D) / scale_D
    roots_E, num_rows = np.sqrt(rows.information_E), len(features_ED)
    intercept = float(roots_E.mean())
    # the entropy has no penalty: its part is taken out of states and roots first (Frisch and Waugh 1933)
    entropy_E, states_ED = features_ED[:, -1], features_ED[:, :-1]
    slope, slopes_D = entropy_E @ roots_E / num_rows, entropy_E @ states_ED / num_rows
    states_ED = states_ED - np.outer(entropy_E, slopes_D)
    # all strengths from one decomposition: (X'X / E + strength)^-1 X'y / E
    variances_D, directions_DD = np.linalg.eigh(states_ED.T @ states_ED / num_rows)
    moments_D = directions_DD.T @ (states_ED.T @ (roots_E - intercept - slope * entropy_E) / num_rows)
    val_roots_E, candidates = np.sqrt(val.information_E), []
    for strength in strengths:
        weights_D = directions_DD @ (moments_D / (np.maximum(variances_D, 0.0) + strength))
        weights_D = np.append(weights_D, slope - slopes_D @ weights_D)
        head = InformationHead(mean_D, scale_D, weights_D, intercept)
        errors_E = np.sqrt(head.predict(val.states_ED, val.log_probs_EC)) - val_roots_E
        candidates.append((float((errors_E**2).mean()), strength, head))
    _, strength, head = min(candidates, key=lambda one: one[0])
    predicted_E = head.predict(val.states_ED, val.log_probs_EC)
    return InformationFit(
        head,
        strength,
        len(rows.states_ED),
        _rank_correlation(predicted_E, val.information_E),
        _r_squared(predicted_E, val),
    )


def _features(states_ED: NDArray[np.float32], log_probs_EC: FloatArray) -> FloatArray:
    """The states and the entropy of the answer, float64 `[E, D + 1]`."""
    return np.concatenate([states_ED.astype(np.float64), entropy(log_probs_EC)[:, None]], axis=1)


def _rank_correlation(one_E: FloatArray, other_E: FloatArray) -> float | None:
    from scipy.stats import spearmanr

    if min(np.ptp(one_E), np.ptp(other_E)) <= 0:
        return None
    return float(spearmanr(one_E, other_E).statistic)


def _r_squared(predicted_E: FloatArray, val: InformationRows) -> float | None:
    variance = float(val.information_E.var())
    return None if variance <= 0 else 1 - float(((predicted_E - val.information_E) ** 2).mean()) / variance
