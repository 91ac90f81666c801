"""Training state and checkpoints: all that a resumed run needs to end with the same bytes.

A checkpoint is a pair of files that are written atomically and verified when read. The tensors are written first, to
`resume/state-<step>.safetensors`; then `resume/latest.json`, with the name of that file, its checksum and the state,
replaces the previous one. After a crash between the two, the previous pair is still valid.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal, get_args

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorchestra.errors import CheckpointError, TrainingError
from lorchestra.nn.adapters import StackedAdapters
from lorchestra.nn.optimizer import MemberAdamW
from lorchestra.store.atomic import atomic_path, atomic_write_json, sha256_file
from lorchestra.store.safe_paths import inside, name_fault, read_plain
from lorchestra.store.schema import COUNT, NUMBER_OR_NULL, Number, Shape, check_shape
from lorchestra.types import Json, plain_values

Status = Literal["running", "finished", "stopped", "failed"]

STATE: dict[str, Shape] = {
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
            "mean_loss": NUMBER_OR_NULL,
            "best_score": NUMBER_OR_NULL,
        }
    ],
    "tokens": COUNT,
    "train_s": Number(0),
    "num_updates": [COUNT],
    "history": [{"step": COUNT, "epoch": COUNT, "val_nll": [NUMBER_OR_NULL], "val_accuracy": [NUMBER_OR_NULL]}],
}
"""The schema of a `TrainState` as JSON (see `store.schema`)."""

_ADDED_FIELDS = {"first_loss": None, "epoch_loss": 0.0, "epoch_steps": 0, "mean_loss": None, "best_score": None}
"""Fields of a member that checkpoints of earlier versions lack, with their defaults."""


@dataclass
class MemberState:
    """One member's progress."""

    status: Status = "running"
    best_nll: float | None = None
    """Validation NLL of the best parameters so far."""
    best_step: int = 0
    """Optimizer step after which it was measured."""
    waited: int = 0
    """Evaluations since without a better one."""
    reason: str = ""
    """Why the member failed (see `training.failure`)."""
    failed_step: int | None = None
    """Optimizer step in which it failed."""
    first_loss: float | None = None
    """Training loss of its first step, in nats; after resuming from a checkpoint without it, of the next step."""
    epoch_loss: float = 0.0
    """Sum of the training losses in the current epoch."""
    epoch_steps: int = 0
    """Number of steps in the sum."""
    mean_loss: float | None = None
    """Mean training loss of the last whole epoch, in nats."""
    best_score: float | None = None
    """The criterion (`train.criterion`) of the best parameters; None in checkpoints of earlier versions: the NLL."""

    def add_loss(self, loss: float) -> float:
        """Add the training loss of a step; returns the loss of the first step."""
        if self.first_loss is None:
            self.first_loss = loss
        self.epoch_loss += loss
        self.epoch_steps += 1
        return self.first_loss

    def end_epoch(self) -> float:
        """Return the epoch's mean training loss and reset the sum."""
        mean = self.mean_loss = self.epoch_loss / self.epoch_steps
        self.epoch_loss, self.epoch_steps = 0.0, 0
        return mean


@dataclass
class TrainState:
    """Position in the run, per-member progress and cost so far.

    There is no generator state: data order and dropout are functions of the seed and the step.
    """

    step: int = 0
    """Optimizer steps done."""
    members: list[MemberState] = field(default_factory=list)
    tokens: int = 0
    """Tokens trained on, of all members; there is no padding."""
    train_s: float = 0.0
    num_updates: list[int] = field(default_factory=list)
    """Optimizer updates of each member, which Adam's bias correction depends on."""
    history: list[Json] = field(default_factory=list)
    """One entry per evaluation: step, epoch; by member, validation NLL (and `val_scaled_nll`, with one temperature) and
    accuracy, total variation distance from the mixture (`val_spread`), and training loss of the last whole epoch
    (`train_nll`)."""

    def with_status(self, status: Status) -> list[int]:
        """Indices of the members with this status."""
        return [m for m, member in enumerate(self.members) if member.status == status]

    def good_members(self) -> list[int]:
        """Indices of the members that did not fail.

        Raises:
            TrainingError: every member failed.
        """
        failed = self.with_status("failed")
        if len(failed) == len(self.members):
            reasons = "; ".join(f"member {m}: {self.members[m].reason}" for m in failed)
            raise TrainingError(f"every member failed ({reasons}); try a smaller train.lr")
        return [m for m in range(len(self.members)) if m not in failed]

    def fail(self, m: int, step: int, failure: str) -> None:
        """Mark a member as failed in an optimizer step; `failure` is a description from `training.failure`."""
        member = self.members[m]
        member.status, member.failed_step, member.reason = "failed", step, f"diverged: {failure} (step {step})"

    def to_json(self) -> dict[str, object]:
        """Convert to JSON values."""
        return asdict(self)

    @staticmethod
    def complete(values: object) -> None:
        """Add the fields that a state of an earlier version lacks; other faults are left to `check_shape`."""
        members = values.get("members") if isinstance(values, dict) else None
        for member in members if isinstance(members, list) else ():
            if isinstance(member, dict):
                member |= {name: value for name, value in _ADDED_FIELDS.items() if name not in member}

    @classmethod
    def from_json(cls, values: Json) -> TrainState:
        """Convert from the values of `to_json`, which have the schema `STATE`."""
        members = [MemberState(**{f.name: saved[f.name] for f in fields(MemberState)}) for saved in values["members"]]
        return cls(**{**{f.name: values[f.name] for f in fields(cls)}, "members": members})


