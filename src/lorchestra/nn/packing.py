"""Packed ragged batches: (member, row) pairs on one token axis `[1, N]`, without padding.

Rows are sorted by member, so each member has one contiguous span. A row is a tree of segments: its prefix, and one
segment per choice for the tokens that the choice adds. With tree scoring (`choice_tree`), the tokens that all choices
share extend the prefix, and a segment per further branch follows. A segment's tokens attend causally to each other and
fully to the segments in their context; nothing else in the batch is visible to them. A row may have no choices.
`nn.scoring` decides which outputs are read.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lorchestra.choice_tree import ChoiceTree
from lorchestra.nn.dropout import token_keys
from lorchestra.nn.kv_cache import PrefixCache
from lorchestra.nn.scoring import ChoiceScoring, score_positions
from lorchestra.types import EncodedExample

BASE = -1
"""Member index of the base: no adapter is applied."""
FORWARD_BUDGET_FACTOR = 2.5
"""On a CPU, a forward-only pass may have this many times the tokens of a training step's micro-batch."""
MIN_SHARED_PREFIX = 16
"""Fewest shared first tokens for which sharing is worth the shorter attention segments."""
_MAX_KEYS_PER_TOKEN, _MAX_SEGMENTS = 3, 512
"""Bounds of a group of segments: its number of keys, in multiples of the batch's tokens, and of segments."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens `start:stop` of the packed axis. They see the segments with the indices in `context`, in this order.

    Before these they see the cached prefix of member `cached_for`, if set.
    """

    start: int
    stop: int
    context: tuple[int, ...] = ()
    cached_for: int | None = None
    tree: ChoiceTree | None = None
    """Set where all segments of a tree are merged (`Packing.merged_segments`): a token sees only those on its path."""

    @property
    def sees_others(self) -> bool:
        """Whether it sees tokens of other segments or of a cached prefix."""
        return bool(self.context) or self.cached_for is not None


@dataclass(frozen=True, slots=True)
class Span:
    """All tokens of one member: `start:stop` of the packed axis."""

    member: int
    start: int
    stop: int


@dataclass(frozen=True)
class Bucket:
    """Segments of similar length, computed as one padded batch (on CUDA, where many small kernels are slow)."""

    slots: Tensor
    """int64 `[S, T]`: index of the packed token in each slot; N, one past the last token, in padding."""
    filled: Tensor
    """int64 `[n]`: indices of the flattened slots that hold tokens."""
    tokens: Tensor
    """int64 `[n]`: the packed tokens in these slots."""


@dataclass(frozen=True)
class SegmentGroup:
    """Consecutive segments for one call of a variable-length attention kernel; fields are named as FlashAttention's."""

    segments: slice
    """Their indices among all segments."""
    tokens: slice
    """Their tokens on the packed axis."""
    cu_seqlens_q: Tensor
    """int32 `[S + 1]`: cumulative numbers of queries, from 0."""
    cu_seqlens_k: Tensor
    """int32 `[S + 1]`: the same for the keys each segment sees: cached prefix, context, its tokens, in this order."""
    max_seqlen_q: int
    max_seqlen_k: int


