"""What a person sees while a run goes on: a live table in a terminal, plain lines elsewhere. All of it on stderr."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.status import Status
from rich.table import Table
from rich.text import Text

from lorchestra.report.fitted_table import FittedTable
from lorchestra.training.callbacks import Callback, StepReport
from lorchestra.training.checkpoint import TrainState
from lorchestra.training.trainer import Trainer

_STDERR = 2
_STYLES = {"running": "green", "stopped": "yellow", "finished": "green", "failed": "red bold"}
PLAIN_EVERY_S = 10.0


class TrainingProgress(Callback):
    """Shows a training run; a context manager, since a live table has to be closed.

    Args:
        console: where to; a terminal gets a live table, anything else a line now and then.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._trainer: Trainer | None = None
        self._live: Live | None = None
        self._losses: list[float | None] = []
        self._rates: list[float] = []
        self._phase = ""
        self._last_line = 0.0
        self._failures = Failures(console)

    def on_train_begin(self, trainer: Trainer) -> None:
        """Show this training from now on."""
        self._trainer = trainer
        self._losses = [None] * trainer.model.num_members
        self._failures = Failures(self.console)
        if self.console.is_terminal:
            self._live = Live(self._render(trainer.state), console=self.console, refresh_per_second=4)
            self._live.start()

    def __enter__(self) -> TrainingProgress:
        """Nothing is shown before a trainer is attached."""
        return self

    def __exit__(self, *unused: object) -> None:
        """Leave the last table standing."""
        if self._live is not None:
            self._live.stop()

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """Show the step's losses, smoothed."""
        for m, loss in enumerate(report.loss):
            if loss is not None:
                before = self._losses[m]
                self._losses[m] = loss if before is None else 0.9 * before + 0.1 * loss
        self._rates = [*self._rates[-19:], report.tokens / report.seconds]
        self._phase = ""
        self._show(state)

    def on_evaluation(self, entry: dict[str, Any], state: TrainState) -> None:
        """Show an evaluation."""
        nlls = " ".join("-" if nll is None else f"{nll:.3f}" for nll in entry["val_nll"])
        self._show(state, f"epoch {entry['epoch']}: validation NLL by member {nlls}")

    def on_progress(self, what: str, done: int, total: int) -> None:
        """Show work that is no training step."""
        self._phase = f"{what}: {done} of {total} rows"
        if self._trainer is not None:
            self._show(self._trainer.state)

    def _show(self, state: TrainState, line: str | None = None) -> None:
        self._failures.show(state)
        if self._live is not None:
            self._live.update(self._render(state))
        elif line is not None or time.monotonic() - self._last_line > PLAIN_EVERY_S:
            self._last_line = time.monotonic()
            self.console.print(line or self._headline(state), highlight=False)

    def _headline(self, state: TrainState) -> str:
        assert self._trainer is not None
        steps = self._trainer.num_steps
        text = f"step {state.step} of {steps}"
        if self._rates:
            rate = sum(self._rates) / len(self._rates)
            text += f", {rate:,.0f} tokens/s, {duration(self._time_left(state))} left"
        return f"{text}, {self._phase}" if self._phase else text

    def _time_left(self, state: TrainState) -> float:
        """Seconds of training steps left, by the mean step so far."""
        assert self._trainer is not None
        return state.train_s / max(1, state.step) * (self._trainer.num_steps - state.step)

    def _render(self, state: TrainState) -> Group:
        table = Table(box=None, padding=(0, 2), header_style="dim")
        for name in ("member", "loss", "validation NLL", "accuracy", "best at step", "state"):
            table.add_column(name, justify="left" if name == "state" else "right")
        last = state.history[-1] if state.history else {}
        for m, member in enumerate(state.members):
            cells = (self._losses[m], *(last[key][m] if last else None for key in ("val_nll", "val_accuracy")))
            table.add_row(
                str(m),
                *("" if cell is None else f"{cell:.3f}" for cell in cells),
                str(member.best_step) if member.best_nll is not None else "",
                Text(member.status, style=_STYLES[member.status]),
            )
        return Group(FittedTable(table), Text(self._headline(state), style="bold"))


