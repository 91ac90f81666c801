"""How trainings and other long jobs report what they do, and how they are asked to stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorchestra.training.checkpoint import TrainState

if TYPE_CHECKING:
    from lorchestra.training.trainer import Trainer


class Interrupted(Exception):  # noqa: N818 - an event, not an error
    """The job was asked to stop; a training stopped at a whole optimizer step."""


@dataclass(frozen=True)
class StepReport:
    """One optimizer step, per member; None for members that took no part."""

    step: int
    epoch: int
    loss: list[float | None]
    penalties: dict[str, list[float | None]]
    grad_norm: list[float | None]
    lr: list[float | None]
    tokens: int
    seconds: float


class Callback:
    """Base class of callbacks: override what you need, the rest does nothing."""

    def on_status(self, names: Sequence[str], status: str) -> None:
        """Points of a sweep or methods of a comparison reached a status: "training", "evaluating", "finished", ..."""

    def on_train_begin(self, trainer: Trainer) -> None:
        """Before the first step of a training, restored or not."""

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """After each optimizer step."""

    def on_evaluation(self, entry: dict[str, object], state: TrainState) -> None:
        """After each evaluation on the validation rows."""

    def on_progress(self, what: str, done: int, total: int) -> None:
        """During other work: rows done, of how many; `total` is 0 where there is nothing to count."""

    def should_stop(self) -> bool:
        """Called between micro-batches; true ends the job with `Interrupted`."""
        return False


class CallbackList(Callback):
    """Several callbacks as one; it stops as soon as one of them asks to."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = tuple(callbacks)

    def on_status(self, names: Sequence[str], status: str) -> None:
        """Call all."""
        for callback in self.callbacks:
            callback.on_status(names, status)

    def on_train_begin(self, trainer: Trainer) -> None:
        """Call all."""
        for callback in self.callbacks:
            callback.on_train_begin(trainer)

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """Call all."""
        for callback in self.callbacks:
            callback.on_step(report, state)

    def on_evaluation(self, entry: dict[str, object], state: TrainState) -> None:
        """Call all."""
        for callback in self.callbacks:
            callback.on_evaluation(entry, state)

    def on_progress(self, what: str, done: int, total: int) -> None:
        """Call all."""
        for callback in self.callbacks:
            callback.on_progress(what, done, total)

    def should_stop(self) -> bool:
        """Whether one of them asks to stop."""
        return any(callback.should_stop() for callback in self.callbacks)


def progress(callback: Callback, what: str, total: int) -> Callable[[int], None]:
    """A function that reports rows done to a callback, and raises `Interrupted` where that asks to stop."""

    def report(done: int) -> None:
        callback.on_progress(what, min(done, total), total)
        if callback.should_stop():
            raise Interrupted

    return report
