"""What a training will take: pure functions of shapes and counts, with measured rates put in from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorchestra.nn.packing import Item

ALLOCATION = 2.0
"""Growth of a process over the bytes that a backward pass needs saved.

The allocator keeps freed pieces between live ones, the backward pass has tensors of its own, and the pass of the layers
below leaves pieces of other sizes. Measured: `benchmarks/plan_accuracy.py`, column "over saved".
"""
SHARE = 0.9
"""Share of the free memory that a training plans with: other programs want some, too."""
LEAF_BYTES = 1100
"""Python's and torch's objects for one member's A or B of one module, with its gradient (measured)."""
_BUDGET_STEP = 64


@dataclass(frozen=True)
class AdapterCounts:
    """What the adapters' bytes follow from."""

    members: int
    parameters: int
    """P, of one member."""
    matrices: int
    """A's and B's of one member."""
    element_bytes: int

    @property
    def adapter_bytes(self) -> int:
        """The members' parameters, and the objects that hold them."""
        return self.members * (self.parameters * self.element_bytes + self.matrices * LEAF_BYTES)

    @property
    def training_bytes(self) -> int:
        """Gradients, both moments of AdamW and the best copy."""
        return 4 * self.members * self.parameters * self.element_bytes

    @property
    def disk_bytes(self) -> int:
        """Of the run directory: two checkpoints, while one takes the place of the other, and the members."""
        return (2 * 4 + 1) * self.members * self.parameters * self.element_bytes


@dataclass(frozen=True)
class Footprint:
    """Bytes of a training by what they are for."""

    process: int
    """Python and its libraries, and the rows."""
    base: int
    adapters: int
    training: int
    """Gradients, moments, best copies."""
    activations: int
    trunk: int
    """Cached hidden states in memory."""
    loading: int = 0
    """The peak before training: while the base is loaded and tried."""

    @property
    def peak(self) -> int:
        """The most at any time."""
        steady = self.process + self.base + self.adapters + self.training + self.trunk + self.activations
        return max(self.loading, steady)


@dataclass(frozen=True)
class Rates:
    """Measured seconds of a packed token in training, in the layers below, in evaluation; of a member's update."""

    train_s: float
    trunk_s: float
    evaluate_s: float
    update_s: float


@dataclass(frozen=True)
class Work:
    """Packed tokens of each kind of pass in the whole run, and the members' updates."""

    train_tokens: int
    trunk_tokens: int
    evaluate_tokens: int
    base_tokens: int
    """Tokens of the base's answers to the training rows, for the KL term."""
    updates: int


@dataclass(frozen=True)
class Duration:
    """Seconds of a run, without loading the base."""

    steps: float
    trunk: float
    base: float
    evaluation: float

    @property
    def training(self) -> float:
        """All but the evaluation."""
        return self.steps + self.trunk + self.base

    @property
    def total(self) -> float:
        """All."""
        return self.training + self.evaluation


def duration(work: Work, rates: Rates) -> Duration:
    """Work times rates."""
    return Duration(
        steps=work.train_tokens * rates.train_s + work.updates * rates.update_s,
        trunk=work.trunk_tokens * rates.trunk_s,
        base=work.base_tokens * rates.evaluate_s,
        evaluation=work.evaluate_tokens * rates.evaluate_s,
    )


def packed_tokens(batch: Sequence[Item], shared: int) -> int:
    """Tokens of a micro-batch as it is packed: `shared` first tokens count once a member."""
    own = sum(item.example.num_tokens - shared for item in batch)
    return own + shared * len({item.member for item in batch})


def split_trunk(split_bytes: Sequence[int], memory_bytes: int) -> tuple[int, int]:
    """Bytes of cached trunks in memory and in mapped files: each split's are where they fit."""
    in_memory = sum(size for size in split_bytes if size <= memory_bytes)
    return in_memory, sum(split_bytes) - in_memory


def checkpointed_bytes(saved_bytes: float, num_layers: int, hidden_bytes: float) -> float:
    """Saved bytes (a token, or in all) under gradient checkpointing.

    Each layer's input stays, and one layer at a time is computed again.

    Args:
        saved_bytes: without checkpointing.
        num_layers: layers that save anything: from the first adapted one up.
        hidden_bytes: of the hidden states between two layers.
    """
    return num_layers * hidden_bytes + saved_bytes / num_layers


def fitting_budget(most: int, longest: int, token_bytes: float, other_bytes: int, free: int | None) -> int:
    """The token budget for the memory that is free.

    Args:
        most: the budget where memory is ample.
        longest: tokens of the longest row, below which no budget can go.
        token_bytes: activation bytes a token of the budget.
        other_bytes: what else is still to be allocated.
        free: free bytes; None where unknown, which is taken for ample.
    """
    if free is None:
        return max(most, longest)
    room = int((SHARE * free - other_bytes) / token_bytes)
    if room < most:  # in steps, so that what other programs do does not change a run's numbers each time
        most = max(1, room // _BUDGET_STEP * _BUDGET_STEP)
    return max(most, longest)


def base_passes(members: int, epochs: int, trunk_share: float, with_base: bool) -> float:
    """Forward work of training in passes of the whole base over the training rows.

    Args:
        members: M.
        epochs: passes of each member over the rows.
        trunk_share: share of the layers that lie below the adapters and are computed once.
        with_base: whether the base's answers to the training rows are wanted.
    """
    return (members * epochs + with_base) * (1 - trunk_share) + trunk_share
