"""Where everything lies on the packed token axis: segments that see one another, and the members' spans.

A row is a tree of segments: its prefix, and one segment for what each choice adds to it. A segment's tokens attend
causally to themselves and wholly to the segments of their context; nothing else is visible, whatever shares the batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lorchestra.core.prefix import KeptPrefix

BASE = -1
"""The member index of the base itself: no adapter is applied."""
_MOST_COPIES, _MOST_SEGMENTS = 3, 512
"""Bounds of a run of segments: keys put together for it, in tokens of the batch; and segments."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens `start:stop` of the packed axis, and the indices of the segments they see before themselves.

    Before all of these come the first tokens that were kept for member `kept_for`, if any.
    """

    start: int
    stop: int
    context: tuple[int, ...] = ()
    kept_for: int | None = None

    @property
    def sees_others(self) -> bool:
        """Whether anything but its own tokens is visible to it."""
        return bool(self.context) or self.kept_for is not None


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `start:stop` of the packed axis: all that belongs to one member."""

    member: int
    start: int
    stop: int


@dataclass(frozen=True)
class Bucket:
    """Segments of like length, to be computed as one padded batch (on CUDA, where many small kernels cost most)."""

    slots: Tensor
    """int64 `[S, T]`: the packed token in each slot; N, one past the last token, in padding."""
    filled: Tensor
    """int64 `[n]`: the flattened slots that hold tokens."""
    tokens: Tensor
    """int64 `[n]`: the tokens in them."""


@dataclass(frozen=True)
class Run:
    """Neighboring segments that go through an attention kernel of variable lengths together."""

    segments: slice
    """Their places among all segments."""
    tokens: slice
    """Their tokens."""
    queries: Tensor
    """int32 `[S + 1]`: where each one's queries begin, and where the last one's end."""
    keys: Tensor
    """int32 `[S + 1]`: the same of the keys each sees: what was kept, its context and its own, one after the other."""
    longest_query: int
    longest_key: int


@dataclass(frozen=True)
class Packing:
    """Where everything lies on the packed token axis; all that attention and the LoRA layers need to know."""

    input_ids: Tensor
    """int64 `[1, N]`."""
    position_ids: Tensor
    """int64 `[1, N]`: each token's place in its own row; a choice goes on after its prefix."""
    segments: tuple[Segment, ...]
    spans: tuple[Span, ...]
    dropout_keys: Tensor | None
    """int64 `[N]`, or None where dropout is off."""
    prefix: KeptPrefix | None = None
    """First tokens whose keys and values are kept: seen by the segments, or filled by this very pass (`fills`)."""
    fills: bool = False
    """Whether each span is the prefix itself, to be kept for its member."""

    @property
    def num_tokens(self) -> int:
        """N."""
        return int(self.input_ids.shape[1])

    @cached_property
    def span_ends(self) -> Tensor:
        """int32 `[number of spans]`: where each span stops, as grouped products take it."""
        return torch.tensor([span.stop for span in self.spans], dtype=torch.int32, device=self.input_ids.device)

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """All segments, in runs: what segments see is put together a run at a time, which bounds its copies."""
        own = [s.stop - s.start for s in self.segments]
        kept = [0 if s.kept_for is None or self.prefix is None else len(self.prefix) for s in self.segments]
        seen = [n + k + sum(own[i] for i in s.context) for n, k, s in zip(own, kept, self.segments, strict=True)]
        runs: list[Run] = []
        first = held = 0
        for index in range(len(own) + 1):
            full = index - first >= _MOST_SEGMENTS or held + sum(seen[index : index + 1]) > _MOST_COPIES * sum(own)
            if index == len(own) or (full and index > first):
                runs.append(self._run(first, own[first:index], seen[first:index]))
                first, held = index, 0
            held += sum(seen[index : index + 1])
        return tuple(runs)

    def _run(self, first: int, own: list[int], seen: list[int]) -> Run:
        def cumulative(lengths: list[int]) -> Tensor:
            ends = [0, *itertools.accumulate(lengths)]
            return torch.tensor(ends, dtype=torch.int32, device=self.input_ids.device)

        start = self.segments[first].start
        return Run(
            slice(first, first + len(own)),
            slice(start, start + sum(own)),
            cumulative(own),
            cumulative(seen),
            max(own),
            max(seen),
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
        places = torch.arange(int(lengths[0]))
        slots = torch.where(places < lengths, starts + places, self.num_tokens)
        filled = (slots.flatten() < self.num_tokens).nonzero().squeeze(1)
        device = self.input_ids.device
        return Bucket(slots.to(device), filled.to(device), slots.flatten()[filled].to(device))
