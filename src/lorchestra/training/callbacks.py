"""What a training run tells those who watch it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from lorchestra.training.checkpoint import TrainState


class Interrupted(Exception):  # noqa: N818 - an event, not an error
    """The run was asked to stop, and stands at a whole optimizer step."""


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did, by member; None for members that took no part."""

    step: int
    epoch: int
    loss: list[float | None]
    penalties: dict[str, list[float | None]]
    grad_norm: list[float | None]
    lr: list[float | None]
    tokens: int
    seconds: float


class Observer(Protocol):
    """Hears of everything that happens in a run."""

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """After each optimizer step."""

    def on_evaluation(self, entry: dict[str, object], state: TrainState) -> None:
        """After each evaluation on the validation rows."""

    def on_phase(self, text: str, done: int, total: int) -> None:
        """During work that is no training step: trunks, base pass, evaluation."""
