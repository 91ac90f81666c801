"""`events.jsonl`: everything that happened in a run, one JSON line per event."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from lorchestra.store.atomic import plain_values
from lorchestra.store.disk import explained
from lorchestra.training.callbacks import Callback, StepReport
from lorchestra.training.checkpoint import TrainState


class EventLog(Callback):
    """Appends events to a file.

    Args:
        path: the file; made where it is missing.
        keep_bytes: cut an existing file back to this length: what a resumed run repeats is not logged twice.
    """

    def __init__(self, path: Path, keep_bytes: int | None = None) -> None:
        self.path = path
        with explained(path, None):
            path.touch()
            if keep_bytes is not None:
                os.truncate(path, min(keep_bytes, path.stat().st_size))

    @property
    def num_bytes(self) -> int:
        """The file's length."""
        return self.path.stat().st_size

    def write(self, event: str, **values: Any) -> None:
        """Append one event."""
        line = json.dumps(plain_values({"event": event, "time": round(time.time(), 3), **values}), allow_nan=False)
        with explained(self.path, None), self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """Log an optimizer step, and members that failed in it."""
        self.write("step", **asdict(report))
        self._write_failures([m for m, loss in enumerate(report.loss) if loss is None], state)

    def on_evaluation(self, entry: dict[str, object], state: TrainState) -> None:
        """Log an evaluation, and members that failed in it."""
        self.write("evaluation", **entry, status=[member.status for member in state.members])
        nlls = cast(Sequence[float | None], entry["val_nll"])
        self._write_failures([m for m, nll in enumerate(nlls) if nll is not None], state)

    def _write_failures(self, members: Sequence[int], state: TrainState) -> None:
        """Those of some members that failed in the state's step; the others' failures are in the log already."""
        for m in members:
            if state.members[m].failed_step == state.step:
                self.write("member_failed", member=m, step=state.step, reason=state.members[m].reason)
