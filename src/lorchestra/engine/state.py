"""Where a training run stands: everything a resumed run needs to end with the same bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor

from lorchestra.core.bank import AdapterBank
from lorchestra.core.optim import MemberAdamW
from lorchestra.store.schema import COUNT, NUMBER_OR_NULL, Number

Status = Literal["running", "finished", "stopped", "failed"]

STATE: dict[str, Any] = {
    "step": COUNT,
    "members": [
        {
            "status": set(get_args(Status)),
            "best_nll": NUMBER_OR_NULL,
            "best_step": COUNT,
            "waited": COUNT,
            "reason": str,
            "failed_step": (COUNT, None),
            "first_loss": NUMBER_OR_NULL,
            "epoch_loss": Number(),
            "epoch_steps": COUNT,
        }
    ],
    "tokens": COUNT,
    "train_s": Number(0),
    "num_updates": [COUNT],
    "history": [{"step": COUNT, "epoch": COUNT, "val_nll": [NUMBER_OR_NULL], "val_accuracy": [NUMBER_OR_NULL]}],
}
"""The shape of a `TrainState` as JSON (see `store.schema`)."""

_LATER: dict[str, Any] = {"first_loss": None, "epoch_loss": 0.0, "epoch_steps": 0}
"""Fields of a member that checkpoints of earlier versions lack."""


@dataclass
class MemberState:
    """One member's progress.

    `best_nll` is the best validation NLL so far and `best_step` the optimizer step it was measured after; `waited`
    counts evaluations since without a better one.
    """

    status: Status = "running"
    best_nll: float | None = None
    best_step: int = 0
    waited: int = 0
    reason: str = ""
    """What happened, where it failed (see `engine.failure`)."""
    failed_step: int | None = None
    """The optimizer step in which it failed."""
    first_loss: float | None = None
    """Training loss of its first step, in nats; of the first after resuming from a checkpoint that lacks it."""
    epoch_loss: float = 0.0
    """Training losses of the epoch's steps so far, added up."""
    epoch_steps: int = 0
    """The number of these steps."""

    def add_loss(self, loss: float) -> float:
        """Count the training loss of one more step; returns that of the first."""
        if self.first_loss is None:
            self.first_loss = loss
        self.epoch_loss += loss
        self.epoch_steps += 1
        return self.first_loss

    def end_epoch(self) -> float:
        """The epoch's mean training loss; the next epoch starts at zero."""
        mean = self.epoch_loss / self.epoch_steps
        self.epoch_loss, self.epoch_steps = 0.0, 0
        return mean


@dataclass
class TrainState:
    """Position in the run, per-member progress, and what the work has cost so far.

    No generator state is held: data orders and dropout derive from the seed and this position.
    """

    step: int = 0
    """Optimizer steps done."""
    members: list[MemberState] = field(default_factory=list)
    tokens: int = 0
    """Tokens trained on, all members together, no padding."""
    train_s: float = 0.0
    num_updates: list[int] = field(default_factory=list)
    """Optimizer updates of each member (Adam's bias correction counts them)."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One entry an evaluation: step, epoch, validation NLL and accuracy by member."""

    def with_status(self, status: Status) -> list[int]:
        """Indices of the members in this state."""
        return [m for m, member in enumerate(self.members) if member.status == status]

    def fail(self, m: int, step: int, what: str) -> None:
        """Take a member out of the run: in which optimizer step, and what `engine.failure` says of it."""
        member = self.members[m]
        member.status, member.failed_step, member.reason = "failed", step, f"diverged: {what} (step {step})"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @staticmethod
    def complete(values: Any) -> None:
        """Add what a state saved by an earlier version lacks; anything else that is wrong is left for the check."""
        members = values.get("members") if isinstance(values, dict) else None
        for member in members if isinstance(members, list) else ():
            if isinstance(member, dict):
                member |= {name: value for name, value in _LATER.items() if name not in member}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainState:
        """The inverse of `to_json`, of values in the shape of `STATE`."""
        members = [MemberState(**{name: member[name] for name in STATE["members"][0]}) for member in values["members"]]
        return cls(**{**{name: values[name] for name in STATE}, "members": members})


def state_tensors(bank: AdapterBank, optimizer: MemberAdamW, best_MP: Tensor) -> dict[str, Tensor]:
    """The tensors of a checkpoint, each `[M, P]`; the live ones, not copies."""
    return {
        "values": bank.values,
        "best": best_MP,
        "first_moment": optimizer.first_moment,
        "second_moment": optimizer.second_moment,
    }
