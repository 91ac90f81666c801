"""Checkpoints of a training run: written whole, verified when read, a pair that cannot be torn apart.

The tensors go to `resume/state-<step>.safetensors`; only then `resume/latest.json`, which names that file, its checksum
and the run's position, takes the place of the one before. A crash between the two leaves the older pair in force.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorchestra.engine.state import TrainState
from lorchestra.errors import CheckpointError
from lorchestra.store.atomic import atomic_path, atomic_write_json, sha256_file

FORMAT_VERSION = 1


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
    target = directory / f"state-{state.step:08d}.safetensors"
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
    atomic_write_json(directory / "latest.json", body | {"checksum": _checksum(body)})
    for old in directory.glob("state-*.safetensors"):
        if old != target:
            old.unlink(missing_ok=True)


def load_checkpoint(directory: Path) -> tuple[TrainState, dict[str, Tensor], int] | None:
    """The newest checkpoint: state, tensors and the length of `events.jsonl`; None where none was written yet.

    Raises:
        CheckpointError: it is damaged, or of another format version.
    """
    path = directory / "latest.json"
    if not path.exists():
        return None
    hint = "the run cannot be resumed; start it again with --if-exists new"
    try:
        body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        checksum = body.pop("checksum")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); {hint}") from error
    if body.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format version {body.get('format_version')}, this is {FORMAT_VERSION}; {hint}")
    if checksum != _checksum(body):
        raise CheckpointError(f"{path}: wrong checksum, the file was changed or damaged; {hint}")
    tensors_path = directory / body["file"]
    if not tensors_path.exists() or sha256_file(tensors_path) != body["sha256"]:
        raise CheckpointError(f"{tensors_path}: missing, truncated or changed (wrong checksum); {hint}")
    try:
        tensors = load_file(tensors_path)
    except SafetensorError as error:
        raise CheckpointError(f"{tensors_path}: not a readable safetensors file ({error}); {hint}") from error
    return TrainState.from_json(body["state"]), tensors, int(body["events_bytes"])


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
