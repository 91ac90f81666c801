"""The callback protocol: progress reports and stop requests of training and other long jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorchestra.errors import Interrupted as Interrupted
from lorchestra.training.checkpoint import TrainState

if TYPE_CHECKING:
    from lorchestra.training.trainer import Trainer


@dataclass(frozen=True)
class StepReport:
    """One optimizer step. Lists are per member, with None for members that are no longer trained."""

    step: int
    epoch: int
    loss: list[float | None]
    penalties: dict[str, list[float | None]]
    grad_norm: list[float | None]
    lr: list[float | None]
    tokens: int
    seconds: float


class Callback:
    """Base class of callbacks; the methods do nothing unless overridden."""

    def on_status(self, names: Sequence[str], status: str) -> None:
        """Called when points of a sweep or methods of a comparison reach a status: "training", "finished", ...

        With "searching the ...", `names` are the candidates' learning rates in a search before a training.
        """

    def on_train_begin(self, trainer: Trainer) -> None:
        """Called before the first step of a new or resumed training."""

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """Called after each optimizer step."""

    def on_evaluation(self, entry: dict[str, object], state: TrainState) -> None:
        """Called after each evaluation on the validation rows."""

    def on_progress(self, what: str, done: int, total: int) -> None:
        """Called during other work, with the number of rows done; `total` is 0 where rows are not counted."""

    def should_stop(self) -> bool:
        """Called between micro-batches; true ends the job with `Interrupted`."""
        return False

    def should_finish(self) -> bool:
        """Called when a stop is requested; true ends a training with the best adapters so far instead."""
        return False


class CallbackList(Callback):
    """Several callbacks as one; stops the job as soon as one of them requests it."""

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
        """Whether one of them requests a stop."""
        return any(callback.should_stop() for callback in self.callbacks)

    def should_finish(self) -> bool:
        """Whether one of them requests to finish."""
        return any(callback.should_finish() for callback in self.callbacks)


def progress(callback: Callback, what: str, total: int) -> Callable[[int], None]:
    """Return a function that reports rows done to a callback and raises `Interrupted` if it requests a stop."""

    def report(done: int) -> None:
        callback.on_progress(what, min(done, total), total)
        if callback.should_stop():
            raise Interrupted

    return report
