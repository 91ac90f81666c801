"""Fit a linear probe on hidden states of the training rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lorchestra.metrics.linear_probe import LinearProbe
from lorchestra.training.linear import STRENGTHS, Rows, fit_linear, scaler, unseen_probability


def fit_linear_probe(
    train: Rows, val: Rows, num_labels: int, layers: Sequence[int], progress: Callable[[int], None] | None = None
) -> LinearProbe | None:
    """A probe, its penalty chosen on the validation rows, with half of the mixture; None with a single label.

    Args:
        train: mean states `[E, F]` of training rows (see `inference.features`), with labels.
        val: those of validation rows.
        num_labels: size of the label set.
        layers: the layers of the states.
        progress: called with the number of regressions fitted.

    Raises:
        ConfigError: there are no training rows.
    """
    fit = fit_linear(train, val, num_labels, {"states": scaler}, STRENGTHS, progress)
    if fit.model is None:
        return None
    weights_SF, intercepts_S = np.asarray(fit.model.coef_), np.asarray(fit.model.intercept_)
    if len(weights_SF) == 1:  # two labels have one score, their log-odds
        weights_SF = np.concatenate([np.zeros_like(weights_SF), weights_SF])
        intercepts_S = np.concatenate([np.zeros_like(intercepts_S), intercepts_S])
    return LinearProbe(
        layers=tuple(layers),
        mean_F=np.asarray(fit.transformer.mean_),
        scale_F=np.asarray(fit.transformer.scale_),
        weights_SF=weights_SF,
        intercepts_S=intercepts_S,
        seen_S=np.unique(train.labels),
        num_labels=num_labels,
        unseen=unseen_probability(len(train.labels), num_labels),
        weight=0.5,
    )
