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
        }
    ],
    "tokens": COUNT,
    "train_s": Number(0),
    "num_updates": [COUNT],
    "history": [{"step": COUNT, "epoch": COUNT, "val_nll": [NUMBER_OR_NULL], "val_accuracy": [NUMBER_OR_NULL]}],
}
"""The shape of a `TrainState` as JSON (see `store.schema`)."""


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
    """Why it failed."""
    failed_step: int | None = None
    """The optimizer step in which it failed."""


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

    def fail(self, m: int, step: int, reason: str) -> None:
        """Take a member out of the run: in which optimizer step, and why."""
        member = self.members[m]
        member.status, member.failed_step, member.reason = "failed", step, reason

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

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
