"""The trainings that figures need: a point of several figures is trained once, with all outputs that any of them needs.

Trainings are sweeps (see `sweep.run`) named after their outputs: `plain`, `each-epoch`, `ood` or `each-epoch-ood`, with
`-unevaluated` if test rows are not evaluated; `alone/<outputs>-<point>` for a point that is trained separately.
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
    """What a point predicts: its test rows, test rows after every epoch, OOD rows."""

    evaluate: bool = False
    each_epoch: bool = False
    ood: bool = False

    @classmethod
    def of(cls, recipe: Recipe) -> Outputs:
        """The outputs that a figure needs of its points."""
        return cls(recipe.evaluate, recipe.each_epoch, recipe.ood)

    def __or__(self, other: Outputs) -> Outputs:
        """The union."""
        return Outputs(self.evaluate or other.evaluate, self.each_epoch or other.each_epoch, self.ood or other.ood)

    @property
    def folder(self) -> str:
        """The folder name of the sweep of points with these outputs."""
        kinds = [name for name, needed in (("each-epoch", self.each_epoch), ("ood", self.ood)) if needed]
        return "-".join(kinds or ["plain"]) + ("" if self.evaluate else "-unevaluated")

    def supersets(self) -> Iterator[Outputs]:
        """These outputs, then every larger set."""
        yield self
        every = (Outputs(a, b, c) for a in (True, False) for b in (True, False) for c in (True, False))
        yield from (outputs for outputs in every if outputs | self == outputs and outputs != self)


@dataclass(frozen=True)
class Training:
    """Points that are trained as one sweep, with their outputs."""

    root: Path
    points: tuple[Point, ...]
    outputs: Outputs
    ood: tuple[str, ...]
    """OOD tasks by name, or files."""

    def run(self, *, most_members: int, callbacks: Sequence[Callback]) -> tuple[str, ...]:
        """Train and evaluate unfinished points; returns those of which every member failed.

        Raises:
            ConfigError, DataError, CheckpointError: invalid input.
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
    """Collects the points of figures and assigns each to a training.

    Args:
        folder: the directory of the trainings; finished points in it are reused.
        ood: OOD tasks by name, or files.
    """

    def __init__(self, folder: Path, ood: tuple[str, ...]) -> None:
        self.folder, self.ood = folder, ood
        self._requested: dict[str, Outputs] = {}
        self._separate: dict[Path, Training] = {}
        self._shared: dict[Path, Training] = {}

    def request(self, recipe: Recipe, points: Iterable[Point]) -> None:
        """Register the outputs a figure needs of its points; call it for all figures before `add`."""
        for point in () if recipe.separate else points:
            self._requested[point.name] = self._requested.get(point.name, Outputs()) | Outputs.of(recipe)

    def add(self, recipe: Recipe, point: Point) -> Run:
        """Assign a figure's point to a training; returns its run directory."""
        needed = Outputs.of(recipe)
        if recipe.separate:
            root = inside(self.folder, "alone", f"{needed.folder}-{point.name}")
            return self._add(self._separate, root, point, needed)
        for outputs in needed.supersets():
            run = Run(inside(self.folder, outputs.folder, "runs", point.name))
            if run.ensemble.exists():
                break
        else:
            outputs = self._requested[point.name]
        return self._add(self._shared, inside(self.folder, outputs.folder), point, outputs)

    def all(self) -> list[Training]:
        """The trainings of all points; finished points are skipped when a training runs."""
        return [*self._shared.values(), *self._separate.values()]

    def _add(self, trainings: dict[Path, Training], root: Path, point: Point, outputs: Outputs) -> Run:
        training = trainings.setdefault(root, Training(root, (), outputs, self.ood))
        if point.name not in {other.name for other in training.points}:
            trainings[root] = replace(training, points=(*training.points, point))
        return Run(inside(root, "runs", point.name))
