"""What a command shows while it works, on stderr: live views in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Self, cast

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.status import Status
from rich.table import Table
from rich.text import Text

from lorchestra.report.fitted_table import FittedTable
from lorchestra.training.callbacks import Callback, StepReport
from lorchestra.training.checkpoint import TrainState

if TYPE_CHECKING:
    from lorchestra.runs.sweep.points import Point
    from lorchestra.training.trainer import Trainer

_MEMBER_STYLES = {"running": "green", "failed": "red bold", "stopped": "yellow", "finished": "green"}
_POINT_STYLES = {
    "training": "bold",
    "evaluating": "bold",
    "waiting": "dim",
    "failed": "red bold",
    "finished": "green",
}
_MOST_LISTED = 20
"""Members whose values are listed in a plain line; of more, their mean and range."""
PLAIN_EVERY_S = 10.0


class PlainLines:
    """Prints progress where a terminal cannot redraw it: each urgent line, others at most every `PLAIN_EVERY_S`."""

    def __init__(self, console: Console, last: float = 0.0) -> None:
        self.console = console
        self._last = last

    def show(self, text: str, urgent: bool = False) -> None:
        """Print a line if it is time."""
        if urgent or time.monotonic() - self._last > PLAIN_EVERY_S:
            self._last = time.monotonic()
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class StatusTable:
    """A table with as many rows as fit the terminal: a live table that is too high would be cut at its end.

    Args:
        columns: names; the last one is the status.
        rows: one cell per column.
        styles: a style per status; if not all rows fit, those whose status comes first are shown.
        headline: the line below the table.
        left: names of the left-aligned columns.
        what: the rows' name in the plural; with it, another line counts them by status if not all fit.
    """

    def __init__(
        self,
        columns: Sequence[str],
        rows: Sequence[tuple[str, ...]],
        styles: dict[str, str],
        headline: str,
        *,
        left: Sequence[str] = (),
        what: str = "",
    ) -> None:
        self._columns, self._left = columns, left
        self._rows, self._styles = rows, styles
        self._headline, self._what = headline, what

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The table and the lines below it."""
        number = max(1, min(len(self._rows), console.height - 4))
        while True:
            view = self._view(number)
            height = len(console.render_lines(view, options, pad=False))
            if height < console.height or number == 1:
                break
            number = max(1, min(number - 1, number * console.height // height))
        yield view

    def _view(self, number: int) -> Group:
        """The table with some number of rows."""
        table = Table(box=None, padding=(0, 2), header_style="dim")
        for name in self._columns:
            table.add_column(name, justify="left" if name in self._left else "right", overflow="fold")
        rows, lines = self._rows, [Text(self._headline, style="bold")]
        if number < len(rows):
            rank = {status: i for i, status in enumerate(self._styles)}
            rows = sorted(rows, key=lambda row: rank[row[-1]])[:number]
            if self._what:
                counts = Counter(row[-1] for row in self._rows)
                by_status = ", ".join(f"{counts[status]} {status}" for status in self._styles if counts[status])
                lines.insert(0, Text(f"{number} of {len(self._rows)} {self._what} shown: {by_status}", style="dim"))
        for *cells, status in rows:
            table.add_row(*cells, Text(status, style=self._styles[status]))
        return Group(FittedTable(table), *lines)


class TrainingProgress(Callback):
    """Shows a training; a context manager, which closes the live table.

    Args:
        console: a terminal gets a live table, anything else plain lines.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._state: TrainState | None = None
        self._num_steps = 0
        self._live: Live | None = None
        self._lines = PlainLines(console)
        self._losses: list[float | None] = []
        self._rates: list[float] = []
        self._phase = ""
        self._candidates: Sequence[str] = ()
        """Learning rates of the candidates while a search is in progress, which precedes the training."""
        self._search = ""
        self._failures = Failures(console)

    def on_status(self, names: Sequence[str], status: str) -> None:
        """Show the candidates of a search of the learning rate."""
        self._candidates = tuple(names) if status.startswith("searching") else ()
        self._search = status
        if self._candidates and not self.console.is_terminal:
            self._lines.show(f"{status}, at rates {', '.join(names)}", urgent=True)

    def on_train_begin(self, trainer: Trainer) -> None:
        """Show this training from now on."""
        if self._live is not None:  # of the search before it
            self._live.stop()
        # a reference to the trainer would keep its base alive in the next pass of a search
        self._state, self._num_steps = trainer.state, trainer.num_steps
        self._losses, self._rates, self._phase = [None] * len(trainer.state.members), [], ""
        names = _rates(self._candidates)
        self._failures = Failures(self.console, names.__getitem__) if names else Failures(self.console)
        if self.console.is_terminal:
            self._live = Live(self._render(trainer.state), console=self.console, refresh_per_second=4)
            self._live.start()

    def __enter__(self) -> Self:
        """Nothing is shown before the training starts."""
        return self

    def __exit__(self, *unused: object) -> None:
        """Draw the table for the last time; it stays."""
        if self._live is not None and self._state is not None:
            self._live.update(self._render(self._state))
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

    def on_evaluation(self, entry: dict[str, object], state: TrainState) -> None:
        """Show the members' validation NLL."""
        when = f"step {state.step}" if self._candidates else f"epoch {entry['epoch']}"
        self._show(state, f"{when}: validation NLL {_by_member(_val_nll(entry))}")

    def on_progress(self, what: str, done: int, total: int) -> None:
        """Show work other than training steps."""
        self._phase = f"{what}: {done} of {total} rows"
        if self._state is not None:
            self._show(self._state)

    def _show(self, state: TrainState, line: str | None = None) -> None:
        self._failures.show(state)
        if self._live is not None:
            self._live.update(self._render(state))
        else:
            self._lines.show(line or self._headline(state), urgent=line is not None)

    def _headline(self, state: TrainState) -> str:
        if self._candidates:
            text = f"{self._search}: step {state.step} of at most {self._num_steps}"
        else:
            text = f"step {state.step} of {self._num_steps}"
        if self._rates:
            text += f", {sum(self._rates) / len(self._rates):,.0f} tokens/s"
        if self._rates and not self._candidates:
            text += f", {duration(_seconds_left(state, self._num_steps))} left"
        return f"{text}, {self._phase}" if self._phase else text

    def _render(self, state: TrainState) -> StatusTable:
        last = state.history[-1] if state.history else {}
        rows = []
        for m, member in enumerate(state.members):
            values = (self._losses[m], *(last[key][m] if last else None for key in ("val_nll", "val_accuracy")))
            cells = ["" if value is None else f"{value:.3f}" for value in values]
            best_step = str(member.best_step) if member.best_nll is not None else ""
            name = self._candidates[m] if self._candidates else str(m)
            rows.append((name, *cells, best_step, str(member.status)))
        first = "learning rate" if self._candidates else "member"
        columns = (first, "loss", "validation NLL", "accuracy", "best at step", "state")
        return StatusTable(columns, rows, _MEMBER_STYLES, self._headline(state), left=["state"], what="members")


class SweepProgress(Callback):
    """Shows a sweep; a context manager, which closes the live table.

    Args:
        console: a terminal gets a live table, anything else plain lines.
        points: all points, in the order of the table.
    """

    def __init__(self, console: Console, points: Sequence[Point]) -> None:
        self.console = console
        self._points = {point.name: point for point in points}
        self._status = dict.fromkeys(self._points, "waiting")
        self._nll: dict[str, float] = {}
        self._headline = ""
        self._members: dict[str, range] = {}
        """The members, within the current pass, of each of its points."""
        self._candidates: Sequence[str] = ()
        """Learning rates of the candidates while a search is in progress."""
        self._search = ""
        self._num_steps = 0
        self._failures = Failures(console)
        self._lines = PlainLines(console)
        self._live = Live(self._render(), console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> Self:
        """Show the table."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *unused: object) -> None:
        """Remove the table: the table of results comes next."""
        if self._live is not None:
            self._live.update(Text(self._headline))
            self._live.stop()

    def on_status(self, names: Sequence[str], status: str) -> None:
        """Show the new status of points."""
        self._candidates = tuple(names) if status.startswith("searching") else ()
        if self._candidates:
            self._search = status
            self._show(f"{status}, at rates {', '.join(names)}", urgent=True)
            return
        self._status |= {name: status for name in names if name in self._status}
        if status == "training":
            sizes = [self._points[name].config.adapt.members for name in names]
            stops = list(itertools.accumulate(sizes))
            self._members = {n: range(stop - size, stop) for n, size, stop in zip(names, sizes, stops, strict=True)}
        self._headline = ""
        if names:
            some = names[0] if len(names) == 1 else f"{len(names)} points"
            self._show(f"{status}: {some}", urgent=True)

    def on_train_begin(self, trainer: Trainer) -> None:
        """Follow the pass of the points that are training now."""
        self._num_steps = trainer.num_steps  # a reference to the trainer would keep its base alive in the next pass
        names = [f"{name}, member {m - members.start}" for name, members in self._members.items() for m in members]
        self._failures = Failures(self.console, (_rates(self._candidates) or names).__getitem__)

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """Show the pass's progress."""
        self._failures.show(state)
        if self._candidates:
            self._show(f"{self._search}: step {state.step} of at most {self._num_steps}")
            return
        members = len(state.with_status("running"))
        self._show(
            f"{len(self._members)} points, {members} members in one pass: step {state.step} of {self._num_steps},"
            f" {report.tokens / report.seconds:,.0f} tokens/s, {duration(_seconds_left(state, self._num_steps))} left"
        )

    def on_evaluation(self, entry: dict[str, object], state: TrainState) -> None:
        """Show the points' validation NLL, the mean over their members."""
        self._failures.show(state)
        if self._candidates:
            return
        nlls = _val_nll(entry)
        for name, members in self._members.items():
            known = [nll for m in members if (nll := nlls[m]) is not None]
            if known:
                self._nll[name] = sum(known) / len(known)
        best = min((self._nll[name] for name in self._members if name in self._nll), default=float("nan"))
        self._show(f"epoch {entry['epoch']}: lowest validation NLL of a point {best:.3f}", urgent=True)

    def on_progress(self, what: str, done: int, total: int) -> None:
        """Show other work; the end of a part of an evaluation at once."""
        self._show(f"{what}: {done} of {total} rows", urgent=done >= total and "evaluating" in self._status.values())

    def _show(self, text: str, urgent: bool = False) -> None:
        self._headline = text
        if self._live is not None:
            self._live.update(self._render())
        else:
            self._lines.show(text, urgent)

    def _render(self) -> StatusTable:
        rows = []
        for name, status in self._status.items():
            nll = self._nll.get(name)
            rows.append((name, "" if nll is None else f"{nll:.3f}", status))
        done = sum(status == "finished" for status in self._status.values())
        headline = f"{done} of {len(rows)} points finished. {self._headline}"
        columns = ("point", "validation NLL", "state")
        return StatusTable(columns, rows, _POINT_STYLES, headline, left=["point", "state"])


class Failures:
    """Prints each failed member of a training once, with the reason; in a terminal above the live table."""

    def __init__(self, console: Console, name: Callable[[int], str] = "member {}".format) -> None:
        self.console = console
        self._name = name
        self._printed: set[int] = set()

    def show(self, state: TrainState) -> None:
        """Print the members that have failed since the last call."""
        for m in state.with_status("failed"):
            if m not in self._printed:
                self._printed.add(m)
                line = f"{self._name(m)} failed: {state.members[m].reason}"
                self.console.print(line, highlight=False, markup=False, soft_wrap=True)


class StatusLine:
    """One line, redrawn in a terminal; a context manager, which clears it.

    Args:
        console: where to print.
        live: whether the line may be redrawn: not while results go to the same terminal.
    """

    def __init__(self, console: Console, live: bool = True) -> None:
        self.console = console
        self._status = console.status("") if console.is_terminal and live else None
        self._lines = PlainLines(console, last=time.monotonic())

    def __enter__(self) -> Self:
        """Show the line."""
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
            plain: whether to print it if the line cannot be redrawn; by default now and then.
        """
        if self._status is not None:
            self._status.update(text)
        elif plain is not False:
            self._lines.show(text, urgent=bool(plain))


class RowProgress(StatusLine, Callback):
    """Progress of evaluations; outside terminals one line per task."""

    def on_progress(self, what: str, done: int, total: int) -> None:
        """Show how many rows are done, of a total that is 0 if unknown."""
        if total == 0:
            self.show(f"{what}: {done:,} rows")
            return
        self.show(f"{what}: {total} rows" if done >= total else f"{what}: {done} of {total} rows", plain=done >= total)


class CompareProgress(StatusLine, Callback):
    """Shows which method of a comparison is being fitted or evaluated."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._name = ""
        self._failures = Failures(console)

    def on_status(self, names: Sequence[str], status: str) -> None:
        """Show this method from now on."""
        self._name = name = ", ".join(names)
        self._failures = Failures(self.console, lambda m: f"{name}: member {m}")

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """Show the training's progress."""
        self._failures.show(state)
        self.show(
            f"{self._name}: epoch {report.epoch + 1}, step {state.step}, {report.tokens / report.seconds:,.0f} tokens/s"
        )

    def on_evaluation(self, entry: dict[str, object], state: TrainState) -> None:
        """Show the validation NLL, the mean over members."""
        self._failures.show(state)
        known = [nll for nll in _val_nll(entry) if nll is not None]
        if known:
            self.show(f"{self._name}: epoch {entry['epoch']}, validation NLL {sum(known) / len(known):.3f}")

    def on_progress(self, what: str, done: int, total: int) -> None:
        """Show work other than training steps."""
        self.show(f"{self._name}: {what}: {done} of {total} rows")


class PlanProgress(Callback):
    """Shows what a plan is measuring."""

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


def _seconds_left(state: TrainState, num_steps: int) -> float:
    """Time of the remaining steps, by the mean step so far."""
    return state.train_s / max(1, state.step) * (num_steps - state.step)


def _rates(candidates: Sequence[str]) -> list[str]:
    """Names of the candidates of a search, for messages."""
    return [f"the candidate at the rate {rate}" for rate in candidates]


def _val_nll(entry: dict[str, object]) -> list[float | None]:
    """Validation NLL by member; None for members that do not train any more."""
    return cast("list[float | None]", entry["val_nll"])


def _by_member(values: Sequence[float | None]) -> str:
    """The values of few members one by one; mean and range of many."""
    if len(values) <= _MOST_LISTED:
        return "by member " + " ".join("-" if value is None else f"{value:.3f}" for value in values)
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = sum(known) / len(known)
    return f"of {len(known)} members: mean {mean:.3f}, lowest {min(known):.3f}, highest {max(known):.3f}"
