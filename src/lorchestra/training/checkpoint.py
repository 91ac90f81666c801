"""Where a training run stands: everything a resumed run needs to end with the same bytes.

Checkpoints of a training run: written whole, verified when read, a pair that cannot be torn apart.

The tensors go to `resume/state-<step>.safetensors`; only then `resume/latest.json`, which names that file, its checksum
and the run's position, takes the place of the one before. A crash between the two leaves the older pair in force.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorchestra.errors import CheckpointError
from lorchestra.nn.adapters import StackedAdapters
from lorchestra.nn.optimizer import MemberAdamW
from lorchestra.store.atomic import atomic_path, atomic_write_json, plain_values, sha256_file
from lorchestra.store.safe_paths import inside, name_fault, read_plain
from lorchestra.store.schema import COUNT, NUMBER_OR_NULL, Number, Shape, check_shape

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
    """What happened, where it failed (see `training.failure`)."""
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
        """Take a member out of the run: in which optimizer step, and what `training.failure` says of it."""
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


def state_tensors(adapters: StackedAdapters, optimizer: MemberAdamW, best_MP: Tensor) -> dict[str, Tensor]:
    """The tensors of a checkpoint, each `[M, P]`; the live ones, not copies."""
    return {
        "values": adapters.values,
        "best": best_MP,
        "first_moment": optimizer.first_moment,
        "second_moment": optimizer.second_moment,
    }


FORMAT_VERSION = 1
_HINT = "the run cannot be resumed; start it again with --if-exists new"
_BODY: Shape = {"file": str, "sha256": str, "events_bytes": Number(-1, 2**53, whole=True), "state": STATE}


def save_checkpoint(directory: Path, state: TrainState, tensors: dict[str, Tensor], events_bytes: int) -> None:
    """Write a checkpoint and remove the one before.

    Args:
        directory: the run's `resume` directory.
        state: where the run stands.
        tensors: its tensors.
        events_bytes: length of `events.jsonl` at this moment; what a resumed run cuts it back to.

    Raises:
        CheckpointError: the disk is full or not writable; the checkpoint before is still in force.
    """
    target = inside(directory, f"state-{state.step:08d}.safetensors")
    size = sum(tensor.nbytes for tensor in tensors.values())
    with atomic_path(target, num_bytes=size) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
    body = {
        "format_version": FORMAT_VERSION,
        "file": target.name,
        "sha256": sha256_file(target),
        "events_bytes": events_bytes,
        "state": state.to_json(),
    }
    atomic_write_json(inside(directory, "latest.json"), body | {"checksum": _checksum(body)})
    for old in directory.glob("state-*.safetensors"):
        if old != target:
            old.unlink(missing_ok=True)


def load_checkpoint(directory: Path) -> tuple[TrainState, dict[str, Tensor], int] | None:
    """The newest checkpoint: state, tensors and the length of `events.jsonl`; None where none was written yet.

    Raises:
        CheckpointError: it is damaged, or of another format version.
    """
    path = inside(directory, "latest.json")
    if not path.exists():
        return None
    try:
        body: dict[str, Any] = json.loads(read_plain(path).decode("utf-8"))
        checksum = body.pop("checksum")
    except (OSError, ValueError, RecursionError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); {_HINT}") from error
    if body.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format version {body.get('format_version')}, this is {FORMAT_VERSION}; {_HINT}")
    if checksum != _checksum(body):
        raise CheckpointError(f"{path}: wrong checksum, the file was changed or damaged; {_HINT}")
    TrainState.complete(body.get("state"))
    check_shape(body, _BODY, path)
    if body["events_bytes"] < 0:
        raise CheckpointError(f"{path}: events_bytes is {body['events_bytes']}, less than 0; {_HINT}")
    if name_fault(body["file"]) is not None or not body["file"].startswith("state-"):
        raise CheckpointError(f"{path}: file is {body['file']!r}, which is no checkpoint of this run; {_HINT}")
    tensors_path = inside(directory, body["file"])
    if not tensors_path.exists() or sha256_file(tensors_path) != body["sha256"]:
        raise CheckpointError(f"{tensors_path}: missing, truncated or changed (wrong checksum); {_HINT}")
    try:
        tensors = load_file(tensors_path)
    except SafetensorError as error:
        raise CheckpointError(f"{tensors_path}: not a readable safetensors file ({error}); {_HINT}") from error
    return TrainState.from_json(body["state"]), tensors, body["events_bytes"]


def check_fits(state: TrainState, tensors: dict[str, Tensor], live: dict[str, Tensor], num_steps: int) -> None:
    """Refuse a checkpoint of another run than the one that `live` and `num_steps` are of.

    Raises:
        CheckpointError: other members, tensors, shapes or steps.
    """
    num_members = len(live["values"])
    for name, tensor in live.items():
        found = tensors.get(name)
        if found is None or found.shape != tensor.shape or found.dtype != tensor.dtype:
            has = "no such tensor" if found is None else f"{found.dtype} {list(found.shape)}"
            message = f"resume: {name} should be {tensor.dtype} {list(tensor.shape)}, and the checkpoint has {has}"
            raise CheckpointError(f"{message}; config.yaml was changed, or {_HINT}")
    if len(state.members) != num_members or len(state.num_updates) != num_members:
        raise CheckpointError(f"resume: the checkpoint is not of {num_members} members; {_HINT}")
    for entry in state.history:
        if not len(entry["val_nll"]) == len(entry["val_accuracy"]) == num_members:
            raise CheckpointError(f"resume: an evaluation of the checkpoint is not of {num_members} members; {_HINT}")
    if not 0 <= state.step <= num_steps or not all(0 <= number <= state.step for number in state.num_updates):
        raise CheckpointError(f"resume: the checkpoint is at step {state.step}, the run has {num_steps}; {_HINT}")


def _checksum(body: dict[str, Any]) -> str:
    """Of what is read again: a NaN in the history is null there."""
    return hashlib.sha256(json.dumps(plain_values(body), sort_keys=True).encode()).hexdigest()
