"""Validation during training, and early stopping."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lorchestra.distributed import ALONE, Group
from lorchestra.inference.predict import member_passes, predict_rows
from lorchestra.inference.trunk import TrunkCache
from lorchestra.metrics.predictive import FloatArray, IntArray, apply_temperature
from lorchestra.metrics.temperature import regularized_temperature
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.training.checkpoint import TrainState
from lorchestra.training.failure import validation_failure
from lorchestra.types import EncodedExample


@dataclass(frozen=True)
class Validation:
    """Results of some members on the validation rows, by member."""

    nll: dict[int, float]
    """Mean NLL, in nats."""
    scaled_nll: dict[int, float]
    """The same after scaling with one temperature, fitted on these rows under the prior of `metrics.temperature`."""
    accuracy: dict[int, float]
    spread: dict[int, float]
    """Mean total variation distance from the mixture, in [0, 1]."""


def validate_members(
    model: EnsembleModel,
    rows: Sequence[EncodedExample],
    members: Sequence[int],
    token_budget: int,
    trunk: TrunkCache | None,
    progress: Callable[[int], None],
    block: range | None = None,
    group: Group = ALONE,
) -> Validation:
    """Evaluate some members on the validation rows.

    With several processes each predicts with its `block` of all members, which are those of its model, and gets the
    results of all.
    """
    block = range(model.num_members) if block is None else block
    passes = member_passes([m - block.start for m in members if m in block])
    log_probs = predict_rows(model, rows, passes, token_budget, trunk, progress)
    log_probs_MEC = torch.cat(group.gather_tensors(torch.from_numpy(log_probs))).numpy()
    answers = np.array([row.answer for row in rows])
    options = [tuple(map(str, row.choices)) for row in rows]
    probs_MEC = np.exp(log_probs_MEC)
    finite = np.isfinite(probs_MEC).all(axis=(1, 2))
    mixture_EC = probs_MEC[finite].mean(axis=0) if finite.any() else probs_MEC[0]
    result = Validation({}, {}, {}, {})
    for m, log_probs_EC, probs_EC in zip(members, log_probs_MEC, probs_MEC, strict=True):
        result.nll[m] = result.scaled_nll[m] = _mean_nll(log_probs_EC, answers)
        if np.isfinite(result.nll[m]):
            fit = regularized_temperature(log_probs_EC, answers, options)
            scaled_EC = log_probs_EC if fit.T is None else apply_temperature(log_probs_EC, fit.T)
            result.scaled_nll[m] = _mean_nll(scaled_EC, answers)
        result.accuracy[m] = float((log_probs_EC.argmax(axis=1) == answers).mean())
        result.spread[m] = float(np.abs(probs_EC - mixture_EC).sum(axis=1).mean() / 2)
    return result


def _mean_nll(log_probs_EC: FloatArray, answers: IntArray) -> float:
    return float(-log_probs_EC[np.arange(len(answers)), answers].mean())


def update_early_stopping(state: TrainState, m: int, val_nll: float, score: float, patience: int) -> bool:
    """Update one member after validation, which may stop it or fail it; true if its parameters are its best so far.

    The lowest `score` is the best, the validation NLL itself or after scaling (`train.criterion`).
    """
    member = state.members[m]
    best = member.best_nll if member.best_score is None else member.best_score
    if failure := validation_failure(val_nll):
        state.fail(m, state.step, failure)
    elif best is None or score < best:
        member.best_nll, member.best_score, member.best_step, member.waited = val_nll, score, state.step, 0
        return True
    else:
        member.waited += 1
        if 0 < patience <= member.waited:
            member.status = "stopped"
    return False
