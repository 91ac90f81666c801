"""Validation in mid-training: who has become better, who has waited too long, who has failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
) -> dict[str, Any]:
    """The named members' mean NLL, in nats, and accuracy on the validation rows; None for members not named."""
    found = predict_rows(model, rows, member_passes(members), token_budget, trunk, progress)
    answers = np.array([row.answer for row in rows])
    nlls: list[float | None] = [None] * model.num_members
    accuracies: list[float | None] = [None] * model.num_members
    for index, m in enumerate(members):
        nlls[m] = float(-found[index, np.arange(len(rows)), answers].mean())
        accuracies[m] = float((found[index].argmax(axis=1) == answers).mean())
    return {"val_nll": nlls, "val_accuracy": accuracies}


def update_early_stopping(
    state: TrainState, m: int, nll: float, patience: int, values_MP: Tensor, best_MP: Tensor
) -> None:
    """Draw the consequences of one member's validation NLL: keep a copy if it is its best, stop it, or fail it."""
    member = state.members[m]
    if what := validation_failure(nll):
        state.fail(m, state.step, what)
    elif member.best_nll is None or nll < member.best_nll:
        member.best_nll, member.best_step, member.waited = nll, state.step, 0
        best_MP[m].copy_(values_MP[m])
    else:
        member.waited += 1
        if 0 < patience <= member.waited:
            member.status = "stopped"
