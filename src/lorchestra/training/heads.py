"""Initial classification heads: logistic regression on the base's hidden states of the training rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from lorchestra.inference.trunk import TrunkCache
from lorchestra.metrics.predictive import FloatArray
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.nn.head import STEP_SCALE
from lorchestra.nn.seeding import derive_seed
from lorchestra.training.linear import Rows, Sklearn, fit_linear, regression
from lorchestra.training.members import MemberSettings
from lorchestra.training.precompute import TrainingRows, base_head_states
from lorchestra.types import EncodedExample

STRENGTHS = (0.0001, 0.001, 0.01, 0.1, 1.0)
"""Values of C to choose from, the inverse strengths of the L2 penalty on scaled states."""
_MAX_STEPS = 200


@torch.no_grad()
def answer_states(
    model: EnsembleModel,
    rows: Sequence[EncodedExample],
    token_budget: int,
    trunk: TrunkCache | None,
    shared: int,
    progress: Callable[[int], None],
) -> FloatArray:
    """The base's hidden states that a classification head reads, float64 `[E, D]`.

    Args:
        model: the ensemble; members are not used.
        rows: rows that are `by_head`.
        token_budget: most tokens in a training step's micro-batch; see `forward_budget`.
        trunk: cached trunks of the rows, if any.
        shared: number of first tokens that all rows share.
        progress: called with the number of rows done.
    """
    states_ED = np.empty((len(rows), model.hidden_size))
    for indices, states in base_head_states(model, rows, token_budget, trunk, shared, progress):
        states_ED[indices] = states.double().cpu().numpy()
    return states_ED


@torch.no_grad()
def init_heads(
    model: EnsembleModel,
    rows: TrainingRows,
    settings: Sequence[MemberSettings],
    states: tuple[FloatArray, FloatArray],
) -> None:
    """Set each member's head to a logistic regression on the training rows, weighted by its seed.

    A member's weights of the rows are exponentially distributed, the Bayesian bootstrap (Rubin 1981), so that heads
    differ from the first step although no label loses all of its rows. The penalty is chosen once, for equal weights.
    Labels without training rows have zero weights.

    Args:
        model: the ensemble; its heads are changed.
        rows: training and validation rows.
        settings: one per member: the seed, and which of the training rows a member has.
        states: the base's states of the training and validation rows, `[E, D]` each (see `answer_states`).
    """
    assert model.head is not None
    train, val = (
        Rows(inputs, np.array([row.answer for row in split], dtype=np.int64))
        for inputs, split in zip(states, (rows.train, rows.val), strict=True)
    )
    fit = fit_linear(train, val, model.head.num_labels, {"states": _scaler}, STRENGTHS)
    scaler = _scaler().fit(train.inputs)
    matrix = scaler.transform(train.inputs)
    for m, member in enumerate(settings):
        chosen = np.arange(len(train.labels)) if member.rows is None else np.array(member.rows)
        draws = np.random.default_rng(derive_seed(member.adapter.seed, "head"))
        weights = draws.exponential(size=len(chosen)) * _weights(rows, chosen)
        head_CD = _head(matrix[chosen], train.take(chosen), weights, fit.C, model.head.num_labels)
        model.adapters.head(model.adapters.values[m]).copy_(torch.from_numpy(head_CD / scaler.scale_ / STEP_SCALE))


def _head(matrix: FloatArray, rows: Rows, weights: FloatArray, C: float, num_labels: int) -> FloatArray:
    """Weights `[C, D]` on scaled states; zero for a single label."""
    head_CD = np.zeros((num_labels, matrix.shape[1]))
    model = regression(matrix, rows.labels, C, weights_E=weights, intercept=False, max_steps=_MAX_STEPS)
    if model is not None:
        # two labels have one row, of the second's log-odds
        head_CD[model.classes_[-len(model.coef_) :]] = model.coef_
    return head_CD


def _weights(rows: TrainingRows, chosen: np.ndarray) -> FloatArray:
    return np.ones(len(chosen)) if rows.weights is None else np.array(rows.weights)[chosen]


def _scaler() -> Sklearn:
    from sklearn.preprocessing import StandardScaler

    return StandardScaler(with_mean=False)  # a head has no intercept; the states' mean takes its part
