"""What a person sees while a sweep goes on: one live table of all points in a terminal, plain lines elsewhere."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lorchestra.cli.progress import PLAIN_EVERY_S, Failures, duration
from lorchestra.report.fitted_table import FittedTable
from lorchestra.runs.sweep.points import Point
from lorchestra.training.callbacks import Callback, StepReport
from lorchestra.training.checkpoint import TrainState
from lorchestra.training.trainer import Trainer

_STYLES = {"training": "bold", "evaluating": "bold", "finished": "green", "failed": "red bold", "waiting": "dim"}


class SweepProgress(Callback):
    """Shows a sweep; a context manager, since a live table has to be closed.

    Args:
        console: where to; a terminal gets a live table, anything else a line now and then.
        points: all points, in the order in which they are shown.
    """

    def __init__(self, console: Console, points: Sequence[Point]) -> None:
        self.console = console
        self._points = {point.name: point for point in points}
        self._status = dict.fromkeys(self._points, "waiting")
        self._nll: dict[str, float] = {}
        self._headline = ""
        self._last_line = 0.0
        self._members: dict[str, range] = {}
        """Of the points in the pass under way: their members among those of the pass."""
        self._num_steps = 0
        self._failures = Failures(console)
        self._live = Live(self._render(), console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> SweepProgress:
        """Start the table."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *unused: object) -> None:
        """Take the table away: what comes after it says more."""
        if self._live is not None:
            self._live.update(Text(self._headline))
            self._live.stop()

    def on_status(self, names: Sequence[str], status: str) -> None:
        """Show that points reached a status."""
        self._status |= {name: status for name in names if name in self._status}
        if status == "training":
            sizes = [self._points[name].config.adapt.members for name in names]
            stops = list(itertools.accumulate(sizes))
            self._members = {n: range(stop - size, stop) for n, size, stop in zip(names, sizes, stops, strict=True)}
        self._headline = ""
        if names:
            some = names[0] if len(names) == 1 else f"{len(names)} points"
            self._show(f"{status}: {some}", now=True)

    def on_train_begin(self, trainer: Trainer) -> None:
        """Follow the pass of the points that are training now."""
        self._num_steps = trainer.num_steps  # the trainer itself would keep its base alive during the next pass
        names = [f"{name}, member {m - members.start}" for name, members in self._members.items() for m in members]
        self._failures = Failures(self.console, names.__getitem__)

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """Show how far the pass has come."""
        self._failures.show(state)
        left = state.train_s / state.step * (self._num_steps - state.step)
        members = len(state.with_status("running"))
        self._show(
            f"{len(self._members)} points, {members} members in one pass: step {state.step} of {self._num_steps},"
            f" {report.tokens / report.seconds:,.0f} tokens/s, {duration(left)} left"
        )

    def on_evaluation(self, entry: dict[str, Any], state: TrainState) -> None:
        """Show the validation NLL of the points, the mean over their members."""
        self._failures.show(state)
        for name, members in self._members.items():
            known = [nll for nll in (entry["val_nll"][m] for m in members) if nll is not None]
            if known:
                self._nll[name] = sum(known) / len(known)
        best = min((self._nll[name] for name in self._members if name in self._nll), default=float("nan"))
        self._show(f"epoch {entry['epoch']}: least validation NLL of a point {best:.3f}", now=True)

    def on_progress(self, what: str, done: int, total: int) -> None:
        """Show other work; the end of an evaluation's part at once."""
        self._show(f"{what}: {done} of {total} rows", now=done >= total and "evaluating" in self._status.values())

    def _show(self, text: str, now: bool = False) -> None:
        self._headline = text
        if self._live is not None:
            self._live.update(self._render())
        elif now or time.monotonic() - self._last_line > PLAIN_EVERY_S:
            self._last_line = time.monotonic()
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _render(self) -> Group:
        table = Table(box=None, padding=(0, 2), header_style="dim")
        for name in ("point", "validation NLL", "state"):
            table.add_column(name, justify="right" if name == "validation NLL" else "left", overflow="fold")
        room = max(3, self.console.height - 4)
        order = list(self._points)
        if len(order) > room:  # those under way, then those that come next
            rank = {"training": 0, "evaluating": 0, "waiting": 1, "failed": 2, "finished": 3}
            order = sorted(order, key=lambda name: rank[self._status[name]])[:room]
        for name in order:
            nll, status = self._nll.get(name), self._status[name]
            table.add_row(name, "" if nll is None else f"{nll:.3f}", Text(status, style=_STYLES[status]))
        done = sum(status == "finished" for status in self._status.values())
        return Group(
            FittedTable(table), Text(f"{done} of {len(self._points)} points finished. {self._headline}", style="bold")
        )
