"""The Mahalanobis distance of rows from training rows: a score of out-of-distribution rows that needs no labels.

Axes: `E` example, `D` feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular

from lorchestra.metrics.predictive import FloatArray

_LEAST_SHRINKAGE = 1e-9
"""Keeps the covariance invertible where the training rows have fewer directions than features."""


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of training rows.

    Attributes:
        mean_D: their mean.
        root_DD: lower Cholesky factor of the shrunk covariance.
        shrinkage: weight of the identity in it, in (0, 1].
    """

    mean_D: FloatArray
    root_DD: FloatArray
    shrinkage: float

    @classmethod
    def fit(cls, train_ED: FloatArray) -> Gaussian:
        """Fit to training rows; one Gaussian for all labels.

        The covariance is `(1 - s) S + s (tr S / D) I`, with the s of Ledoit and Wolf: there may be fewer rows than
        features.

        Raises:
            ValueError: fewer than two different rows, or values that are not finite.

        Source: Lee et al., arXiv 1807.03888; Ledoit and Wolf, A well-conditioned estimator for large-dimensional
        covariance matrices (2004).
        """
        if not np.isfinite(train_ED).all():
            raise ValueError("the training rows have values that are not finite")
        num_rows, num_features = train_ED.shape
        mean_D = train_ED.mean(axis=0) if num_rows else np.zeros(num_features)
        centered_ED = train_ED - mean_D
        sample_DD = centered_ED.T @ centered_ED / max(num_rows, 1)
        scale = float(np.trace(sample_DD)) / max(num_features, 1)
        if num_rows < 2 or scale <= 1e-24 * float((mean_D**2).mean()):
            raise ValueError("a covariance needs at least two different training rows")
        squared = float((sample_DD**2).sum())
        spread = squared - num_features * scale**2
        noise = (float(((centered_ED**2).sum(axis=1) ** 2).mean()) - squared) / num_rows
        shrinkage = 1.0 if spread <= 0 else min(1.0, max(noise / spread, _LEAST_SHRINKAGE))
        shrunk_DD = (1 - shrinkage) * sample_DD
        shrunk_DD[np.diag_indices(num_features)] += shrinkage * scale
        return cls(mean_D, np.linalg.cholesky(shrunk_DD), shrinkage)

    def distance(self, rows_ED: FloatArray) -> FloatArray:
        """The Mahalanobis distance of each row from the mean, `[E]`."""
        whitened_DE = solve_triangular(self.root_DD, (rows_ED - self.mean_D).T, lower=True)
        distance_E: FloatArray = np.sqrt((whitened_DE**2).sum(axis=0))
        return distance_E
