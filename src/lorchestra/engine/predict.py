"""Predictions of all members in packed passes; the trunk runs once for the ensemble."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lorchestra.core.packing import BASE, Item, pack, plan_micro_batches, shareable_prefix
from lorchestra.core.seeding import derive_seed
from lorchestra.engine.trunk import TrunkCache
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.types import EncodedExample


@dataclass(frozen=True, slots=True)
class Pass:
    """One evaluation of every row: by a member, and with dropout kept on where a seed is given (MC dropout)."""

    member: int
    dropout_seed: int | None = None


def member_passes(members: Sequence[int]) -> list[Pass]:
    """One pass a member, dropout off."""
    return [Pass(member) for member in members]


@torch.no_grad()
def predict_rows(
    model: EnsembleModel,
    rows: Sequence[EncodedExample],
    passes: Sequence[Pass],
    token_budget: int,
    trunk: TrunkCache | None = None,
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.float64]:
    """Normalized log-probabilities of every row's choices under every pass.

    Rows are taken in groups that fill one trunk pass; each group then goes through the adapted layers once a pass.

    Args:
        model: the ensemble.
        rows: encoded examples.
        passes: what evaluates each row; all with dropout, or all without.
        token_budget: most tokens in one packed micro-batch.
        trunk: cached trunks of these rows; without it they are computed, once a row.
        progress: called with the number of rows done after each group.

    Returns:
        float64 `[len(passes), E, C]`, -inf past a row's number of choices.
    """
    num_choices = max((len(row.choices) for row in rows), default=0)
    by_trunk = model.trunk_layers > 0 and any(p.member != BASE for p in passes)
    shared = shareable_prefix(rows, dropout=any(p.dropout_seed is not None for p in passes))
    if trunk is not None:
        shared = trunk.shared
    log_probs = np.full((len(passes), len(rows), num_choices), -np.inf)
    place = {row.row: e for e, row in enumerate(rows)}
    done = 0
    for group in plan_micro_batches([Item(BASE, row) for row in rows], token_budget, shared):
        examples = [item.example for item in group]
        cache = trunk
        if cache is None and by_trunk:
            cache = TrunkCache(model, examples, token_budget, shared=shared)
        wanted = [
            (index, Item(p.member, row, None if p.dropout_seed is None else derive_seed(p.dropout_seed, row.row)))
            for index, p in enumerate(passes)
            for row in examples
        ]
        pass_of = {id(item): index for index, item in wanted}
        for items in plan_micro_batches([item for _, item in wanted], token_budget, shared):
            batch = pack(items, model.device, shared)
            found = model.log_probs(batch, cache.gather(batch) if cache is not None else None).double().cpu().numpy()
            for b, item in enumerate(items):
                log_probs[pass_of[id(item)], place[item.example.row], : found.shape[1]] = found[b]
        done += len(examples)
        if progress is not None:
            progress(done)
    return log_probs