class Failures:
    """Prints each failed member of a training once, with the reason; in a terminal above a live table."""

    def __init__(self, console: Console, name: Callable[[int], str] = "member {}".format) -> None:
        self.console = console
        self._name = name
        self._printed: set[int] = set()

    def show(self, state: TrainState) -> None:
        """Print those that have failed since the last call."""
        for m in state.with_status("failed"):
            if m not in self._printed:
                self._printed.add(m)
                line = f"{self._name(m)} failed: {state.members[m].reason}"
                self.console.print(line, highlight=False, markup=False, soft_wrap=True)


class StatusLine:
    """One line, rewritten in a terminal; a context manager, which clears it.

    Args:
        console: where to.
        live: whether the line may be rewritten; not where results go to the same terminal meanwhile.
    """

    def __init__(self, console: Console, live: bool = True) -> None:
        self.console = console
        self._status = console.status("") if console.is_terminal and live else None
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        """Start."""
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *unused: object) -> None:
        """Clear the line."""
        if self._status is not None:
            self._status.stop()

    def show(self, text: str, *, plain: bool | None = None) -> None:
        """Show the text.

        Args:
            text: the line.
            plain: whether it is printed where nothing can be rewritten; without it, now and then.
        """
        if self._status is not None:
            self._status.update(text)
        elif plain or (plain is None and time.monotonic() - self._last_line > PLAIN_EVERY_S):
            self._last_line = time.monotonic()
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class RowProgress(StatusLine, Callback):
    """Progress of evaluations; elsewhere than in a terminal one line a task."""

    def on_progress(self, what: str, done: int, total: int) -> None:
        """Show how many rows are done, of a total that is 0 where it is not known."""
        if total == 0:
            self.show(f"{what}: {done:,} rows")
            return
        self.show(f"{what}: {total} rows" if done >= total else f"{what}: {done} of {total} rows", plain=done >= total)


class CompareProgress(StatusLine, Callback):
    """Which method is at what."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._name = ""
        self._failures = Failures(console)

    def on_status(self, names: Sequence[str], status: str) -> None:
        """Show this method from now on."""
        self._name = name = ", ".join(names)
        self._failures = Failures(self.console, lambda m: f"{name}: member {m}")

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """Show how far the training is."""
        self._failures.show(state)
        self.show(
            f"{self._name}: epoch {report.epoch + 1}, step {state.step}, {report.tokens / report.seconds:,.0f} tokens/s"
        )

    def on_evaluation(self, entry: dict[str, Any], state: TrainState) -> None:
        """Show the validation NLL, the mean over members."""
        self._failures.show(state)
        known = [nll for nll in entry["val_nll"] if nll is not None]
        if known:
            self.show(f"{self._name}: epoch {entry['epoch']}, validation NLL {sum(known) / len(known):.3f}")

    def on_progress(self, what: str, done: int, total: int) -> None:
        """Show work that is no training step."""
        self.show(f"{self._name}: {what}: {done} of {total} rows")


class PlanProgress(Callback):
    """Shows what is measured for a plan."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def on_progress(self, what: str, done: int, total: int) -> None:
        """Show it."""
        self._status.update(f"planning: {what}")


def duration(seconds: float) -> str:
    """Seconds as 3m07s or 2h15m."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


class GracefulStop(Callback):
    """The first Ctrl-C asks the training to stop at a whole step; a second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = False

    def should_stop(self) -> bool:
        """Whether a stop was asked for."""
        return self.asked

    def __enter__(self) -> GracefulStop:
        """Take over the interrupt and termination signals."""
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *unused: object) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        # Not by the console: a signal may come while it prints, or while one of its modules is half imported.
        with suppress(OSError):
            os.write(_STDERR, b"\nstopping after this micro-batch; a second Ctrl-C stops at once\n")
