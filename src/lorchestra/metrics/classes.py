"""Recall by label, for texts whose training labels are unbalanced: accuracy then hides the rare ones. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lorchestra.metrics.calibrator import Calibrates, pooled
from lorchestra.metrics.predictive import IntArray, mixture_log_probs
from lorchestra.metrics.result import ClassScores
from lorchestra.metrics.scores import class_recall
from lorchestra.types import Predictions, plain_values

UNBALANCED = 5
"""Labels are unbalanced if the rarest has fewer than one in this many of the rows of the most frequent one."""


def class_scores(
    predictions: Predictions,
    train_labels: Sequence[int] | IntArray | None,
    baselines: Mapping[str, Predictions],
    calibration: Calibrates | None = None,
) -> ClassScores | None:
    """Recall of each label; None where rows differ in their choices, or training labels are balanced or unknown.

    Args:
        predictions: of the members, which are pooled, and the mixture calibrated.
        train_labels: answer indices of the training rows.
        baselines: other predictions of the same rows, by name.
        calibration: of the mixture; without one it stays as it is.
    """
    options = predictions.options
    if train_labels is None or not len(train_labels) or len(set(options)) != 1:
        return None
    counts_C = np.bincount(np.asarray(train_labels, dtype=np.int64), minlength=len(options[0]))
    if len(counts_C) != len(options[0]) or UNBALANCED * counts_C.min() >= counts_C.max():
        return None
    mixtures = {name: mixture_log_probs(one.log_probs_MEC) for name, one in baselines.items()}
    mixtures = {"ensemble": pooled(predictions.log_probs_MEC, calibration), **mixtures}
    return ClassScores(
        labels=list(options[0]),
        train_rows=counts_C.tolist(),
        rows=np.bincount(predictions.labels, minlength=len(counts_C)).tolist(),
        recall={
            name: plain_values(class_recall(log_probs_EC, predictions.labels))
            for name, log_probs_EC in mixtures.items()
        },
    )
