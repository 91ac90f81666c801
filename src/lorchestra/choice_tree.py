"""Choices as a tree of tokens, for scoring by constrained decoding's distribution.

The tokens of a row's choices form a tree. Where it branches, a token's probability is normalized over the branch's
children alone; a choice's probability is the product along its path, so the choices' probabilities sum to 1. Tokens
that only one choice can continue with have probability 1 and are never run, and no token is run twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby, pairwise
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

_CACHED_TREES = 256
"""Tuples of choices whose trees are kept: rows with labels all have the same choices."""


@dataclass(frozen=True)
class TreeSegment:
    """Consecutive tokens without a branch between them: `start:stop` of the tree's tokens.

    They follow the row's prefix, the tree's stem and the segments in `context`, which together are `depth` tokens after
    the prefix.
    """

    start: int
    stop: int
    depth: int
    context: tuple[int, ...]


@dataclass(frozen=True)
class Branch:
    """A position with several children: after `offset` tokens of the tree, 0 for the end of the row's prefix."""

    offset: int
    children: tuple[int, ...]
    """The different tokens that follow, ascending."""


@dataclass(frozen=True)
class TreeArrays:
    """A tree as arrays; padding is 0.

    Axes: `S` branch, `W` child, `C` choice, `J` branch on a choice's path, `T` token after the stem.
    """

    reads: NDArray[np.int64]
    """`[K]`: offsets whose outputs are read, ascending: the end of the prefix (0), then every branch."""
    branch_reads: NDArray[np.int64]
    """`[S]`: each branch's index in `reads`."""
    children: NDArray[np.int64]
    """`[S, W]`: tokens; padding repeats a branch's first child."""
    child_mask: NDArray[np.bool_]
    """`[S, W]`."""
    term_branches: NDArray[np.int64]
    """`[C, J]`: the branches on each choice's path."""
    term_children: NDArray[np.int64]
    """`[C, J]`: the child that the choice takes there, as a column of `children`."""
    term_mask: NDArray[np.bool_]
    """`[C, J]`."""
    depths: NDArray[np.int64]
    """`[T]`: number of tokens between the stem and each token."""
    visible: NDArray[np.bool_]
    """`[T, T]`: which tokens (second axis) each token sees: those on its path, and itself."""


@dataclass(frozen=True)
class ChoiceTree:
    """The tree of a row's choices."""

    tokens: tuple[int, ...]
    """Input tokens: all that precede a branch. The first `stem` of them are those that all choices share."""
    stem: int
    segments: tuple[TreeSegment, ...]
    """The tokens after the stem, each segment after those in its context."""
    branches: tuple[Branch, ...]
    """In the order of their offsets. There is at least one, with a single child if all choices are equal."""
    paths: tuple[tuple[tuple[int, int], ...], ...]
    """Per choice, the (branch, child) indices on its path."""

    @cached_property
    def arrays(self) -> TreeArrays:
        """The tree as arrays."""
        offsets = [branch.offset for branch in self.branches]
        reads = offsets if offsets[0] == 0 else [0, *offsets]
        children, child_mask = _padded([branch.children for branch in self.branches])
        term_branches, term_mask = _padded([[branch for branch, _ in path] for path in self.paths])
        number = len(self.tokens) - self.stem
        depths, visible = np.zeros(number, dtype=np.int64), np.tri(number, dtype=bool)
        for part in self.segments:
            here = slice(part.start - self.stem, part.stop - self.stem)
            depths[here] = np.arange(part.stop - part.start) + part.depth - self.stem
            visible[here, : here.start] = False
            for ancestor in (self.segments[index] for index in part.context):
                visible[here, ancestor.start - self.stem : ancestor.stop - self.stem] = True
        return TreeArrays(
            reads=np.array(reads, dtype=np.int64),
            branch_reads=np.arange(len(offsets)) + len(reads) - len(offsets),
            children=np.where(child_mask, children, children[:, :1]),
            child_mask=child_mask,
            term_branches=term_branches,
            term_children=_padded([[child for _, child in path] for path in self.paths])[0],
            term_mask=term_mask,
            depths=depths,
            visible=visible,
        )


def num_common(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of first tokens that two sequences share."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def has_prefix(choices: Sequence[tuple[int, ...]]) -> bool:
    """Whether one of the choices is a proper prefix of another; when sorted, such choices are neighbors."""
    if not all(choices):
        return False  # choices without tokens are refused later
    return any(len(one) < len(two) and two[: len(one)] == one for one, two in pairwise(sorted(set(choices))))


@lru_cache(maxsize=_CACHED_TREES)
def choice_tree(choices: tuple[tuple[int, ...], ...]) -> ChoiceTree:
    """The tree of choices' tokens. Equal choices have the same path.

    Raises:
        ValueError: there are no choices, one has no tokens, or is a prefix of another.
    """
    ordered = sorted(set(choices))
    if not ordered or not ordered[0] or any(two[: len(one)] == one for one, two in pairwise(ordered)):
        raise ValueError("a tree needs choices with tokens, none of which is a prefix of another")
    tokens: list[int] = []
    segments: list[TreeSegment] = []
    branches: list[Branch] = []
    paths: dict[tuple[int, ...], list[tuple[int, int]]] = {choice: [] for choice in ordered}
    stem = 0
    remaining: list[tuple[list[tuple[int, ...]], int, tuple[int, ...]]] = [(ordered, 0, ())]
    while remaining:
        group, depth, context = remaining.pop()
        stop = _common(group[0], group[-1], depth) if len(group) > 1 else 0
        if branches:
            segments.append(TreeSegment(len(tokens), len(tokens) + stop - depth, depth, context))
            context = (*context, len(segments) - 1)
        else:
            stem = stop
        tokens += group[0][depth:stop]
        families = [list(family) for _, family in groupby(group, key=itemgetter(stop))]
        for child, family in enumerate(families):
            for choice in family:
                paths[choice].append((len(branches), child))
        branches.append(Branch(len(tokens), tuple(family[0][stop] for family in families)))
        remaining += [(family, stop, context) for family in reversed(families) if len(family) > 1]
    return ChoiceTree(
        tuple(tokens), stem, tuple(segments), tuple(branches), tuple(tuple(paths[choice]) for choice in choices)
    )


def _common(first: tuple[int, ...], last: tuple[int, ...], depth: int) -> int:
    """Number of first tokens that sorted choices share, given their first and last and that `depth` are shared."""
    while first[depth] == last[depth]:
        depth += 1
    return depth


def _padded(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Rows of different lengths as one array, and the mask of what is not padding."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    padded = np.zeros(mask.shape, dtype=np.int64)
    padded[mask] = [value for row in rows for value in row]
    return padded, mask
