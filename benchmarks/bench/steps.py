"""Progress of long trainings in a log."""

from __future__ import annotations

from collections.abc import Sequence

from lorchestra.training.callbacks import Callback, StepReport
from lorchestra.training.checkpoint import TrainState
from lorchestra.training.trainer import Trainer

from .setting import log


class Steps(Callback):
    """Prints every so many steps, with the name of what is being trained."""

    def __init__(self, name: str, every: int = 25) -> None:
        self.name = self.status = name
        self.every = every

    def on_status(self, names: Sequence[str], status: str) -> None:
        """Keep what is being trained."""
        self.status = f"{self.name}, {status} {' '.join(names)[:80]}"

    def on_train_begin(self, trainer: Trainer) -> None:
        """Keep the number of steps."""
        self.num_steps = trainer.num_steps

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """Print the steps that are due, and the last."""
        if report.step % self.every == 0 or report.step == self.num_steps:
            rate = state.tokens / max(state.train_s, 1e-9)
            log(f"{self.status}: step {report.step} of {self.num_steps}, {rate:,.0f} tokens/s")
