"""The shapes of the records that a run directory holds, and reading those that several commands read.

What is listed here is what is read again; other fields are for people. See `schema` for how a shape is written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lorchestra.errors import CheckpointError
from lorchestra.store.inside import read_plain
from lorchestra.store.run_dir import RunDir, read_json
from lorchestra.store.schema import COUNT, NUMBER_OR_NULL, Each, check_shape

_SIDE = {"digest": str, "num_examples": COUNT}
_SCALAR = (str, float, bool, None)
_ENVIRONMENT = Each((*_SCALAR, Each(_SCALAR)))
_BY_MEMBER = [NUMBER_OR_NULL]
_EVENTS: dict[str, Any] = {
    "step": {"step": COUNT, "epoch": COUNT, "loss": _BY_MEMBER},
    "evaluation": {"step": COUNT, "val_nll": _BY_MEMBER, "val_accuracy": _BY_MEMBER},
    "member_failed": {"member": COUNT},
}


def read_splits(run: RunDir, *names: str) -> dict[str, Any]:
    """Digest and number of rows of each split; those of these names must be there.

    Raises:
        CheckpointError: `splits.json` is missing or damaged.
    """
    splits = read_json(run.splits)
    check_shape(splits, Each(_SIDE), run.splits)
    check_shape(splits, dict.fromkeys(names, _SIDE), run.splits)
    return splits


def read_environment(run: RunDir) -> dict[str, Any]:
    """Versions and machine of a run; empty where they were not kept.

    Raises:
        CheckpointError: `environment.json` is damaged.
    """
    if not run.environment.exists():
        return {}
    found = read_json(run.environment)
    check_shape(found, _ENVIRONMENT, run.environment)
    return found


def read_events(path: Path, num_members: int | None = None) -> tuple[dict[str, Any], ...]:
    """The lines of `events.jsonl`; none where the file is missing.

    Args:
        path: the file.
        num_members: what lists over members must have, where it is known.

    Raises:
        CheckpointError: a line is no JSON object, or not the event that it names.
    """
    if not path.exists():
        return ()
    try:
        lines = read_plain(path).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); mend or remove the file") from error
    return tuple(_event(path, number, line, num_members) for number, line in enumerate(lines, start=1))


def _event(path: Path, number: int, line: str, num_members: int | None) -> dict[str, Any]:
    where = path.with_name(f"{path.name}:{number}")
    try:
        event = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: no JSON ({error}); mend or remove the file") from error
    if not isinstance(event, dict):
        raise CheckpointError(f"{where}: a {type(event).__name__}, no JSON object; mend or remove the file")
    name = event.get("event")
    shape = _EVENTS.get(name) if isinstance(name, str) else None
    check_shape(event, {"event": str} | (shape or {}), where)
    for field, value in event.items():
        if shape and field in shape and isinstance(value, list) and num_members not in (None, len(value)):
            raise CheckpointError(
                f"{where}: {field} has {len(value)} values for {num_members} members; mend or remove the file"
            )
    return event