@dataclass(frozen=True)
class Packing:
    """Layout of the packed token axis: the input of attention and the LoRA layers."""

    input_ids: Tensor
    """int64 `[1, N]`."""
    position_ids: Tensor
    """int64 `[1, N]`: each token's position in its row, where every choice follows the prefix."""
    segments: tuple[Segment, ...]
    spans: tuple[Span, ...]
    dropout_keys: Tensor | None
    """int64 `[N]`; None where dropout is off."""
    prefix: PrefixCache | None = None
    """Cache of the shared first tokens, which this pass reads, or with `prefill` writes."""
    prefill: bool = False
    """Whether each span is the prefix, to be cached for its member."""
    trees: tuple[tuple[int, int, ChoiceTree], ...] = ()
    """Trees of choices, each with the indices of its first segment and the one after its last."""

    @property
    def num_tokens(self) -> int:
        """N."""
        return int(self.input_ids.shape[1])

    @cached_property
    def span_ends(self) -> Tensor:
        """int32 `[number of spans]`: the `stop` of each span, for grouped products."""
        return torch.tensor([span.stop for span in self.spans], dtype=torch.int32, device=self.input_ids.device)

    @cached_property
    def merged_segments(self) -> tuple[Segment, ...]:
        """The segments, with those of each tree merged into one, for attention with explicit masks.

        One call per tree costs less than one per branch. Contexts are indices among the merged segments.
        """
        if not self.trees:
            return self.segments
        ends = {first: (stop, tree) for first, stop, tree in self.trees}
        merged: list[Segment] = []
        merged_index: list[int] = []  # of each segment
        while len(merged_index) < len(self.segments):
            first = len(merged_index)
            segment = self.segments[first]
            stop, tree = ends.get(first, (first + 1, None))
            context = tuple(merged_index[index] for index in segment.context)
            merged_index += [len(merged)] * (stop - first)
            merged.append(Segment(segment.start, self.segments[stop - 1].stop, context, segment.cached_for, tree))
        return tuple(merged)

    def tree_mask(self, tree: ChoiceTree, num_context: int, window: int | None) -> Tensor:
        """Bool `[T, num_context + T]`, true where visible, for the tokens after a tree's stem; the context comes first.

        A token sees at most the `window - 1` tokens before it on its path. Masks are cached, for all layers.
        """
        key = (id(tree), num_context, window)
        if key not in self._tree_masks:
            depths, visible = torch.from_numpy(tree.arrays.depths), torch.from_numpy(tree.arrays.visible)
            mask = torch.cat([visible.new_ones(len(depths), num_context), visible], dim=1)
            if window is not None:
                mask &= torch.cat([torch.arange(-num_context, 0), depths]) > depths[:, None] - window
            self._tree_masks[key] = mask.to(self.input_ids.device)
        return self._tree_masks[key]

    @cached_property
    def _tree_masks(self) -> dict[tuple[int, int, int | None], Tensor]:
        return {}

    @cached_property
    def segment_groups(self) -> tuple[SegmentGroup, ...]:
        """All segments in groups. The keys that a group's segments see are concatenated; groups bound their number."""
        lengths = [s.stop - s.start for s in self.segments]
        cached = [0 if s.cached_for is None or self.prefix is None else len(self.prefix) for s in self.segments]
        keys = [
            n + c + sum(lengths[i] for i in s.context) for n, c, s in zip(lengths, cached, self.segments, strict=True)
        ]
        max_keys = _MAX_KEYS_PER_TOKEN * sum(lengths)
        groups: list[SegmentGroup] = []
        first = num_keys = 0
        for index in range(len(lengths) + 1):
            full = index - first >= _MAX_SEGMENTS or num_keys + sum(keys[index : index + 1]) > max_keys
            if index == len(lengths) or (full and index > first):
                groups.append(self._group(first, lengths[first:index], keys[first:index]))
                first, num_keys = index, 0
            num_keys += sum(keys[index : index + 1])
        return tuple(groups)

    def _group(self, first: int, queries: list[int], keys: list[int]) -> SegmentGroup:
        def cumulative(lengths: list[int]) -> Tensor:
            bounds = [0, *itertools.accumulate(lengths)]
            return torch.tensor(bounds, dtype=torch.int32, device=self.input_ids.device)

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
        """The segments without context, by length: none is shorter than half of the longest in its bucket."""
        by_length = sorted((s for s in self.segments if not s.sees_others), key=lambda s: s.start - s.stop)
        groups: list[list[Segment]] = []
        for segment in by_length:
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
    """One row for one member."""

    member: int
    example: EncodedExample
    dropout_seed: int | None = None
    """Seed of this member, step and row; None turns dropout off."""
    index: int = 0
    """Chosen by the caller to assign results to items, since packing reorders them."""


@dataclass(frozen=True)
class PackedBatch:
    """A micro-batch: its items in packed order, and their layout."""

    items: tuple[Item, ...]
    packing: Packing
    last_positions: tuple[int, ...]
    """Packed position of each item's last prefix token, whose output predicts the answer's first token."""
    choice_starts: tuple[tuple[int, ...], ...]
    """Per item and choice, the packed position of the choice's first input token; empty for an item with a tree, whose
    tokens follow its prefix in the tree's order."""
    shared: int = 0
    """Number of first tokens that all rows share, at the start of each member's span or cached."""

    @cached_property
    def scoring(self) -> ChoiceScoring:
        """Which outputs score the choices.

        Raises:
            ValueError: an item has no choices, or some items have a tree and others do not.
        """
        examples = [item.example for item in self.items]
        return score_positions(examples, self.last_positions, self.choice_starts, self.packing.input_ids.device)


