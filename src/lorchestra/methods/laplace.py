"""Laplace approximation over the adapter of one LoRA (Yang et al., arXiv 2308.13111).

The curvature is the generalized Gauss-Newton matrix over the training rows (see `curvature_factor`), with the exact
expectation over choices. The prior is `N(0, I / precision)` over the adapter's parameters, as in the paper. Instead of
Kronecker factors, the curvature is diagonal or, with few training rows, full.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lorchestra.errors import ConfigError, TrainingError
from lorchestra.inference.pipeline import Pipeline
from lorchestra.inference.predict import member_passes
from lorchestra.methods.contract import MAX_DRAWS, Fitted, Meter, MethodContext, Predictor, Progress
from lorchestra.methods.posterior import (
    PRECISION_BOUNDS,
    DiagonalLaplace,
    FullLaplace,
    LaplacePosterior,
    best_precision,
    curvature_factor,
    log_marginal_likelihood,
    row_gradients,
)
from lorchestra.methods.training import (
    MethodTraining,
    check_adapter_values,
    last_layer_columns,
    packed_predictor,
    train_first_member,
)
from lorchestra.metrics.predictive import mixture_log_probs
from lorchestra.metrics.scores import nll
from lorchestra.nn.seeding import generator
from lorchestra.planning.estimate import prediction_base_passes, training_base_passes
from lorchestra.types import EncodedExample, Example, Predictions

MAX_NUMBERS = 1_000_000_000
"""Maximum size of the square root of a full curvature, in numbers."""


@dataclass(frozen=True)
class Config:
    """Parameters, curvature, prior and predictive of the approximation."""

    structure: Literal["diagonal", "full"] = "diagonal"
    """Diagonal or full curvature (memory grows as training rows x choices x parameters)."""
    layers: Literal["all", "last"] = "all"
    """The posterior's parameters: the whole adapter, or that of the last adapted layer."""
    predictive: Literal["linearized", "draws"] = "linearized"
    """linearized: draws of the model linearized in the adapter, as in the paper; draws: M random adapters."""
    draws: int = 100
    """Draws of the linearized model, which cost no passes."""
    prior: Literal["validation", "marginal_likelihood"] = "validation"
    """Selects the prior's precision by the NLL on validation rows, or by the evidence on training rows."""
    precisions: tuple[float, ...] = (1e-1, 1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6)
    """Candidates for selection on validation rows."""


def fit(context: MethodContext, config: Config) -> Fitted:
    """Train one LoRA, then compute the curvature over all training rows.

    A backward pass goes through as many layers as a forward pass and computes almost no weight gradients: it counts as
    one pass. The linearized model needs one per choice.

    Raises:
        ConfigError: a setting out of range, a full curvature that is too large, or an unsupported initialization.
        TrainingError: training failed, or no precision gives finite predictions.
    """
    _check(context, config)
    meter = Meter()
    training = train_first_member(context, meter, context.config)
    model, rows = training.pipeline.model, training.trainer.rows.train
    columns = last_layer_columns(model) if config.layers == "last" else torch.ones_like(model.adapters.is_B)
    posterior, log_likelihood = _posterior(context, training, columns, config)
    mean_P = training.values[0, columns].clone()
    linearized = config.predictive == "linearized"
    number = config.draws if linearized else context.members
    shape = (number, len(mean_P))
    noise_SP = torch.randn(shape, generator=generator(context.seed, "laplace")).to(mean_P)
    state = _Linearized(training.pipeline, columns, posterior, noise_SP)
    progress = context.progress("prior precision, validation rows", len(context.val))
    if config.prior == "marginal_likelihood":
        precision = best_precision(lambda t: log_marginal_likelihood(posterior, log_likelihood, mean_P, t))
        if not math.isfinite(log_marginal_likelihood(posterior, log_likelihood, mean_P, precision)):
            raise TrainingError("laplace: the evidence of the training rows is not finite; try a smaller train.lr")
    elif linearized:
        precision = state.best_on(context.val, config.precisions, progress)
    else:
        precision = _best_draws_on(training, state, mean_P, context.val, config.precisions, progress)
    predict: Predictor
    if linearized:
        state.precision = precision
        predict = state.predict
    else:
        _write_draws(training, state, mean_P, precision)
        check_adapter_values(training.values)
        predict = packed_predictor(training.pipeline, member_passes(range(number)))
    passes = 1 + sum(len(row.choices) for row in rows) / len(rows)  # forward, and a backward pass per choice
    top = 1 - model.trunk_layers / model.num_layers
    cost = meter.cost(
        fit_base_passes=round(training_base_passes(training.trainer) + top * passes, 3),
        tokens=training.trainer.state.tokens,
        parameters=training.values.shape[1] + posterior.num_numbers,
        predict_base_passes=round(1 - top + top * passes, 3) if linearized else prediction_base_passes(model, number),
    )
    return Fitted(predict, cost, {"prior_precision": precision}, _at_bound(precision, config))


