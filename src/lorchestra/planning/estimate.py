"""Cost of a training run: bytes, seconds and base passes as functions of shapes, counts and measured rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorchestra.models.ensemble import EnsembleModel
from lorchestra.nn.packing import Item
from lorchestra.training.trainer import Trainer
from lorchestra.types import EncodedExample

ALLOCATION = 2.0
"""Growth of the process relative to the bytes saved for the backward pass.

Heap fragmentation, temporaries of the backward pass and the trunk's passes add to the saved bytes. Measured:
`benchmarks/plan_accuracy.py`, column "over saved".
"""
COPIES_OF_LOGITS = 3
"""Logits, log-probabilities, and the temporaries between them."""
SHARE = 0.9
"""Share of free memory that a run may plan to use; the rest is for other programs."""
LEAF_BYTES = 1100
"""Overhead of the Python and torch objects for one member's A or B in one module, with its gradient (measured)."""
_BUDGET_STEP = 64


@dataclass(frozen=True)
class AdapterCounts:
    """Sizes of the adapters, in numbers and bytes."""

    members: int
    parameters: int
    """P, per member."""
    matrices: int
    """Number of A and B matrices per member."""
    element_bytes: int

    @property
    def adapter_bytes(self) -> int:
        """All members' parameters, with the overhead of the objects that hold them."""
        return self.members * (self.parameters * self.element_bytes + self.matrices * LEAF_BYTES)

    @property
    def training_bytes(self) -> int:
        """Gradients, AdamW's two moments and the copy of the best adapters."""
        return 4 * self.members * self.parameters * self.element_bytes

    @property
    def disk_bytes(self) -> int:
        """Size of the run directory: two checkpoints (while one replaces the other) and the saved members."""
        return (2 * 4 + 1) * self.members * self.parameters * self.element_bytes


@dataclass(frozen=True)
class Footprint:
    """Memory of a training run by purpose, in bytes."""

    process: int
    """Python, its libraries, and the rows."""
    base: int
    adapters: int
    training: int
    """Gradients, moments, copies of the best adapters."""
    activations: int
    trunk: int
    """Cached hidden states in memory."""
    loading: int = 0
    """Peak before training, while the base is loaded and probed."""

    @property
    def peak(self) -> int:
        """Peak memory of the run."""
        steady = self.process + self.base + self.adapters + self.training + self.trunk + self.activations
        return max(self.loading, steady)


@dataclass(frozen=True)
class Rates:
    """Measured seconds per packed token of training, trunk and evaluation passes, and per member update."""

    train_s: float
    trunk_s: float
    evaluate_s: float
    update_s: float
    states_s: float = 0.0
    """Per token of a pass that reads hidden states of the base (see `Work.states_tokens`)."""


@dataclass(frozen=True)
class Work:
    """Packed tokens of the whole run by kind of pass, and the number of member updates."""

    train_tokens: int
    trunk_tokens: int
    evaluate_tokens: int
    base_tokens: int
    """Tokens of the base's predictions for the training rows, needed by the KL term."""
    updates: int
    search_tokens: int = 0
    """Tokens of the candidates of a search of learning rate and epochs."""
    calibration_tokens: int = 0
    """Tokens of the members' predictions that a calibration is fitted on, after the training."""
    calibration_trunk_tokens: int = 0
    """Tokens of the layers below the adapters in these predictions."""
    states_tokens: int = 0
    """Tokens of the texts whose hidden states an evaluation's baseline `frozen` reads."""


@dataclass(frozen=True)
class Duration:
    """Seconds of a run, excluding the time to load the base."""

    steps: float
    trunk: float
    base: float
    evaluation: float
    search: float = 0.0
    calibration: float = 0.0
    states: float = 0.0
    """Hidden states of the baseline `frozen`, in the evaluation that follows the run."""

    @property
    def training(self) -> float:
        """Everything except evaluation and calibration."""
        return self.search + self.steps + self.trunk + self.base

    @property
    def total(self) -> float:
        """Training, evaluation on validation rows, and calibration on them."""
        return self.training + self.evaluation + self.calibration

    def to_dict(self) -> dict[str, float]:
        """What `lorchestra plan --json` prints of a run, in seconds; `states` follow the run and are left out."""
        names = ("search", "steps", "trunk", "base", "training", "evaluation", "calibration", "total")
        return {name: getattr(self, name) for name in names}


