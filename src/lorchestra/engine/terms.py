"""The terms of the members' objectives, composed by each member's own settings; each has a name and is logged under it.

A row term is a function of a row's outputs under its member and under the base, a parameter term one of the member's
parameters. A member's objective is the weighted mean of its row terms over a step's rows, plus its parameter terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorchestra.core.bank import AdapterBank
from lorchestra.core.objective import cross_entropy, kl_to_base
from lorchestra.engine.members import MemberSettings


@dataclass(frozen=True)
class RowOutputs:
    """What a packed micro-batch gave, row by row."""

    members: Sequence[int]
    """Whose row it is."""
    answers: Tensor
    """int64 `[B]`."""
    log_probs: Tensor
    """Of the choices, `[B, C]`."""
    base_log_probs: Tensor | None = None
    """The base's, `[B, C]`; None where no member needs them."""


def row_terms(settings: Sequence[MemberSettings], outputs: RowOutputs) -> dict[str, Tensor]:
    """Each term by row, `[B]`, with its strength: `loss` is the cross-entropy, the others are penalties.

    A term that no member's settings ask for is left out.
    """
    terms = {"loss": cross_entropy(outputs.log_probs, outputs.answers)}
    if any(own.regularize.kl_beta > 0 for own in settings):
        terms["kl_to_base"] = _kl_terms(settings, outputs)
    return terms


def _kl_terms(settings: Sequence[MemberSettings], outputs: RowOutputs) -> Tensor:
    assert outputs.base_log_probs is not None
    log_probs, base = outputs.log_probs, outputs.base_log_probs.to(outputs.log_probs.dtype)
    chosen = [settings[m].regularize for m in outputs.members]
    total = torch.zeros_like(log_probs[:, 0])
    for direction in sorted({own.kl_direction for own in chosen if own.kl_beta > 0}):
        places = [b for b, own in enumerate(chosen) if own.kl_beta > 0 and own.kl_direction == direction]
        betas = total.new_tensor([chosen[b].kl_beta for b in places])
        index = torch.tensor(places, device=total.device)
        total = total.index_add(0, index, betas * kl_to_base(log_probs[index], base[index], direction))
    return total


def decay_penalties(bank: AdapterBank, settings: Sequence[MemberSettings]) -> dict[str, Tensor]:
    """What decoupled decay pulls down, `0.5 * strength * squared norm`, float64 `[M]`; for the log, never derived."""
    strengths = [own.regularize.weight_decay_b for own in settings]
    if not any(strengths):
        return {}
    squares = (bank.values * bank.is_B).square().sum(dim=1).double()
    return {"weight_decay_b": 0.5 * squares.new_tensor(strengths) * squares}
