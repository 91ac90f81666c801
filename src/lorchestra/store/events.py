"""`events.jsonl`: one JSON line per event of a training."""

from __future__ import annotations

import json
from pathlib import Path

from lorchestra.errors import CheckpointError
from lorchestra.store.safe_paths import read_plain
from lorchestra.store.schema import COUNT, NUMBER_OR_NULL, Shape, check_shape
from lorchestra.types import Json

Event = Json

_PER_MEMBER: Shape = [NUMBER_OR_NULL]
_EVENTS: dict[str, dict[str, Shape]] = {
    "step": {"step": COUNT, "epoch": COUNT, "loss": _PER_MEMBER},
    "evaluation": {"step": COUNT, "val_nll": _PER_MEMBER, "val_accuracy": _PER_MEMBER},
    "member_failed": {"member": COUNT},
}
_HINT = "fix or remove the file"


def read_events(path: Path, num_members: int | None = None) -> tuple[Event, ...]:
    """The events of a file; none if it is missing.

    Args:
        path: the file.
        num_members: the length that lists over members must have, if it is known.

    Raises:
        CheckpointError: a line is not a JSON object, or not the event that it names.
    """
    if not path.exists():
        return ()
    try:
        lines = read_plain(path).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {_HINT}") from error
    return tuple(_event(path, number, line, num_members) for number, line in enumerate(lines, start=1))


def _event(path: Path, number: int, line: str, num_members: int | None) -> Event:
    where = path.with_name(f"{path.name}:{number}")
    try:
        event = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: no JSON ({error}); {_HINT}") from error
    if not isinstance(event, dict):
        raise CheckpointError(f"{where}: a {type(event).__name__}, no JSON object; {_HINT}")
    name = event.get("event")
    shape = _EVENTS.get(name, {}) if isinstance(name, str) else {}
    check_shape(event, {"event": str} | shape, where)
    for field, value in event.items():
        if field in shape and isinstance(value, list) and num_members not in (None, len(value)):
            raise CheckpointError(f"{where}: {field} has {len(value)} values for {num_members} members; {_HINT}")
    return event
