"""Multinomial logistic regression on fixed features, with a penalty chosen on held-out rows.

The penalty, and the features where there is a choice, are those of the lowest held-out NLL: on the validation rows, or
where these are fewer than `FEW_ROWS`, by cross-validation on the training rows. The regression itself is
scikit-learn's, imported when it is first needed.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lorchestra.errors import ConfigError
from lorchestra.metrics.predictive import FloatArray, IntArray
from lorchestra.metrics.scores import nll
from lorchestra.metrics.validation import FEW_ROWS

NUM_FOLDS = 5
"""Folds of the cross-validation; fewer where there are fewer rows."""

_MAX_STEPS = 500
"""Steps of the solver; a fit that needs more is used where it stopped."""

Sklearn = Any
"""A transformer, model or matrix of scikit-learn, which has no types."""

Inputs = list[str] | FloatArray
"""Texts, or features `[E, F]`."""


@dataclass(frozen=True)
class Rows:
    """Inputs and labels, int64 `[E]`."""

    inputs: Inputs
    labels: IntArray

    def take(self, indices: IntArray) -> Rows:
        """Some of the rows."""
        inputs = self.inputs
        some = [inputs[i] for i in indices] if isinstance(inputs, list) else inputs[indices]
        return Rows(some, self.labels[indices])


@dataclass(frozen=True)
class LinearFit:
    """A fitted regression with its features.

    Attributes:
        features: the name of the chosen features.
        C: the inverse strength of the penalty.
        held_out_nll: mean over the held-out rows, by which both were chosen, in nats.
        held_out: where these rows came from.
        num_parameters: coefficients and intercepts.
    """

    features: str
    C: float
    held_out_nll: float
    held_out: Literal["validation", "cross-validation"]
    log_probs: Callable[[Inputs], FloatArray]
    """Log-probabilities `[E, C]` of new inputs."""
    num_parameters: int
    transformer: Sklearn
    """Of the inputs, fitted."""
    model: Sklearn
    """The regression; None where the training rows have a single label."""


STRENGTHS: tuple[float, ...] = (0.0001, 0.001, 0.01, 0.1, 1.0)
"""Values of C to choose from for features of hidden states."""


def scaler() -> Sklearn:
    """An unfitted transformer of features to mean 0 and variance 1."""
    from sklearn.preprocessing import StandardScaler

    return StandardScaler()


def fit_linear(
    train: Rows,
    val: Rows,
    num_labels: int,
    features: Mapping[str, Callable[[], Sklearn]],
    strengths: Sequence[float],
    progress: Callable[[int], None] | None = None,
) -> LinearFit:
    """Choose features and penalty, and fit them on all training rows.

    Args:
        train: training rows.
        val: validation rows, on which nothing is fitted.
        num_labels: size of the label set. A label without training rows has the probability 1 / (rows + labels) in
            every row, so that its NLL is finite; the others share the rest.
        features: by name, makers of unfitted scikit-learn transformers; of equally good ones the first is chosen.
        strengths: values of C to choose from, the inverse strengths of the L2 penalty.
        progress: called with the number of regressions fitted.

    Raises:
        ConfigError: no strength, one that is not above 0, or no features can be made of the training rows.
    """
    if not strengths or not all(0 < C < np.inf for C in strengths):
        raise ConfigError(f"strengths: {list(strengths)!r} must be one or more numbers above 0")
    if not len(train.labels):
        raise ConfigError("there are no training rows with an answer")
    folds, done = list(_folds(train, val)), itertools.count(1)

    def count() -> None:
        if progress is not None:
            progress(next(done))

    scores = {
        (name, C): score
        for name, make in features.items()
        for C, score in _score(folds, num_labels, make, strengths, count)
    }
    if not scores:
        raise ConfigError("the training texts have no words to make features of")
    (name, C), score = min(scores.items(), key=lambda entry: entry[1])
    transformer = features[name]()
    matrix = transformer.fit_transform(train.inputs)
    model = regression(matrix, train.labels, C)
    held_out: Literal["validation", "cross-validation"] = "validation" if is_enough(val) else "cross-validation"

    def log_probs(inputs: Inputs) -> FloatArray:
        return _log_probs(model, transformer.transform(inputs), train.labels, num_labels)

    size = 0 if model is None else model.coef_.size + model.intercept_.size
    return LinearFit(name, C, score, held_out, log_probs, size, transformer, model)


def is_enough(val: Rows) -> bool:
    """Whether the validation rows can choose a penalty; otherwise cross-validation on the training rows does."""
    return len(val.labels) >= FEW_ROWS


def _folds(train: Rows, val: Rows) -> Iterator[tuple[Rows, Rows]]:
    """Rows to fit on, and rows to score."""
    if is_enough(val):
        yield train, val
        return
    number = min(NUM_FOLDS, len(train.labels))
    if number < 2:
        yield train, train
        return
    # in the order of labels, so that each fold has its share of every label
    fold_E = np.empty(len(train.labels), dtype=np.int64)
    fold_E[np.argsort(train.labels, kind="stable")] = np.arange(len(train.labels)) % number
    for fold in range(number):
        yield train.take(np.flatnonzero(fold_E != fold)), train.take(np.flatnonzero(fold_E == fold))


def _score(
    folds: Sequence[tuple[Rows, Rows]],
    num_labels: int,
    make: Callable[[], Sklearn],
    strengths: Sequence[float],
    count: Callable[[], None],
) -> Iterator[tuple[float, float]]:
    """Each strength with its mean NLL over the held-out rows; nothing where a fold has no features."""
    totals = dict.fromkeys(strengths, 0.0)
    for train, held_out in folds:
        transformer = make()
        try:
            matrix = transformer.fit_transform(train.inputs)
        except ValueError:  # an empty vocabulary
            return
        held_out_matrix = transformer.transform(held_out.inputs)
        for C in totals:
            model = regression(matrix, train.labels, C)
            log_probs_EC = _log_probs(model, held_out_matrix, train.labels, num_labels)
            totals[C] += nll(log_probs_EC, held_out.labels) * len(held_out.labels)
            count()
    num_rows = sum(len(held_out.labels) for _, held_out in folds)
    yield from ((C, total / num_rows) for C, total in totals.items())


def regression(
    matrix: Sklearn,
    labels_E: IntArray,
    C: float,
    *,
    weights_E: FloatArray | None = None,
    intercept: bool = True,
    max_steps: int = _MAX_STEPS,
) -> Sklearn:
    """A fitted regression of scikit-learn; None where there is a single label.

    Args:
        matrix: features `[E, F]`.
        labels_E: labels.
        C: inverse strength of the L2 penalty.
        weights_E: weights of the rows; None for equal ones.
        intercept: whether it has one.
        max_steps: most steps of the solver; a fit that needs more is used where it stopped.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(labels_E)) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=C, max_iter=max_steps, fit_intercept=intercept)
        return model.fit(matrix, labels_E, sample_weight=weights_E)


def unseen_probability(num_rows: int, num_labels: int) -> float:
    """Probability of a label without training rows; see `fit_linear`."""
    return 1.0 / (num_rows + num_labels)


def _log_probs(model: Sklearn, matrix: Sklearn, train_labels_E: IntArray, num_labels: int) -> FloatArray:
    """Log-probabilities `[E, C]` over all labels; see `fit_linear` for those without training rows."""
    seen = np.unique(train_labels_E)
    scores = np.zeros((matrix.shape[0], 1)) if model is None else np.asarray(model.decision_function(matrix))
    if scores.ndim == 1:  # two labels have one score, their log-odds
        scores = np.stack([np.zeros_like(scores), scores], axis=1)
    top = scores.max(axis=1, keepdims=True)
    scores = scores - top - np.log(np.exp(scores - top).sum(axis=1, keepdims=True))
    unseen = unseen_probability(len(train_labels_E), num_labels)
    log_probs_EC = np.full((len(scores), num_labels), np.log(unseen))
    log_probs_EC[:, seen] = scores + np.log1p(-unseen * (num_labels - len(seen)))
    return log_probs_EC
