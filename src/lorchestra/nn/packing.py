"""Packed ragged batches: (member, row) pairs on one token axis `[1, N]`, without padding.

Rows are sorted by member, so each member has one contiguous span. A row is a tree of segments: its prefix, and one
segment per choice for the tokens that the choice adds. Typed questions about the same state share its segment.
With tree scoring (`choice_tree`), the tokens that all choices
share extend the prefix, and a segment per further branch follows. A segment's tokens attend causally to each other and
fully to the segments in their context; nothing else in the batch is visible to them. A row may have no choices.
`nn.scoring` decides which outputs are read.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from lorchestra.choice_tree import ChoiceTree, num_common
from lorchestra.nn.dropout import token_keys
from lorchestra.nn.kv_cache import PrefixCache
from lorchestra.nn.layout import Packing, Segment, Span, StoredState
from lorchestra.nn.scoring import ChoiceScoring, score_positions
from lorchestra.types import EncodedExample

BASE = -1
"""Member index of the base: no adapter is applied."""
FORWARD_BUDGET_FACTOR = 2.5
"""On a CPU, a forward-only pass may have this many times the tokens of a training step's micro-batch."""
MIN_SHARED_PREFIX = 16
"""Fewest shared first tokens for which sharing is worth the shorter attention segments."""


@dataclass(frozen=True, slots=True)
class Item:
    """One row for one member."""

    member: int
    example: EncodedExample
    dropout_seed: int | None = None
    """Seed of this member, step and row; None turns dropout off."""
    index: int = 0
    """Chosen by the caller to assign results to items, since packing reorders them."""
    state: PrefixCache | None = None
    """Cache of the row's state: read if it has the member's keys and values, else written."""

    @property
    def cached_state(self) -> PrefixCache | None:
        """The cache, if the state's tokens need not be computed."""
        return self.state if self.state is not None and self.member in self.state.members else None

    @property
    def started(self) -> int:
        """Number of the state's first tokens that are cached while the others are not."""
        return 0 if self.state is None or self.cached_state is not None else self.state.start


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive packed tokens of one item: tokens `start:stop` of its row, counted from the row's first."""

    item: int
    """The item's index in the batch."""
    start: int
    stop: int


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
    pieces: tuple[Piece, ...] = ()
    """The packed axis from its start: which tokens of which row. Shared tokens are those of the first row with them."""

    @cached_property
    def scoring(self) -> ChoiceScoring:
        """Which outputs score the choices.

        Raises:
            ValueError: an item has no choices, or some items have a tree and others do not.
        """
        examples = [item.example for item in self.items]
        return score_positions(examples, self.last_positions, self.choice_starts, self.packing.input_ids.device)


def shareable_prefix(rows: Sequence[EncodedExample], dropout: bool) -> int:
    """Number of first tokens to compute once for all rows; 0 under dropout, whose masks differ per row.

    It is 0 for rows with states, too: each state is shared by its questions, independent of the other rows.
    """
    shared = 0 if dropout or any(row.state for row in rows) else common_prefix(rows)
    return shared if shared >= MIN_SHARED_PREFIX else 0


