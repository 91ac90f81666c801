"""A linear probe of the frozen base that is mixed with the members: it errs on other rows than they do.

The probe is a multinomial logistic regression on mean hidden states (Alain and Bengio, arXiv 1610.01644). Its weight in
the mixture is chosen on the validation rows.

Axes: `M` member, `E` example, `C` label, `F` feature, `S` label with training rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorchestra.metrics.predictive import (
    FloatArray,
    IntArray,
    apply_temperature,
    fit_temperature,
    log_softmax,
    mixture_log_probs,
)
from lorchestra.metrics.scores import nll

WEIGHTS = (0.0, 0.25, 0.5, 0.75)
"""Weights that are tried; members always have a part."""


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe with its weight.

    Attributes:
        layers: the decoder layers whose inputs, averaged over a text's tokens, are the features.
        mean_F, scale_F: of the features.
        weights_SF, intercepts_S: of the regression.
        seen_S: indices of the labels with training rows, int64, ascending.
        num_labels: C.
        unseen: probability of each label without training rows.
        weight: share of the probe in the mixture, above 0 and below 1.
    """

    layers: tuple[int, ...]
    mean_F: NDArray[np.float64]
    scale_F: NDArray[np.float64]
    weights_SF: NDArray[np.float64]
    intercepts_S: NDArray[np.float64]
    seen_S: IntArray
    num_labels: int
    unseen: float
    weight: float

    def log_probs(self, features_EF: FloatArray) -> FloatArray:
        """Log-probabilities of all labels, `[E, C]`."""
        scores_ES = (features_EF - self.mean_F) / self.scale_F @ self.weights_SF.T + self.intercepts_S
        log_probs_EC = np.full((len(scores_ES), self.num_labels), np.log(self.unseen))
        rest = np.log1p(-self.unseen * (self.num_labels - len(self.seen_S)))
        log_probs_EC[:, self.seen_S] = log_softmax(scores_ES) + rest
        return log_probs_EC

    def mixed_into(self, log_probs_MEC: FloatArray, features_EF: FloatArray) -> FloatArray:
        """Each member's distribution mixed with the probe's, so that the members' mean has it with its weight."""
        return mix(log_probs_MEC, self.log_probs(features_EF), self.weight)


def mix(log_probs_MEC: FloatArray, probe_EC: FloatArray, weight: float) -> FloatArray:
    """`(1 - weight) p + weight q` as log-probabilities, for p of each member; weights 0 and 1 leave out one of them."""
    with np.errstate(divide="ignore"):
        ours, probes = np.log1p(-weight), np.log(weight)
    return np.asarray(np.logaddexp(log_probs_MEC + ours, probe_EC + probes))


def choose_weight(log_probs_MEC: FloatArray, probe_EC: FloatArray, labels_E: IntArray) -> tuple[float, float, float]:
    """The weight of `WEIGHTS` with the lowest NLL of the mixture after one temperature.

    Args:
        log_probs_MEC: the members on validation rows.
        probe_EC: the probe on them.
        labels_E: the answers.

    Returns:
        The weight, the smallest of equally good ones; the NLL with it; the NLL of the members alone.
    """
    scores = []
    for weight in WEIGHTS:
        mixture_EC = mixture_log_probs(mix(log_probs_MEC, probe_EC, weight))
        scores.append(nll(apply_temperature(mixture_EC, fit_temperature(mixture_EC, labels_E)), labels_E))
    best = int(np.argmin(scores))
    return WEIGHTS[best], scores[best], scores[0]