def shareable_prefix(rows: Sequence[EncodedExample], dropout: bool) -> int:
    """Number of first tokens to compute once for all rows; 0 under dropout, whose masks differ per row."""
    shared = 0 if dropout else common_prefix(rows)
    return shared if shared >= MIN_SHARED_PREFIX else 0


def common_prefix(rows: Sequence[EncodedExample]) -> int:
    """Number of first tokens that all rows share, without the last token of any row's prefix."""
    if not rows:
        return 0
    first, last = min(row.prefix for row in rows), max(row.prefix for row in rows)  # in lexicographic order
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return min(shared, min(len(row.prefix) for row in rows) - 1)


def forward_budget(token_budget: int, device: torch.device) -> int:
    """Most tokens of a forward-only micro-batch, given the budget of a training step's.

    On a CPU, where that budget is small, larger forward passes are a tenth faster.
    """
    return round(FORWARD_BUDGET_FACTOR * token_budget) if device.type == "cpu" else token_budget


def plan_micro_batches(
    items: Sequence[Item], token_budget: int, shared: int = 0, prefix: PrefixCache | None = None
) -> list[list[Item]]:
    """Sort items by member (a stable sort) and cut them into micro-batches of at most `token_budget` tokens.

    A row that exceeds the budget is a micro-batch on its own. The `shared` first tokens count once per member and
    micro-batch, or not at all where they are cached in `prefix` (see `pack`).
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
        device: device of the index tensors.
        shared: number of first tokens that all rows share (`common_prefix`); they are computed once per member, as a
            segment in the context of the member's rows.
        prefix: cache of these tokens for every member, which then are not part of the batch.

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
        raise ValueError(f"the rows share {shared} first tokens, but {len(prefix)} are cached")
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    spans: list[Span] = []
    choice_starts: list[tuple[int, ...]] = []
    last_positions: list[int] = []
    trees: list[tuple[int, int, ChoiceTree]] = []
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
        tree = item.example.tree
        if tree is not None and tree.segments:
            trees.append((len(segments) - len(tree.segments), len(segments), tree))
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
        trees=tuple(trees),
    )
    return PackedBatch(tuple(items), packing, tuple(last_positions), tuple(choice_starts), shared)


def pack_prefix(prefix: PrefixCache, members: Sequence[int], device: torch.device | str = "cpu") -> PackedBatch:
    """Pack the prefix once per member (ascending), for the pass that fills its cache."""
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
    """Append one row's tokens and segments; return, per choice, the packed position of its first input token.

    A choice's last token is only predicted, so a choice of one token adds no input. The `shared` first tokens, if any,
    are the segment in `context`, or cached for the member `cached_for`. With a tree, nothing is returned per choice.
    """
    start = len(ids)
    tree = example.tree
    stem = () if tree is None else tree.tokens[: tree.stem]
    ids.extend(example.prefix[shared:])
    ids.extend(stem)
    positions.extend(range(shared, len(example.prefix) + len(stem)))
    segments.append(Segment(start, len(ids), context, cached_for))
    choice_context = (*context, len(segments) - 1)
    starts: list[int] = []
    if tree is not None:
        first = len(segments)
        origin = len(ids) - tree.stem
        for part in tree.segments:
            part_context = (*choice_context, *(first + index for index in part.context))
            segments.append(Segment(origin + part.start, origin + part.stop, part_context, cached_for))
            depth = len(example.prefix) + part.depth
            positions.extend(range(depth, depth + part.stop - part.start))
        ids.extend(tree.tokens[tree.stem :])
        return ()
    for choice in example.choices:
        starts.append(len(ids))
        inputs = choice[:-1]
        if inputs:
            segments.append(Segment(len(ids), len(ids) + len(inputs), choice_context, cached_for))
            ids.extend(inputs)
            positions.extend(range(len(example.prefix), len(example.prefix) + len(inputs)))
    return tuple(starts)


def _dropout_keys(items: Sequence[Item], device: torch.device | str) -> Tensor | None:
    seeds = [item.dropout_seed for item in items if item.dropout_seed is not None]
    if not seeds:
        return None
    if len(seeds) != len(items):
        raise ValueError("either all items of a batch have a dropout seed, or none")
    return token_keys(seeds, [item.example.num_tokens for item in items], device)
