"""The log of a training: a callback that appends everything that happens to the run's `events.jsonl`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import cast

from lorchestra.store.run import Run
from lorchestra.training.callbacks import Callback, StepReport
from lorchestra.training.checkpoint import TrainState


class EventLog(Callback):
    """Appends events to a run's log, which is made if it is missing."""

    def __init__(self, run: Run) -> None:
        self.run = run
        run.start_events()

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """Log an optimizer step, and members that failed in it."""
        self.run.append_event("step", **asdict(report))
        self._write_failures([m for m, loss in enumerate(report.loss) if loss is None], state)

    def on_evaluation(self, entry: dict[str, object], state: TrainState) -> None:
        """Log an evaluation, and members that failed in it."""
        self.run.append_event("evaluation", **entry, status=[member.status for member in state.members])
        nlls = cast(Sequence[float | None], entry["val_nll"])
        self._write_failures([m for m, nll in enumerate(nlls) if nll is not None], state)

    def _write_failures(self, members: Sequence[int], state: TrainState) -> None:
        """Log those members that failed in the state's step; earlier failures are in the log already."""
        for m in members:
            if state.members[m].failed_step == state.step:
                self.run.append_event("member_failed", member=m, step=state.step, reason=state.members[m].reason)
