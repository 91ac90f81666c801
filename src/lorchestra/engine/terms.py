"""The terms of the members' objectives, composed by each member's own settings; each has a name and is logged under it.

A row term is a function of a row's outputs under its member and under the base, a parameter term one of the member's
parameters. A member's objective is the weighted mean of its row terms over a step's rows, plus its parameter terms.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorchestra.core.bank import AdapterBank, decay_products
from lorchestra.core.objective import cross_entropy, kl_to_base, smoothing
from lorchestra.engine.members import MemberSettings
from lorchestra.engine.outputs import RowOutputs


def row_terms(settings: Sequence[MemberSettings], outputs: RowOutputs) -> dict[str, Tensor]:
    """Each term by row, `[B]`, with its strength: `loss` is the cross-entropy, the others are penalties.

    A term that no member's settings ask for is left out.
    """
    terms = {"loss": cross_entropy(outputs.log_probs, outputs.answers)}
    if any(own.regularize.kl_beta > 0 for own in settings):
        terms["kl_to_base"] = _kl_terms(settings, outputs)
    if any(own.regularize.label_smoothing > 0 for own in settings):
        shares = outputs.log_probs.new_tensor([settings[m].regularize.label_smoothing for m in outputs.members])
        terms["label_smoothing"] = shares * smoothing(outputs.log_probs, outputs.answers)
    return terms


def _kl_terms(settings: Sequence[MemberSettings], outputs: RowOutputs) -> Tensor:
    chosen = [settings[m].regularize for m in outputs.members]
    total = torch.zeros_like(outputs.log_probs[:, 0])
    for over, direction in sorted({(own.kl_over, own.kl_direction) for own in chosen if own.kl_beta > 0}):
        places = [
            b
            for b, own in enumerate(chosen)
            if own.kl_beta > 0 and (own.kl_over, own.kl_direction) == (over, direction)
        ]
        index = torch.tensor(places, device=total.device)
        if over == "options":
            assert outputs.base_log_probs is not None
            pair = outputs.log_probs[index], outputs.base_log_probs[index]
        else:
            assert outputs.vocabulary is not None
            found = torch.tensor([outputs.vocabulary_rows.index(b) for b in places], device=total.device)
            pair = outputs.vocabulary[0][found], outputs.vocabulary[1][found]
        betas = total.new_tensor([chosen[b].kl_beta for b in places])
        total = total.index_add(0, index, betas * kl_to_base(*pair, direction))
    return total


def add_parameter_terms(bank: AdapterBank, settings: Sequence[MemberSettings]) -> dict[str, Tensor]:
    """Add the gradients of the terms that depend on parameters alone; returns the terms, float64 `[M]`."""
    strengths = [own.regularize.weight_decay_ba for own in settings]
    if not any(strengths):
        return {}
    return {"weight_decay_ba": decay_products(bank, strengths, [own.adapter.scaling for own in settings])}


def decay_penalties(bank: AdapterBank, settings: Sequence[MemberSettings]) -> dict[str, Tensor]:
    """What decoupled decay pulls down, `0.5 * strength * squared norm`, float64 `[M]`; for the log, never derived."""
    terms = {}
    for name, columns in {"weight_decay_a": ~bank.is_B, "weight_decay_b": bank.is_B}.items():
        strengths = [getattr(own.regularize, name) for own in settings]
        if any(strengths):
            # one member after the other: no copy of all members' parameters
            squares = torch.stack([(values * columns).square().sum() for values in bank.values]).double()
            terms[name] = 0.5 * squares.new_tensor(strengths) * squares
    return terms