def common_prefix(rows: Sequence[EncodedExample]) -> int:
    """Number of first tokens that all rows share, without the last token of any row's prefix."""
    if not rows:
        return 0
    first, last = min(row.prefix for row in rows), max(row.prefix for row in rows)  # in lexicographic order
    return min(num_common(first, last), min(len(row.prefix) for row in rows) - 1)


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
    micro-batch, or not at all where they are cached in `prefix` (see `pack`). Typed questions about one state that
    follow each other stay together if they fit.
    """
    batches: list[list[Item]] = []
    remaining = 0
    for group in _by_state(sorted(items, key=lambda item: item.member)):
        pairs = zip(group, [None, *group[:-1]], strict=True)
        whole = sum(_new_tokens(item, before, shared, prefix) for item, before in pairs)
        if remaining < whole <= token_budget and len(group) > 1:
            remaining = 0  # the state is computed once if the group has a batch of its own
        for item in group:
            before = batches[-1][-1] if batches else None
            size = _new_tokens(item, before, shared, prefix)
            if before is None or size > remaining:
                batches.append([])
                remaining, size = token_budget, _new_tokens(item, None, shared, prefix)
            batches[-1].append(item)
            remaining -= size
    return batches


def _by_state(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Yield consecutive items of one member with the same state together, and all others alone."""
    group: list[Item] = []
    for item in items:
        if group and not _shares_state(item, group[-1]):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _shares_state(item: Item, before: Item | None) -> bool:
    """Whether an item's state is that of the item before it, of the same member."""
    return (
        before is not None
        and before.member == item.member
        and item.dropout_seed is None
        and item.state is before.state
        and same_state(item.example, before.example)
    )


def same_state(row: EncodedExample, other: EncodedExample) -> bool:
    """Whether two rows have typed questions about the same state."""
    return 0 < row.state == other.state and row.prefix[: row.state] == other.prefix[: row.state]


def _new_tokens(item: Item, before: Item | None, shared: int, prefix: PrefixCache | None) -> int:
    """Tokens that an item adds to a batch behind the item `before` it; None for the first of a batch."""
    known = shared if prefix is not None or (before is not None and before.member == item.member) else 0
    if item.cached_state is not None or _shares_state(item, before):
        known = max(known, item.example.state)
    known = max(known, item.started)
    return item.example.num_tokens - known


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
    _check_packable(items, shared, prefix)
    axis = _Axis()
    spans: list[Span] = []
    choice_starts: list[tuple[int, ...]] = []
    last_positions: list[int] = []
    context: tuple[int, ...] = ()
    state: tuple[int, ...] = ()
    for index, item in enumerate(items):
        start, before = len(axis.ids), items[index - 1] if index else None
        is_first = before is None or before.member != item.member
        cached_for = None if prefix is None else item.member
        if is_first and shared and prefix is None:
            context = axis.prefix(index, item.example, 0, shared, (), None)
        first, within, cached = shared, context, item.cached_state
        if cached is not None:
            first, within = item.example.state, ()
        elif item.example.state > shared and item.dropout_seed is None:
            cached = item.state if item.started else None
            if not _shares_state(item, before):
                state = axis.state(index, item, shared, () if item.started else context, cached_for)
            first, within = item.example.state, state
        last_positions.append(len(axis.ids) + len(item.example.prefix) - first - 1)
        seen = cached_for if cached is None else item.member
        choice_starts.append(axis.row(index, item.example, first, within, seen, cached))
        if is_first:
            spans.append(Span(item.member, start, len(axis.ids)))
        else:
            spans[-1] = Span(item.member, spans[-1].start, len(axis.ids))
    packing = Packing(
        input_ids=torch.tensor([axis.ids], dtype=torch.int64, device=device),
        position_ids=torch.tensor([axis.positions], dtype=torch.int64, device=device),
        segments=tuple(axis.segments),
        spans=tuple(spans),
        dropout_keys=_dropout_keys(items, device),
        prefix=prefix,
        trees=tuple(axis.trees),
        stored=tuple(axis.stored),
    )
    return PackedBatch(tuple(items), packing, tuple(last_positions), tuple(choice_starts), shared, tuple(axis.pieces))


def _check_packable(items: Sequence[Item], shared: int, prefix: PrefixCache | None) -> None:
    if not items:
        raise ValueError("cannot pack an empty list of items")
    if any(a.member > b.member for a, b in itertools.pairwise(items)):
        raise ValueError("items must be sorted by member: a member's tokens are one contiguous span")
    if shared and any(item.dropout_seed is not None for item in items):
        raise ValueError("rows under dropout cannot share a prefix: masks are drawn per row")
    if prefix is not None and len(prefix) != shared:
        raise ValueError(f"the rows share {shared} first tokens, but {len(prefix)} are cached")


