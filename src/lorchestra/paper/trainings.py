"""Which trainings figures need: a point of several figures is trained once, with all that any of them asks of it.

Trainings are sweeps (see `sweep.run`) named after what is predicted of them: `plain`, `each-epoch`, `ood`,
`each-epoch-ood`, with `-unevaluated` where that is nothing; `alone/<those>-<point>` where a point is trained by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorchestra.paper.recipes import Recipe
from lorchestra.runs.sweep.points import Point
from lorchestra.runs.sweep.run import run_sweep
from lorchestra.store.run import Run
from lorchestra.store.safe_paths import inside
from lorchestra.training.callbacks import Callback


@dataclass(frozen=True)
class Outputs:
    """What is predicted of a point: its test rows, those after every epoch, rows unlike the training rows."""

    evaluate: bool = False
    each_epoch: bool = False
    ood: bool = False

    @classmethod
    def of(cls, recipe: Recipe) -> Outputs:
        """What a figure asks of its points."""
        return cls(recipe.evaluate, recipe.each_epoch, recipe.ood)

    def __or__(self, other: Outputs) -> Outputs:
        """All of both."""
        return Outputs(self.evaluate or other.evaluate, self.each_epoch or other.each_epoch, self.ood or other.ood)

    @property
    def folder(self) -> str:
        """The name of the sweep of points with these."""
        kinds = [name for name, asked in (("each-epoch", self.each_epoch), ("ood", self.ood)) if asked]
        return "-".join(kinds or ["plain"]) + ("" if self.evaluate else "-unevaluated")

    def and_more(self) -> Iterator[Outputs]:
        """These, then every larger set of outputs."""
        yield self
        every = (Outputs(a, b, c) for a in (True, False) for b in (True, False) for c in (True, False))
        yield from (one for one in every if one | self == one and one != self)


@dataclass(frozen=True)
class Training:
    """Points that train as one sweep, with what is predicted of them."""

    root: Path
    points: tuple[Point, ...]
    outputs: Outputs
    ood: tuple[str, ...]
    """Tasks by name, or files, with rows unlike the training rows."""

    def run(self, *, most_members: int, callbacks: Sequence[Callback]) -> tuple[str, ...]:
        """Train and evaluate what is not finished; returns the points of which every member failed.

        Raises:
            ConfigError, DataError, CheckpointError: bad input.
            Interrupted: a callback asked to stop.
        """
        outcome = run_sweep(
            self.points,
            self.root,
            most_members=most_members,
            evaluate=self.outputs.evaluate,
            ood=self.ood if self.outputs.ood else (),
            each_epoch=self.outputs.each_epoch,
            callbacks=callbacks,
        )
        return outcome.failed


class Trainings:
    """Collects the points of figures, and says where each is trained.

    Args:
        folder: the directory of the trainings; points that are finished there are found again.
        ood: tasks by name, or files, with rows unlike the training rows.
    """

    def __init__(self, folder: Path, ood: tuple[str, ...]) -> None:
        self.folder, self.ood = folder, ood
        self._asked: dict[str, Outputs] = {}
        self._alone: dict[Path, Training] = {}
        self._shared: dict[Path, Training] = {}

    def ask(self, recipe: Recipe, points: Iterable[Point]) -> None:
        """Note what a figure asks of its points; to be called for all figures before any `place`."""
        for point in () if recipe.separate else points:
            self._asked[point.name] = self._asked.get(point.name, Outputs()) | Outputs.of(recipe)

    def place(self, recipe: Recipe, point: Point) -> Run:
        """The run of a figure's point, which is added to what is trained."""
        if recipe.separate:
            outputs = Outputs.of(recipe)
            return self._add(
                self._alone, inside(self.folder, "alone", f"{outputs.folder}-{point.name}"), point, outputs
            )
        for outputs in Outputs.of(recipe).and_more():
            run = Run(inside(self.folder, outputs.folder, "runs", point.name))
            if run.ensemble.exists():
                break
        else:
            outputs = self._asked[point.name]
        return self._add(self._shared, inside(self.folder, outputs.folder), point, outputs)

    def all(self) -> list[Training]:
        """The trainings in which all points are; those that are finished are skipped when they are run."""
        return [*self._shared.values(), *self._alone.values()]

    def _add(self, known: dict[Path, Training], root: Path, point: Point, outputs: Outputs) -> Run:
        before = known.setdefault(root, Training(root, (), outputs, self.ood))
        if point.name not in {one.name for one in before.points}:
            known[root] = replace(before, points=(*before.points, point))
        return Run(inside(root, "runs", point.name))