def _check(context: MethodContext, config: Config) -> None:
    if config.draws < 1:
        raise ConfigError(f"laplace.draws: {config.draws} is less than 1")
    if config.draws > MAX_DRAWS:
        raise ConfigError(f"laplace.draws: {config.draws} is more than {MAX_DRAWS:,}")
    if not config.precisions or not all(0 < precision < math.inf for precision in config.precisions):
        raise ConfigError(f"laplace.precisions: {config.precisions} must be one or more finite numbers above 0")
    if context.config.adapt.init_lora_weights == "pissa":
        raise ConfigError(
            "laplace: its prior is centered at A = B = 0, which with adapt.init_lora_weights: pissa is not the base;"
            " choose another initialization"
        )


def _at_bound(precision: float, config: Config) -> list[str]:
    """A note if the prior's precision is the smallest or largest candidate."""
    by_evidence = config.prior == "marginal_likelihood"
    bounds = PRECISION_BOUNDS if by_evidence else (min(config.precisions), max(config.precisions))
    if bounds[0] == bounds[1] or not any(math.isclose(precision, bound) for bound in bounds):
        return []
    which = "smallest" if math.isclose(precision, bounds[0]) else "largest"
    where = "allowed value" if by_evidence else "of laplace.precisions; a wider range may include a better one"
    return [f"the prior's precision, {precision:g}, is the {which} {where}"]


def _posterior(
    context: MethodContext, training: MethodTraining, columns: Tensor, config: Config
) -> tuple[LaplacePosterior, float]:
    """The curvature over the training rows, and their log-likelihood in nats."""
    trainer = training.trainer
    rows = trainer.rows.train
    num_parameters = int(columns.sum())
    numbers = sum(len(row.choices) for row in rows) * num_parameters
    if config.structure == "full" and numbers > MAX_NUMBERS:
        raise ConfigError(
            f"laplace.structure: the full curvature of {len(rows)} training rows has a square root of {numbers:,}"
            f" numbers, and the maximum is {MAX_NUMBERS:,}; use diagonal, laplace.layers last, or fewer rows"
        )
    factors: list[Tensor] = []
    diagonal_P = torch.zeros(num_parameters, dtype=torch.float64, device=columns.device)
    log_likelihood = 0.0
    weights = trainer.rows.weights
    progress, done = context.progress("curvature, training rows", len(rows)), 0
    for batch in row_gradients(training.pipeline.model, rows, trainer.token_budget, columns, trainer.precomputed.train):
        weight = batch.log_probs.new_tensor([1.0 if weights is None else weights[row.row] for row in batch.rows])
        factor_KP = curvature_factor(batch.log_probs, batch.gradients, weight)
        answers = [row.answer for row in batch.rows]
        log_likelihood += float((batch.log_probs[range(len(answers)), answers] * weight).sum())
        if config.structure == "full":
            factors.append(factor_KP)
        else:
            diagonal_P += factor_KP.double().square().sum(dim=0)
        done += len(batch.rows)
        progress(done)
    if config.structure == "full":
        return FullLaplace(torch.cat(factors)), log_likelihood
    return DiagonalLaplace(diagonal_P.to(training.values.dtype)), log_likelihood


