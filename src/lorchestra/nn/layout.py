"""Layout of the packed token axis `[1, N]`: spans of members, and segments that see each other.

A segment's tokens attend causally to each other and fully to the segments in their context; nothing else in the batch
is visible to them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lorchestra.choice_tree import ChoiceTree
from lorchestra.nn.kv_cache import PrefixCache

_MAX_KEYS_PER_TOKEN, _MAX_SEGMENTS = 3, 512
"""Bounds of a group of segments: its number of keys, in multiples of the batch's tokens, and of segments."""

CacheKey = tuple[int | None, int | None]
"""Identifies cached keys and values in a packing: the state's cache (its `id`; None for the packing's prefix), and the
member."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens `start:stop` of the packed axis. They see the segments with the indices in `context`, in this order.

    Before these they see the cached prefix of member `cached_for`, if set: that of their state if they have one, else
    the packing's.
    """

    start: int
    stop: int
    context: tuple[int, ...] = ()
    cached_for: int | None = None
    tree: ChoiceTree | None = None
    """Set where all segments of a tree are merged (`Packing.merged_segments`): a token sees only those on its path."""
    state: PrefixCache | None = None
    """The cached state of a typed question."""

    @property
    def cache_key(self) -> CacheKey:
        """Identifies the cached keys and values that the segment sees."""
        return (None if self.state is None else id(self.state), self.cached_for)

    @property
    def sees_others(self) -> bool:
        """Whether it sees tokens of other segments or of a cached prefix."""
        return bool(self.context) or self.cached_for is not None


@dataclass(frozen=True, slots=True)
class StoredState:
    """Packed tokens `start:stop`, whose keys and values are to be cached for a member."""

    cache: PrefixCache
    member: int
    start: int
    stop: int


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
    stored: tuple[StoredState, ...] = ()
    """States whose keys and values this pass adds to their caches."""

    @property
    def num_tokens(self) -> int:
        """N."""
        return int(self.input_ids.shape[1])

    @cached_property
    def span_ends(self) -> Tensor:
        """int32 `[number of spans]`: the `stop` of each span, for grouped products."""
        return torch.tensor([span.stop for span in self.spans], dtype=torch.int32, device=self.input_ids.device)

    @cached_property
    def cache_reads(self) -> dict[CacheKey, tuple[PrefixCache, int]]:
        """The caches and members whose keys and values the segments see."""
        reads = {}
        for segment in self.segments:
            prefix = segment.state or self.prefix
            if prefix is not None and segment.cached_for is not None:
                reads[segment.cache_key] = prefix, segment.cached_for
        return reads

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
            end = self.segments[stop - 1].stop
            merged.append(Segment(segment.start, end, context, segment.cached_for, tree, segment.state))
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
        cached = [0 if s.cached_for is None else len(s.state or self.prefix or ()) for s in self.segments]
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