def pack_prefix(prefix: PrefixCache, members: Sequence[int], device: torch.device | str = "cpu") -> PackedBatch:
    """Pack the prefix once per member (ascending), for the pass that fills its cache."""
    row = EncodedExample(0, prefix.tokens, (), None)
    batch = pack([Item(member, row) for member in members], device)
    return replace(batch, packing=replace(batch.packing, prefix=prefix, prefill=True))


@dataclass
class _Axis:
    """The packed token axis while rows are appended to it."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    trees: list[tuple[int, int, ChoiceTree]] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    stored: list[StoredState] = field(default_factory=list)

    def prefix(
        self,
        item: int,
        example: EncodedExample,
        start: int,
        stop: int,
        context: tuple[int, ...],
        cached_for: int | None,
    ) -> tuple[int, ...]:
        """Append tokens `start:stop` of a row's prefix as a segment, and return the context of what follows it."""
        first = len(self.ids)
        self.ids.extend(example.prefix[start:stop])
        self.positions.extend(range(start, stop))
        self.segments.append(Segment(first, len(self.ids), context, cached_for))
        self.pieces.append(Piece(item, start, stop))
        return (*context, len(self.segments) - 1)

    def state(
        self, index: int, item: Item, start: int, context: tuple[int, ...], cached_for: int | None
    ) -> tuple[int, ...]:
        """Append the state of an item from the token `start` on; it is stored in the item's cache, if it has one."""
        first = len(self.ids)
        if item.started:
            start, cached_for = item.started, item.member
        seen = self.prefix(index, item.example, start, item.example.state, context, cached_for)
        if item.started:
            self.segments[-1] = replace(self.segments[-1], state=item.state)
        if item.state is not None:
            self.stored.append(StoredState(item.state, item.member, first, len(self.ids)))
        return seen

    def row(
        self,
        item: int,
        example: EncodedExample,
        start: int,
        context: tuple[int, ...],
        cached_for: int | None,
        state: PrefixCache | None,
    ) -> tuple[int, ...]:
        """Append a row's tokens from `start` on; return, per choice, the packed position of its first input token.

        A choice's last token is only predicted, so a choice of one token adds no input. The tokens before `start` are
        the segments in `context`, or cached for the member `cached_for`. With a tree, nothing is returned per choice.
        """
        tree = example.tree
        stem = () if tree is None else tree.tokens[: tree.stem]

        def segment(tokens: tuple[int, ...], position: int, sees: tuple[int, ...]) -> None:
            self.segments.append(Segment(len(self.ids), len(self.ids) + len(tokens), sees, cached_for, state=state))
            self.ids.extend(tokens)
            self.positions.extend(range(position, position + len(tokens)))

        segment(example.prefix[start:] + stem, start, context)
        first, context = len(self.segments), (*context, len(self.segments) - 1)
        starts: list[int] = []
        if tree is not None:
            for part in tree.segments:
                sees = (*context, *(first + index for index in part.context))
                segment(tree.tokens[part.start : part.stop], len(example.prefix) + part.depth, sees)
            if tree.segments:
                self.trees.append((first, len(self.segments), tree))
        else:
            for choice in example.choices:
                starts.append(len(self.ids))
                if len(choice) > 1:
                    segment(choice[:-1], len(example.prefix), context)
        self.pieces.append(Piece(item, start, example.num_tokens))
        return tuple(starts)


def _dropout_keys(items: Sequence[Item], device: torch.device | str) -> Tensor | None:
    seeds = [item.dropout_seed for item in items if item.dropout_seed is not None]
    if not seeds:
        return None
    if len(seeds) != len(items):
        raise ValueError("either all items of a batch have a dropout seed, or none")
    return token_keys(seeds, [item.example.num_tokens for item in items], device)
