"""Packed ragged batches: (member, row) pairs on one token axis `[1, N]`, without padding.

Rows are sorted by member, so that each member has one contiguous span. A row is a tree of segments: its prefix, and one
segment for what each choice adds to it. A segment's tokens attend causally to themselves and fully to the segments of
their context; nothing else is visible, whatever shares the batch. What is read of a batch, such as the choices' scores,
is not decided here (see `nn.scoring`): a row may be tokens without choices.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lorchestra.nn.dropout import token_keys
from lorchestra.nn.kv_cache import PrefixCache
from lorchestra.nn.scoring import ChoiceScoring, score_positions
from lorchestra.types import EncodedExample

BASE = -1
"""The member index of the base itself: no adapter is applied."""
FORWARD_BUDGET_FACTOR = 2.5
"""Tokens of a forward pass alone for one of a training step's, on a CPU."""
MIN_SHARED_PREFIX = 16
"""Common first tokens from which sharing them is worth the shorter attention segments."""
_MAX_COPIES, _MAX_SEGMENTS = 3, 512
"""Bounds of a group of segments: its keys, in multiples of the batch's tokens; and its segments."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens `start:stop` of the packed axis, and the indices of the segments they see before themselves.

    Before all of these come the cached first tokens of member `cached_for`, if any.
    """

    start: int
    stop: int
    context: tuple[int, ...] = ()
    cached_for: int | None = None

    @property
    def sees_others(self) -> bool:
        """Whether anything but its own tokens is visible to it."""
        return bool(self.context) or self.cached_for is not None


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `start:stop` of the packed axis: all tokens of one member."""

    member: int
    start: int
    stop: int


@dataclass(frozen=True)
class Bucket:
    """Segments of similar length, to be computed as one padded batch (on CUDA, where many small kernels cost most)."""

    slots: Tensor
    """int64 `[S, T]`: the packed token in each slot; N, one past the last token, in padding."""
    filled: Tensor
    """int64 `[n]`: the flattened slots that hold tokens."""
    tokens: Tensor
    """int64 `[n]`: the tokens in them."""


@dataclass(frozen=True)
class SegmentGroup:
    """Neighboring segments that go through one call of a variable-length attention kernel.

    Names of bounds as in FlashAttention.
    """

    segments: slice
    """Their indices among all segments."""
    tokens: slice
    """Their tokens."""
    cu_seqlens_q: Tensor
    """int32 `[S + 1]`: where each segment's queries start, and where the last one's end."""
    cu_seqlens_k: Tensor
    """int32 `[S + 1]`: the same for the keys that each sees: cached ones, its context and its tokens, in this order."""
    max_seqlen_q: int
    max_seqlen_k: int


@dataclass(frozen=True)
class Packing:
    """Layout of the packed token axis: all that attention and the LoRA layers need to know."""

    input_ids: Tensor
    """int64 `[1, N]`."""
    position_ids: Tensor
    """int64 `[1, N]`: each token's position in its row; a choice continues its prefix."""
    segments: tuple[Segment, ...]
    spans: tuple[Span, ...]
    dropout_keys: Tensor | None
    """int64 `[N]`, or None where dropout is off."""
    prefix: PrefixCache | None = None
    """First tokens with cached keys and values: seen by the segments, or written by this very pass (`prefill`)."""
    prefill: bool = False
    """Whether each span is the prefix itself, to be cached for its member."""

    @property
    def num_tokens(self) -> int:
        """N."""
        return int(self.input_ids.shape[1])

    @cached_property
    def span_ends(self) -> Tensor:
        """int32 `[number of spans]`: where each span stops, as grouped products take it."""
        return torch.tensor([span.stop for span in self.spans], dtype=torch.int32, device=self.input_ids.device)

    @cached_property
    def segment_groups(self) -> tuple[SegmentGroup, ...]:
        """All segments in groups: the keys that segments see are concatenated per group, which bounds the copies."""
        lengths = [s.stop - s.start for s in self.segments]
        cached = [0 if s.cached_for is None or self.prefix is None else len(self.prefix) for s in self.segments]
        keys = [
            n + c + sum(lengths[i] for i in s.context) for n, c, s in zip(lengths, cached, self.segments, strict=True)
        ]
        groups: list[SegmentGroup] = []
        first = held = 0
        for index in range(len(lengths) + 1):
            full = index - first >= _MAX_SEGMENTS or held + sum(keys[index : index + 1]) > _MAX_COPIES * sum(lengths)
            if index == len(lengths) or (full and index > first):
                groups.append(self._group(first, lengths[first:index], keys[first:index]))
                first, held = index, 0
            held += sum(keys[index : index + 1])
        return tuple(groups)

    def _group(self, first: int, queries: list[int], keys: list[int]) -> SegmentGroup:
        def cumulative(lengths: list[int]) -> Tensor:
            ends = [0, *itertools.accumulate(lengths)]
            return torch.tensor(ends, dtype=torch.int32, device=self.input_ids.device)

        start = self.segments[first].start
        return SegmentGroup(
            slice(first, first + len(queries)),
            slice(start, start + sum(queries)),
            cumulative(queries),
            cumulative(keys),
            max(queries),
            max(keys),
        )

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """The segments that see themselves only; none is shorter than half of its bucket's longest."""
        alone = sorted((s for s in self.segments if not s.sees_others), key=lambda s: s.start - s.stop)
        groups: list[list[Segment]] = []
        for segment in alone:
            if not groups or 2 * (segment.stop - segment.start) < groups[-1][0].stop - groups[-1][0].start:
                groups.append([])
            groups[-1].append(segment)
        return tuple(self._bucket(group) for group in groups)

    def _bucket(self, segments: Sequence[Segment]) -> Bucket:
        starts = torch.tensor([[s.start] for s in segments])
        lengths = torch.tensor([[s.stop - s.start] for s in segments])
        positions = torch.arange(int(lengths[0]))
        slots = torch.where(positions < lengths, starts + positions, self.num_tokens)
        filled = (slots.flatten() < self.num_tokens).nonzero().squeeze(1)
        device = self.input_ids.device
        return Bucket(slots.to(device), filled.to(device), slots.flatten()[filled].to(device))