def state_tensors(adapters: StackedAdapters, optimizer: MemberAdamW, best_MP: Tensor) -> dict[str, Tensor]:
    """The tensors of a checkpoint, each `[M, P]`, not copied."""
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
    """Write a checkpoint and remove the previous one.

    Args:
        directory: the run's `resume` directory.
        state: the training state.
        tensors: see `state_tensors`.
        events_bytes: current length of `events.jsonl`, to which a resumed run truncates it.

    Raises:
        CheckpointError: the disk is full or not writable; the previous checkpoint is still valid.
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
    """Load the newest checkpoint: state, tensors and the length of `events.jsonl`; None if there is none.

    Raises:
        CheckpointError: it is damaged or has another format version.
    """
    path = inside(directory, "latest.json")
    if not path.exists():
        return None
    try:
        body: Json = json.loads(read_plain(path).decode("utf-8"))
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
        raise CheckpointError(f"{path}: file is {body['file']!r}, which is not a checkpoint of this run; {_HINT}")
    tensors_path = inside(directory, body["file"])
    if not tensors_path.exists() or sha256_file(tensors_path) != body["sha256"]:
        raise CheckpointError(f"{tensors_path}: missing, truncated or changed (wrong checksum); {_HINT}")
    try:
        tensors = load_file(tensors_path)
    except SafetensorError as error:
        raise CheckpointError(f"{tensors_path}: not a readable safetensors file ({error}); {_HINT}") from error
    return TrainState.from_json(body["state"]), tensors, body["events_bytes"]


def check_fits(
    state: TrainState, tensors: dict[str, Tensor], live: dict[str, Tensor], num_members: int, num_steps: int
) -> None:
    """Refuse a checkpoint that does not fit a run with `num_members` and `num_steps`.

    Args:
        state: the checkpoint's state.
        tensors: its tensors, of all members.
        live: the run's tensors, of this process's members.
        num_members: M, of all processes.
        num_steps: of the whole training.

    Raises:
        CheckpointError: members, tensors, shapes or steps differ.
    """
    for name, tensor in live.items():
        saved, shape = tensors.get(name), [num_members, *tensor.shape[1:]]
        if saved is None or list(saved.shape) != shape or saved.dtype != tensor.dtype:
            has = "no such tensor" if saved is None else f"{saved.dtype} {list(saved.shape)}"
            message = f"resume: {name} should be {tensor.dtype} {shape}, but the checkpoint has {has}"
            raise CheckpointError(f"{message}; config.yaml was changed, or {_HINT}")
    if len(state.members) != num_members or len(state.num_updates) != num_members:
        raise CheckpointError(f"resume: the checkpoint does not have {num_members} members; {_HINT}")
    for entry in state.history:
        if not len(entry["val_nll"]) == len(entry["val_accuracy"]) == num_members:
            raise CheckpointError(f"resume: an evaluation does not have {num_members} members; {_HINT}")
    if not 0 <= state.step <= num_steps or not all(0 <= number <= state.step for number in state.num_updates):
        raise CheckpointError(f"resume: the checkpoint is at step {state.step}, the run has {num_steps}; {_HINT}")


def _checksum(body: dict[str, object]) -> str:
    """Checksum of the values that are read again: a NaN in the history is saved as null."""
    return hashlib.sha256(json.dumps(plain_values(body), sort_keys=True).encode()).hexdigest()
