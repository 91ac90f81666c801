"""Log-probabilities of rows under many members, in packed passes that compute the trunk once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorchestra.inference.packed import run_packed
from lorchestra.inference.state_cache import CachedState
from lorchestra.inference.trunk import TrunkCache
from lorchestra.metrics.early_exit import StopRule
from lorchestra.models.ensemble import EnsembleModel, OutputKind
from lorchestra.nn.kv_cache import PrefixCache
from lorchestra.nn.packing import BASE, Item, PackedBatch, forward_budget, plan_micro_batches, shareable_prefix
from lorchestra.nn.seeding import derive_seed
from lorchestra.types import EncodedExample

OnStates = Callable[[Sequence[int], Tensor], None]
"""Receives hidden states `[B, D]` at answer positions, with the indices of their items: pass * E + row."""
NO_STATES: Mapping[int, CachedState] = MappingProxyType({})
_PASSES_PER_GROUP = 4
"""With early exit, a group of rows fills this many passes, so that a member's last, partial pass is rare."""


@dataclass(frozen=True, slots=True)
class MemberPass:
    """One evaluation of every row by a member; a seed turns dropout on (MC dropout)."""

    member: int
    dropout_seed: int | None = None


class PrefixReuse:
    """Keeps the KV cache of the shared prefix from one `predict_rows` or `predict_early` call to the next.

    For streams of rows that are predicted chunk by chunk. Pass one object to all calls, and a new one after parameters
    change. A call uses the cache if its rows share the same prefix for the same members, and replaces it otherwise. The
    length of the prefix depends only on the rows of the call, so results do not depend on earlier calls.
    """

    def __init__(self) -> None:
        self._cached: tuple[list[int], PrefixCache] | None = None

    def prefix(
        self, model: EnsembleModel, rows: Sequence[EncodedExample], shared: int, members: set[int], token_budget: int
    ) -> PrefixCache | None:
        """The cache of the first `shared` tokens of the rows, for these members; None if nothing is shared."""
        if shared == 0 or len(rows) < 2:
            return None
        tokens, ascending = rows[0].prefix[:shared], sorted(members)
        if self._cached is None or self._cached[0] != ascending or self._cached[1].tokens != tokens:
            self._cached = None  # freed before the next one is made
            self._cached = ascending, model.prefill(tokens, ascending, forward_budget(token_budget, model.device))
        return self._cached[1]


def member_passes(members: Sequence[int]) -> list[MemberPass]:
    """One pass per member, dropout off."""
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
    states: Mapping[int, CachedState] = NO_STATES,
    on_states: OnStates | None = None,
) -> NDArray[np.float64]:
    """Normalized log-probabilities of every row's choices under every pass.

    Rows are processed in groups that fill one trunk pass; each then runs through the adapted layers once per pass.

    Args:
        model: the ensemble.
        rows: encoded examples.
        passes: evaluations of each row; all with dropout, or all without.
        token_budget: most tokens in a training step's micro-batch; see `forward_budget`.
        trunk: cached trunks of these rows; None computes them, once per row.
        progress: called with the number of rows done after each group.
        prefix_reuse: KV cache of a shared prefix from earlier calls.
        states: KV caches of the states of typed questions, by the rows' indices `row`, completed where they are not
            for the members of these passes. Not together with dropout.
        on_states: receives the passes' inputs of the output head at the last token of each row's prefix.

    Returns:
        float64 `[len(passes), E, C]`, -inf past a row's number of choices.
    """
    num_choices = max((len(row.choices) for row in rows), default=0)
    uses_trunk = model.trunk_layers > 0 and any(p.member != BASE for p in passes)
    shared = shareable_prefix(rows, dropout=any(p.dropout_seed is not None for p in passes))
    if trunk is not None:
        shared = trunk.shared
    prefix = (prefix_reuse or PrefixReuse()).prefix(model, rows, shared, {p.member for p in passes}, token_budget)
    log_probs = np.full((len(passes), len(rows), num_choices), -np.inf)
    done, budget = 0, forward_budget(token_budget, model.device)
    for state in states.values():
        state.prepare([p.member for p in passes])
    for group in _groups(rows, budget, shared, prefix, states):
        cache = trunk
        if cache is None and uses_trunk:
            below = {row: state.trunk for row, state in states.items()}
            group_rows = [rows[e] for e in group]
            cache = TrunkCache(model, group_rows, token_budget, shared=shared, prefix=prefix, states=below)
        items = [
            Item(p.member, rows[e], _mask_seed(p, rows[e]), index * len(rows) + e, _above(states, rows[e]))
            for index, p in enumerate(passes)
            for e in group
        ]
        run = partial(run_packed, model, items, budget, shared=shared, prefix=prefix, trunk=cache)
        _fill(log_probs, run() if on_states is None else _with_states(model, run, on_states))
        for e in group:
            if rows[e].row in states:
                states[rows[e].row].complete([p.member for p in passes])
        done += len(group)
        if progress is not None:
            progress(done)
    return log_probs