@dataclass(frozen=True, slots=True)
class Item:
    """One row for one member.

    `dropout_seed` is None where dropout is off (evaluation), else the seed of this member, step and row. `index` is
    where the caller wants the result; packing reorders items.
    """

    member: int
    example: EncodedExample
    dropout_seed: int | None = None
    index: int = 0


@dataclass(frozen=True)
class PackedBatch:
    """A micro-batch: its items in packed order, and their layout."""

    items: tuple[Item, ...]
    packing: Packing
    last_positions: tuple[int, ...]
    """Packed position of each item's last prefix token, after which its answer starts."""
    choice_starts: tuple[tuple[int, ...], ...]
    """Per item and choice, the packed position of the choice's first fed token."""
    shared: int = 0
    """First tokens that all rows have in common, at the start of each member's span or cached."""

    @cached_property
    def scoring(self) -> ChoiceScoring:
        """How the items' choices are scored; items without choices have no score."""
        examples = [item.example for item in self.items]
        return score_positions(examples, self.last_positions, self.choice_starts, self.packing.input_ids.device)


def shareable_prefix(rows: Sequence[EncodedExample], dropout: bool) -> int:
    """How many first tokens are worth computing once for all rows; 0 under dropout, whose masks differ per row."""
    shared = 0 if dropout else common_prefix(rows)
    return shared if shared >= MIN_SHARED_PREFIX else 0


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
    return round(FORWARD_BUDGET_FACTOR * token_budget) if device.type == "cpu" else token_budget


def plan_micro_batches(
    items: Sequence[Item], token_budget: int, shared: int = 0, prefix: PrefixCache | None = None
) -> list[list[Item]]:
    """Cut items, sorted by member (a stable sort), into micro-batches of at most `token_budget` tokens.

    A row longer than the budget gets a micro-batch of its own: the longest row sets the least. `shared` first tokens of
    every row count once per member and micro-batch, or not at all where they are cached in `prefix` (see `pack`).
    """
    shared_size = shared if prefix is None else 0
    batches: list[list[Item]] = []
    remaining = 0
    for item in sorted(items, key=lambda item: item.member):
        row_size = item.example.num_tokens - shared
        size = row_size if batches and batches[-1][-1].member == item.member else row_size + shared_size
        if not batches or size > remaining:
            batches.append([])
            remaining, size = token_budget, row_size + shared_size
        batches[-1].append(item)
        remaining -= size
    return batches


