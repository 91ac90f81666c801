"""Packed ragged batches: (member, row) pairs on one token axis `[1, N]`, without padding.

Rows are sorted by member, so that each member owns one contiguous span; `layout` says what lies where.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lorchestra.core.dropout import token_keys
from lorchestra.core.layout import Packing, Segment, Span
from lorchestra.core.prefix import KeptPrefix
from lorchestra.core.scoring import Scoring, score_places
from lorchestra.types import EncodedExample

FORWARD_ROOM = 2.5
"""Tokens of a forward pass alone for one of a training step's, on a CPU."""
LEAST_SHARED = 16
"""Common first tokens from which sharing them is worth the shorter attention segments."""


@dataclass(frozen=True, slots=True)
class Item:
    """One row for one member.

    `dropout_seed` is None where dropout is off (evaluation), else the seed of this member, step and row.
    """

    member: int
    example: EncodedExample
    dropout_seed: int | None = None


@dataclass(frozen=True)
class PackedBatch:
    """A micro-batch: its items in packed order, where they lie, and how they are scored."""

    items: tuple[Item, ...]
    packing: Packing
    scoring: Scoring
    shared: int = 0
    """First tokens that all rows have in common, laid once at the start of each member's span, or kept from before."""


def shareable_prefix(rows: Sequence[EncodedExample], dropout: bool) -> int:
    """How many first tokens are worth computing once for all rows; 0 under dropout, whose masks are a row's own."""
    shared = 0 if dropout else common_prefix(rows)
    return shared if shared >= LEAST_SHARED else 0


def common_prefix(rows: Sequence[EncodedExample]) -> int:
    """How many first tokens all rows share; each keeps at least the last token of its prefix for itself."""
    if not rows:
        return 0
    first, last = min(row.prefix for row in rows), max(row.prefix for row in rows)
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return min(shared, min(len(row.prefix) for row in rows) - 1)


def forward_budget(token_budget: int, device: torch.device) -> int:
    """Most tokens of a micro-batch that keeps nothing for a backward pass, where `token_budget` bounds those that do.

    On a CPU, whose budget is small, forward passes gain a tenth of their speed by more.
    """
    return round(FORWARD_ROOM * token_budget) if device.type == "cpu" else token_budget


def plan_micro_batches(
    items: Sequence[Item], token_budget: int, shared: int = 0, prefix: KeptPrefix | None = None
) -> list[list[Item]]:
    """Cut items, sorted by member (a stable sort), into micro-batches of at most `token_budget` tokens.

    A row longer than the budget gets a micro-batch of its own: the longest row sets the least. `shared` first tokens of
    every row count once a member and micro-batch, or not at all where they are kept in `prefix` (see `pack`).
    """
    fed = shared if prefix is None else 0
    batches: list[list[Item]] = []
    room = 0
    for item in sorted(items, key=lambda item: item.member):
        own = item.example.num_tokens - shared
        size = own if batches and batches[-1][-1].member == item.member else own + fed
        if not batches or size > room:
            batches.append([])
            room, size = token_budget, own + fed
        batches[-1].append(item)
        room -= size
    return batches


def pack(
    items: Sequence[Item], device: torch.device | str = "cpu", shared: int = 0, prefix: KeptPrefix | None = None
) -> PackedBatch:
    """Flatten items, sorted by member, onto one token axis.

    Args:
        items: the rows of one micro-batch.
        device: where the index tensors go.
        shared: number of first tokens that all rows have in common (`common_prefix`); each member computes them once,
            as a segment that its rows have as context.
        prefix: these tokens, already kept for every member: then they are not in the batch at all.

    Raises:
        ValueError: no items, items not sorted by member, a prefix that is not the shared one, or a shared prefix
            together with dropout (whose masks are a row's own).
    """
    if not items:
        raise ValueError("cannot pack an empty list of items")
    if any(a.member > b.member for a, b in itertools.pairwise(items)):
        raise ValueError("items must be sorted by member: a member's tokens are one contiguous span")
    if shared and any(item.dropout_seed is not None for item in items):
        raise ValueError("rows under dropout cannot share a prefix: every row has masks of its own")
    if prefix is not None and len(prefix) != shared:
        raise ValueError(f"the rows share {shared} first tokens, and {len(prefix)} are kept")
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    spans: list[Span] = []
    choice_starts: list[list[int]] = []
    prefix_ends: list[int] = []
    context: tuple[int, ...] = ()
    for item in items:
        start = len(ids)
        if shared and prefix is None and not (spans and spans[-1].member == item.member):
            context = (len(segments),)
            ids.extend(item.example.prefix[:shared])
            positions.extend(range(shared))
            segments.append(Segment(start, len(ids)))
        prefix_ends.append(len(ids) + len(item.example.prefix) - shared - 1)
        kept_for = None if prefix is None else item.member
        choice_starts.append(_append_row(item.example, ids, positions, segments, shared, context, kept_for))
        if spans and spans[-1].member == item.member:
            spans[-1] = Span(item.member, spans[-1].start, len(ids))
        else:
            spans.append(Span(item.member, start, len(ids)))
    packing = Packing(
        input_ids=torch.tensor([ids], dtype=torch.int64, device=device),
        position_ids=torch.tensor([positions], dtype=torch.int64, device=device),
        segments=tuple(segments),
        spans=tuple(spans),
        dropout_keys=_dropout_keys(items, device),
        prefix=prefix,
    )
    return PackedBatch(
        tuple(items),
        packing,
        score_places([item.example for item in items], prefix_ends, choice_starts, device),
        shared,
    )


def pack_prefix(prefix: KeptPrefix, members: Sequence[int], device: torch.device | str = "cpu") -> PackedBatch:
    """The prefix itself, once for each of some members (ascending): the pass over it keeps what rows need."""
    row = EncodedExample(0, prefix.tokens, ((0,),), None)  # the choice is never fed, and its score not looked at
    batch = pack([Item(member, row) for member in members], device)
    return replace(batch, packing=replace(batch.packing, prefix=prefix, fills=True))


def _append_row(
    example: EncodedExample,
    ids: list[int],
    positions: list[int],
    segments: list[Segment],
    shared: int,
    context: tuple[int, ...],
    kept_for: int | None,
) -> list[int]:
    """Append one row's own tokens and segments; return, per choice, the packed position of its first fed token.

    A choice's last token is only predicted, never fed, so a choice of one token adds nothing. Of the `shared` first
    tokens, if any, `context` is the segment, or they are kept for the member `kept_for`.
    """
    start = len(ids)
    ids.extend(example.prefix[shared:])
    positions.extend(range(shared, len(example.prefix)))
    segments.append(Segment(start, len(ids), context, kept_for))
    seen = (*context, len(segments) - 1)
    starts = []
    for choice in example.choices:
        starts.append(len(ids))
        fed = choice[:-1]
        if fed:
            segments.append(Segment(len(ids), len(ids) + len(fed), seen, kept_for))
            ids.extend(fed)
            positions.extend(range(len(example.prefix), len(example.prefix) + len(fed)))
    return starts


def _dropout_keys(items: Sequence[Item], device: torch.device | str) -> Tensor | None:
    seeds = [item.dropout_seed for item in items if item.dropout_seed is not None]
    if not seeds:
        return None
    if len(seeds) != len(items):
        raise ValueError("either all items of a batch carry a dropout seed, or none")
    return token_keys(seeds, [item.example.num_tokens for item in items], device)
