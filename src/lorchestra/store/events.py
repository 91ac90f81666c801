"""`events.jsonl`: one JSON line per event of a training, appended as it happens."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

from lorchestra.errors import CheckpointError
from lorchestra.store.atomic import atomic_write_text
from lorchestra.store.disk import explained
from lorchestra.store.safe_paths import read_plain
from lorchestra.store.schema import COUNT, NUMBER_OR_NULL, Shape, check_shape
from lorchestra.types import Json, plain_values

Event = Json

_PER_MEMBER: Shape = [NUMBER_OR_NULL]
_EVENTS: dict[str, dict[str, Shape]] = {
    "step": {"step": COUNT, "epoch": COUNT, "loss": _PER_MEMBER},
    "evaluation": {"step": COUNT, "val_nll": _PER_MEMBER, "val_accuracy": _PER_MEMBER},
    "member_failed": {"member": COUNT},
}
_HINT = "fix or remove the file"


def start_events(path: Path, keep_bytes: int | None = None) -> None:
    """Make the file if it is missing, and truncate an existing one to `keep_bytes`.

    Raises:
        CheckpointError: it cannot be written.
    """
    with explained(path, None):
        path.touch()
        if keep_bytes is not None:
            os.truncate(path, min(keep_bytes, path.stat().st_size))


def append_event(path: Path, event: str, values: Json) -> None:
    """Append one event with the current time.

    Raises:
        CheckpointError: it cannot be written.
    """
    line = json.dumps(plain_values({"event": event, "time": round(time.time(), 3), **values}), allow_nan=False)
    with explained(path, None), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def write_events(path: Path, events: Iterable[Event]) -> None:
    """Write a file of events that have their times already.

    Raises:
        CheckpointError: it cannot be written.
    """
    atomic_write_text(path, "".join(json.dumps(event) + "\n" for event in events))


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