@dataclass
class _Linearized:
    """The model linearized in the adapter around the trained one, under draws of a posterior.

    `log softmax(log p(x) + J(x) delta)` with J the gradients of the log-probabilities. The softmax is invariant to a
    constant added to a row's logits, so this equals the softmax of linearized logits.
    """

    pipeline: Pipeline
    columns: Tensor
    posterior: LaplacePosterior
    noise_SP: Tensor
    precision: float = field(default=1.0)

    def log_probs(
        self, rows: Sequence[EncodedExample], precisions: Sequence[float], progress: Progress | None = None
    ) -> np.ndarray:
        """float64 `[G, S, E, C]`."""
        width = max(len(row.choices) for row in rows)
        log_probs_GSEC = np.full((len(precisions), len(self.noise_SP), len(rows), width), -np.inf)
        done = 0
        for batch in row_gradients(self.pipeline.model, rows, self.pipeline.token_budget, self.columns):
            B, C, _ = batch.gradients.shape
            changes_GJS = self.posterior.changes(batch.gradients.flatten(0, 1), self.noise_SP, precisions)
            changes_GSBC = changes_GJS.unflatten(1, (B, C)).permute(0, 3, 1, 2).double()
            linear = (batch.log_probs.double() + changes_GSBC).log_softmax(dim=-1)
            log_probs_GSEC[:, :, done : done + B, :C] = linear.cpu().numpy()
            done += B
            if progress is not None:
                progress(done)
        return log_probs_GSEC

    def best_on(self, examples: Sequence[Example], precisions: Sequence[float], progress: Progress) -> float:
        """The precision with the lowest NLL of the draws' mixture on these examples."""
        rows = self.pipeline.encode(examples).rows
        labels = np.array([row.answer for row in rows])
        log_probs_GSEC = self.log_probs(rows, precisions, progress)
        return _lowest(precisions, [_score(log_probs_SEC, labels) for log_probs_SEC in log_probs_GSEC])

    def predict(self, examples: Sequence[Example], split: str, progress: Progress | None = None) -> Predictions:
        """Predictions with one member per draw."""
        encoded = self.pipeline.encode(examples)
        log_probs_SEC = self.log_probs(encoded.rows, [self.precision], progress)[0]
        return self.pipeline.predictions(examples, encoded.kept, log_probs_SEC, split)


def _write_draws(training: MethodTraining, state: _Linearized, mean_P: Tensor, precision: float) -> None:
    with torch.no_grad():
        training.values[:, state.columns] = mean_P + state.posterior.draws(state.noise_SP, precision)


def _best_draws_on(
    training: MethodTraining,
    state: _Linearized,
    mean_P: Tensor,
    examples: Sequence[Example],
    precisions: Sequence[float],
    progress: Progress,
) -> float:
    """The precision with the lowest NLL of the mixture of drawn adapters on these examples."""
    scores = []
    for precision in precisions:
        _write_draws(training, state, mean_P, precision)
        predictions = training.pipeline.predict_members(examples, "val", progress)
        scores.append(_score(predictions.log_probs_MEC, predictions.labels))
    return _lowest(precisions, scores)


def _score(log_probs_SEC: np.ndarray, labels_E: np.ndarray) -> float:
    """The mixture's NLL; infinite if draws overflow to NaN."""
    return math.inf if np.isnan(log_probs_SEC).any() else nll(mixture_log_probs(log_probs_SEC), labels_E)


def _lowest(precisions: Sequence[float], scores: Sequence[float]) -> float:
    """The precision with the lowest score.

    Raises:
        TrainingError: no score is finite.
    """
    best = int(np.argmin(scores))
    if not math.isfinite(scores[best]):
        raise TrainingError(
            f"laplace.precisions: the draws' validation NLL is finite with none of {tuple(precisions)}; add larger ones"
        )
    return precisions[best]