def duration(work: Work, rates: Rates) -> Duration:
    """Multiply work by rates."""
    return Duration(
        steps=work.train_tokens * rates.train_s + work.updates * rates.update_s,
        trunk=work.trunk_tokens * rates.trunk_s,
        base=work.base_tokens * rates.evaluate_s,
        evaluation=work.evaluate_tokens * rates.evaluate_s,
        search=work.search_tokens * rates.train_s,
        calibration=work.calibration_tokens * rates.evaluate_s + work.calibration_trunk_tokens * rates.trunk_s,
        states=work.states_tokens * rates.states_s,
    )


def packed_tokens(batch: Sequence[Item], shared: int) -> int:
    """Tokens of a packed micro-batch: the first `shared` tokens count once per member."""
    not_shared = sum(item.example.num_tokens - shared for item in batch)
    return not_shared + shared * len({item.member for item in batch})


def evaluation_tokens(rows: Sequence[EncodedExample], members: int, shared: int) -> int:
    """Packed tokens of one evaluation: per member, the shared prefix once and the rest of every row."""
    shared = shared if len(rows) > 1 else 0
    return members * (sum(row.num_tokens - shared for row in rows) + shared)


def split_trunk(split_bytes: Sequence[int], memory_bytes: int) -> tuple[int, int]:
    """Bytes of cached trunks in memory and in mapped files; each split is stored where it fits."""
    in_memory = sum(size for size in split_bytes if size <= memory_bytes)
    return in_memory, sum(split_bytes) - in_memory


def checkpointed_bytes(saved_bytes: float, num_layers: int, hidden_bytes: float) -> float:
    """Saved bytes, per token or in total, under gradient checkpointing.

    Each layer's input is kept, and one layer at a time is recomputed.

    Args:
        saved_bytes: saved bytes without checkpointing.
        num_layers: layers from the first adapted one up; those below save nothing.
        hidden_bytes: size of the hidden states between two layers.
    """
    return num_layers * hidden_bytes + saved_bytes / num_layers


def fitting_budget(most: int, longest: int, token_bytes: float, other_bytes: int, free: int | None) -> int:
    """The token budget for an amount of free memory.

    Args:
        most: the budget if memory is not the limit.
        longest: tokens of the longest row, the smallest possible budget.
        token_bytes: activation bytes per token of the budget.
        other_bytes: bytes still to be allocated for other purposes.
        free: free bytes; None if unknown, which counts as enough.
    """
    if free is None:
        return max(most, longest)
    room = int((SHARE * free - other_bytes) / token_bytes)
    if room < most:  # rounded, so that small changes in free memory do not change a run's numerics
        most = max(1, room // _BUDGET_STEP * _BUDGET_STEP)
    return max(most, longest)


def base_passes(members: int, epochs: int, trunk_share: float, with_base: bool) -> float:
    """Forward work of training, in passes of the whole base over the training rows.

    Args:
        members: M.
        epochs: passes of each member over the rows.
        trunk_share: share of the layers below the adapters, which are computed once.
        with_base: whether the base's predictions for the training rows are needed.
    """
    return (members * epochs + with_base) * (1 - trunk_share) + trunk_share


def training_base_passes(trainer: Trainer) -> float:
    """Forward work that a trainer has done so far, in passes of the whole base over the training rows."""
    model = trainer.model
    trunk = model.trunk_layers / model.num_layers
    rows_seen = trainer.state.tokens / sum(row.num_tokens for row in trainer.rows.train)
    kl = 1.0 if any(member.regularize.kl_beta > 0 for member in trainer.settings) else 0.0
    return round(rows_seen * (1 - trunk) + (trunk if model.trunk_layers else 0.0) + kl * (1 - trunk), 3)


def prediction_base_passes(model: EnsembleModel, num_passes: int) -> float:
    """Base passes of a prediction under `num_passes` members or draws; layers below the adapters run once."""
    trunk = model.trunk_layers / model.num_layers
    return round(trunk + num_passes * (1 - trunk), 3)
