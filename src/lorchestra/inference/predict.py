"""Predictions of all members in packed passes; the trunk runs once for the ensemble."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lorchestra.inference.trunk import TrunkCache
from lorchestra.metrics.early_exit import ExitRule
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.nn.kv_cache import PrefixCache
from lorchestra.nn.packing import BASE, Item, forward_budget, pack, plan_micro_batches, shareable_prefix
from lorchestra.nn.seeding import derive_seed
from lorchestra.types import EncodedExample

_PASSES_A_GROUP = 4
"""With early exit, rows of this many full passes are taken together: so a member's last, small pass is rare."""


@dataclass(frozen=True, slots=True)
class MemberPass:
    """One evaluation of every row: by a member, and with dropout kept on where a seed is given (MC dropout)."""

    member: int
    dropout_seed: int | None = None


class PrefixReuse:
    """Shared first tokens, kept for every member from one call to the next while the parameters stand still.

    How many tokens are shared is decided by the rows of a call alone: so the same rows have the same answers to the
    bit, whatever was asked before.
    """

    def __init__(self) -> None:
        self._kept: tuple[list[int], PrefixCache] | None = None

    def prefix(
        self, model: EnsembleModel, rows: Sequence[EncodedExample], shared: int, members: set[int], token_budget: int
    ) -> PrefixCache | None:
        """The first `shared` tokens of the rows, kept for these members; None where there are none."""
        if shared == 0 or len(rows) < 2:
            return None
        tokens, asked = rows[0].prefix[:shared], sorted(members)
        if self._kept is None or self._kept[0] != asked or self._kept[1].tokens != tokens:
            self._kept = None  # before the next one is made, so that memory holds one
            self._kept = asked, model.prefill(tokens, asked, forward_budget(token_budget, model.device))
        return self._kept[1]


def member_passes(members: Sequence[int]) -> list[MemberPass]:
    """One pass a member, dropout off."""
    return [MemberPass(member) for member in members]


@torch.no_grad()
def predict_rows(
    model: EnsembleModel,
    rows: Sequence[EncodedExample],
    passes: Sequence[MemberPass],
    token_budget: int,
    trunk: TrunkCache | None = None,
    progress: Callable[[int], None] | None = None,
    prefix_reuse: PrefixReuse | None = None,
) -> NDArray[np.float64]:
    """Normalized log-probabilities of every row's choices under every pass.

    Rows are taken in groups that fill one trunk pass; each group then goes through the adapted layers once a pass.

    Args:
        model: the ensemble.
        rows: encoded examples.
        passes: what evaluates each row; all with dropout, or all without.
        token_budget: most tokens in a training step's micro-batch; see `forward_budget`.
        trunk: cached trunks of these rows; without it they are computed, once a row.
        progress: called with the number of rows done after each group.
        keeper: has the shared first tokens of earlier rows, and keeps those of these for later ones.

    Returns:
        float64 `[len(passes), E, C]`, -inf past a row's number of choices.
    """
    num_choices = max((len(row.choices) for row in rows), default=0)
    by_trunk = model.trunk_layers > 0 and any(p.member != BASE for p in passes)
    shared = shareable_prefix(rows, dropout=any(p.dropout_seed is not None for p in passes))
    if trunk is not None:
        shared = trunk.shared
    prefix = (prefix_reuse or PrefixReuse()).prefix(model, rows, shared, {p.member for p in passes}, token_budget)
    log_probs = np.full((len(passes), len(rows), num_choices), -np.inf)
    place = {row.row: e for e, row in enumerate(rows)}
    done = 0
    room = forward_budget(token_budget, model.device)
    for group in plan_micro_batches([Item(BASE, row) for row in rows], room, shared, prefix):
        examples = [item.example for item in group]
        cache = trunk
        if cache is None and by_trunk:
            cache = TrunkCache(model, examples, token_budget, shared=shared, prefix=prefix)
        wanted = [
            (index, Item(p.member, row, None if p.dropout_seed is None else derive_seed(p.dropout_seed, row.row)))
            for index, p in enumerate(passes)
            for row in examples
        ]
        _evaluate(model, wanted, token_budget, shared, prefix, cache, place, log_probs)
        done += len(examples)
        if progress is not None:
            progress(done)
    return log_probs


@torch.no_grad()
def predict_early(
    model: EnsembleModel,
    rows: Sequence[EncodedExample],
    rule: ExitRule,
    token_budget: int,
    progress: Callable[[int], None] | None = None,
    prefix_reuse: PrefixReuse | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Log-probabilities of every row's choices under as many members, in their order, as the rule asks for.

    Groups of rows go through the trunk once, then through member after member; after each, decided rows drop out and
    the others are packed anew.

    Args:
        model: the ensemble.
        rows: encoded examples.
        rule: says which rows need no more members.
        token_budget: most tokens in a training step's micro-batch; see `forward_budget`.
        progress: called with the number of rows done after each group.
        keeper: as in `predict_rows`.

    Returns:
        float64 `[M, E, C]`, as `predict_rows`, -inf for members that were not asked; and how many were, int64 `[E]`.
    """
    num_members = model.num_members
    num_choices = max((len(row.choices) for row in rows), default=0)
    shared = shareable_prefix(rows, dropout=False)
    prefix = (prefix_reuse or PrefixReuse()).prefix(model, rows, shared, set(range(num_members)), token_budget)
    log_probs = np.full((num_members, len(rows), num_choices), -np.inf)
    used = np.full(len(rows), num_members, dtype=np.int64)
    place = {row.row: e for e, row in enumerate(rows)}
    done = 0
    room = _PASSES_A_GROUP * forward_budget(token_budget, model.device)
    for group in plan_micro_batches([Item(BASE, row) for row in rows], room, shared, prefix):
        undecided = [item.example for item in group]
        cache = None
        if model.trunk_layers > 0:
            cache = TrunkCache(model, undecided, token_budget, shared=shared, prefix=prefix)
        seen, stop = 0, rule.first_stop(num_members)
        while undecided:
            wanted = [(m, Item(m, row)) for m in range(seen, stop) for row in undecided]
            _evaluate(model, wanted, token_budget, shared, prefix, cache, place, log_probs)
            places = np.array([place[row.row] for row in undecided])
            decided = rule.is_decided(log_probs[:stop, places], num_members)
            used[places[decided]] = stop
            undecided = [row for row, out in zip(undecided, decided, strict=True) if not out]
            seen, stop = stop, stop + 1
        done += len(group)
        if progress is not None:
            progress(done)
    return log_probs, used


def _evaluate(
    model: EnsembleModel,
    wanted: Sequence[tuple[int, Item]],
    token_budget: int,
    shared: int,
    prefix: PrefixCache | None,
    cache: TrunkCache | None,
    place: Mapping[int, int],
    log_probs: NDArray[np.float64],
) -> None:
    """Evaluate items in packed passes; an item's answer goes to its index and its row's place in `log_probs`."""
    index_of = {id(item): index for index, item in wanted}
    room = forward_budget(token_budget, model.device)
    for items in plan_micro_batches([item for _, item in wanted], room, shared, prefix):
        batch = pack(items, model.device, shared, prefix)
        found = model.log_probs(batch, cache.gather(batch) if cache is not None else None).double().cpu().numpy()
        for b, item in enumerate(items):
            log_probs[index_of[id(item)], place[item.example.row], : found.shape[1]] = found[b]