def pack(
    items: Sequence[Item], device: torch.device | str = "cpu", shared: int = 0, prefix: PrefixCache | None = None
) -> PackedBatch:
    """Flatten items, sorted by member, onto one token axis.

    Args:
        items: the rows of one micro-batch.
        device: where the index tensors go.
        shared: number of first tokens that all rows have in common (`common_prefix`); each member computes them once,
            as a segment that its rows have as context.
        prefix: these tokens, cached for every member: then they are not in the batch at all.

    Raises:
        ValueError: no items, items not sorted by member, a prefix that is not the shared one, or a shared prefix
            together with dropout (whose masks differ per row).
    """
    if not items:
        raise ValueError("cannot pack an empty list of items")
    if any(a.member > b.member for a, b in itertools.pairwise(items)):
        raise ValueError("items must be sorted by member: a member's tokens are one contiguous span")
    if shared and any(item.dropout_seed is not None for item in items):
        raise ValueError("rows under dropout cannot share a prefix: masks are drawn per row")
    if prefix is not None and len(prefix) != shared:
        raise ValueError(f"the rows share {shared} first tokens, and {len(prefix)} are cached")
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    spans: list[Span] = []
    choice_starts: list[tuple[int, ...]] = []
    last_positions: list[int] = []
    context: tuple[int, ...] = ()
    for item in items:
        start = len(ids)
        if shared and prefix is None and not (spans and spans[-1].member == item.member):
            context = (len(segments),)
            ids.extend(item.example.prefix[:shared])
            positions.extend(range(shared))
            segments.append(Segment(start, len(ids)))
        last_positions.append(len(ids) + len(item.example.prefix) - shared - 1)
        cached_for = None if prefix is None else item.member
        choice_starts.append(_append_row(item.example, ids, positions, segments, shared, context, cached_for))
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
    return PackedBatch(tuple(items), packing, tuple(last_positions), tuple(choice_starts), shared)


def pack_prefix(prefix: PrefixCache, members: Sequence[int], device: torch.device | str = "cpu") -> PackedBatch:
    """The prefix itself, once for each of some members (ascending): the pass over it caches keys and values."""
    row = EncodedExample(0, prefix.tokens, (), None)
    batch = pack([Item(member, row) for member in members], device)
    return replace(batch, packing=replace(batch.packing, prefix=prefix, prefill=True))


def _append_row(
    example: EncodedExample,
    ids: list[int],
    positions: list[int],
    segments: list[Segment],
    shared: int,
    context: tuple[int, ...],
    cached_for: int | None,
) -> tuple[int, ...]:
    """Append one row's tokens and segments; return, per choice, the packed position of its first fed token.

    A choice's last token is only predicted, never fed, so a choice of one token adds nothing. The `shared` first
    tokens, if any, are the segment `context`, or cached for the member `cached_for`.
    """
    start = len(ids)
    ids.extend(example.prefix[shared:])
    positions.extend(range(shared, len(example.prefix)))
    segments.append(Segment(start, len(ids), context, cached_for))
    seen = (*context, len(segments) - 1)
    starts = []
    for choice in example.choices:
        starts.append(len(ids))
        fed = choice[:-1]
        if fed:
            segments.append(Segment(len(ids), len(ids) + len(fed), seen, cached_for))
            ids.extend(fed)
            positions.extend(range(len(example.prefix), len(example.prefix) + len(fed)))
    return tuple(starts)


def _dropout_keys(items: Sequence[Item], device: torch.device | str) -> Tensor | None:
    seeds = [item.dropout_seed for item in items if item.dropout_seed is not None]
    if not seeds:
        return None
    if len(seeds) != len(items):
        raise ValueError("either all items of a batch carry a dropout seed, or none")
    return token_keys(seeds, [item.example.num_tokens for item in items], device)
