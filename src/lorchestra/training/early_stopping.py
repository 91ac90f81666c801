"""Validation during training, and early stopping."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from lorchestra.inference.predict import member_passes, predict_rows
from lorchestra.inference.trunk import TrunkCache
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.training.checkpoint import TrainState
from lorchestra.training.failure import validation_failure
from lorchestra.types import EncodedExample


def validate_members(
    model: EnsembleModel,
    rows: Sequence[EncodedExample],
    members: Sequence[int],
    token_budget: int,
    trunk: TrunkCache | None,
    progress: Callable[[int], None],
) -> tuple[dict[int, float], dict[int, float]]:
    """Mean NLL, in nats, and accuracy of some members on the validation rows, by member."""
    log_probs_MEC = predict_rows(model, rows, member_passes(members), token_budget, trunk, progress)
    answers = np.array([row.answer for row in rows])
    nlls, accuracies = {}, {}
    for m, log_probs_EC in zip(members, log_probs_MEC, strict=True):
        nlls[m] = float(-log_probs_EC[np.arange(len(rows)), answers].mean())
        accuracies[m] = float((log_probs_EC.argmax(axis=1) == answers).mean())
    return nlls, accuracies


def update_early_stopping(
    state: TrainState, m: int, nll: float, patience: int, values_MP: Tensor, best_MP: Tensor
) -> None:
    """Update one member after validation: copy its parameters if they are its best so far, or stop it, or fail it."""
    member = state.members[m]
    if failure := validation_failure(nll):
        state.fail(m, state.step, failure)
    elif member.best_nll is None or nll < member.best_nll:
        member.best_nll, member.best_step, member.waited = nll, state.step, 0
        best_MP[m].copy_(values_MP[m])
    else:
        member.waited += 1
        if 0 < patience <= member.waited:
            member.status = "stopped"