@torch.no_grad()
def predict_early(
    model: EnsembleModel,
    rows: Sequence[EncodedExample],
    rule: StopRule,
    token_budget: int,
    progress: Callable[[int], None] | None = None,
    prefix_reuse: PrefixReuse | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Log-probabilities of every row's choices under the first members, until the rule decides the row.

    A group of rows runs through the trunk once, then through the members up to one stop of the rule after the other;
    after each, decided rows drop out and the others are packed again.

    Args:
        model: the ensemble.
        rows: encoded examples.
        rule: decides which rows need no more members.
        token_budget: most tokens in a training step's micro-batch; see `forward_budget`.
        progress: called with the number of rows done after each group.
        prefix_reuse: as in `predict_rows`.

    Returns:
        float64 `[M, E, C]` as in `predict_rows`, -inf for members that were not used; and the number of members used,
        int64 `[E]`.
    """
    num_members = model.num_members
    num_choices = max((len(row.choices) for row in rows), default=0)
    shared = shareable_prefix(rows, dropout=False)
    prefix = (prefix_reuse or PrefixReuse()).prefix(model, rows, shared, set(range(num_members)), token_budget)
    log_probs = np.full((num_members, len(rows), num_choices), -np.inf)
    used = np.full(len(rows), num_members, dtype=np.int64)
    done = 0
    budget = forward_budget(token_budget, model.device)
    for undecided in _groups(rows, _PASSES_PER_GROUP * budget, shared, prefix):
        done += len(undecided)
        cache = None
        if model.trunk_layers > 0:
            cache = TrunkCache(model, [rows[e] for e in undecided], token_budget, shared=shared, prefix=prefix)
        first, stop = 0, rule.first_stop(num_members)
        while undecided:
            items = [Item(m, rows[e], None, m * len(rows) + e) for m in range(first, stop) for e in undecided]
            _fill(log_probs, run_packed(model, items, budget, shared=shared, prefix=prefix, trunk=cache))
            decided = rule.is_decided(log_probs[:stop, undecided], num_members)
            used[np.array(undecided)[decided]] = stop
            undecided = [e for e, is_decided in zip(undecided, decided, strict=True) if not is_decided]
            first, stop = stop, rule.next_stop(stop, num_members)
        if progress is not None:
            progress(done)
    return log_probs, used


def _mask_seed(member_pass: MemberPass, row: EncodedExample) -> int | None:
    return None if member_pass.dropout_seed is None else derive_seed(member_pass.dropout_seed, row.row)


def _above(states: Mapping[int, CachedState], row: EncodedExample) -> PrefixCache | None:
    """The cache of a row's state from the first adapted layer on."""
    return states[row.row].members if row.row in states else None


def _groups(
    rows: Sequence[EncodedExample],
    budget: int,
    shared: int,
    prefix: PrefixCache | None,
    states: Mapping[int, CachedState] = NO_STATES,
) -> Iterator[list[int]]:
    """Yield groups of row indices; the rows of a group fill one pass of the base."""
    below = {row: state.trunk for row, state in states.items()}
    items = [Item(BASE, row, None, e, below.get(row.row)) for e, row in enumerate(rows)]
    for group in plan_micro_batches(items, budget, shared, prefix):
        yield [item.index for item in group]


def _with_states(
    model: EnsembleModel, run: Callable[[OutputKind], Iterable[tuple[PackedBatch, Tensor]]], on_states: OnStates
) -> Iterator[tuple[PackedBatch, Tensor]]:
    """Log-probabilities of passes whose hidden states are read on the way."""
    for batch, states_KD in run("head_states"):
        on_states([item.index for item in batch.items], states_KD[batch.scoring.prefix_rows])
        yield batch, model.forward(batch, "log_probs", head_states=states_KD)


def _fill(log_probs: NDArray[np.float64], results: Iterable[tuple[PackedBatch, Tensor]]) -> None:
    """Write each item's log-probabilities to row `item.index` of `log_probs`, viewed as `[M E, C]`."""
    flat = log_probs.reshape(log_probs.shape[0] * log_probs.shape[1], log_probs.shape[2])
    for batch, outputs in results:
        values = outputs.double().cpu().numpy()
        for item, row in zip(batch.items, values, strict=True):
            flat[item.index, : len(row)] = row
