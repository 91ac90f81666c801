"""From figures by name to finished runs; figures share what they have in common.

Format of the directory: `paper.json` (profile and settings, the same for all figures in it), `data/` (the demo's
headlines, where no task is named), `trainings/` (sweeps, see `sweep.run`: `plain`, `each-epoch` and `ood` by what is
predicted, `alone/<point>` where a point is trained by itself) and a folder for each figure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorchestra.config import differences, from_mapping, to_mapping
from lorchestra.data.config import DataConfig
from lorchestra.data.demo import DEMO_PROMPT, DemoSizes, write_demo_data
from lorchestra.engine.config import RunConfig
from lorchestra.errors import CheckpointError, ConfigError
from lorchestra.experiments.build import Say
from lorchestra.experiments.paper.recipes import (
    Profile,
    Recipe,
    check_overrides,
    figure_settings,
    read_figure,
    read_profile,
)
from lorchestra.experiments.rows import absolute_paths, is_task_name
from lorchestra.experiments.sweep.points import Point, named_points
from lorchestra.experiments.sweep.run import SweepObserver, run_sweep
from lorchestra.store.atomic import atomic_write_json
from lorchestra.store.run_dir import RunDir, read_json
from lorchestra.store.schema import check_shape

FORMAT_VERSION = 1
HEADLINES = DemoSizes(train=120, val=60, test=200, ood=60)
"""Rows of the demo's data, which stand in where no task is named."""

_RECORD: dict[str, Any] = {"format_version": int, "profile": str, "config": dict, "ood": [str]}


@dataclass(frozen=True)
class FigurePlan:
    """A figure with its points; `folders` are the run directories of the points, in their order.

    Of a comparison of methods, it is the directory of that.
    """

    name: str
    recipe: Recipe
    points: tuple[Point, ...]
    folders: tuple[RunDir, ...]

    def finished(self) -> list[tuple[Point, RunDir]]:
        """The points that have a run; those of which every member failed have none."""
        return [pair for pair in zip(self.points, self.folders, strict=True) if pair[1].ensemble.exists()]


@dataclass(frozen=True)
class Training:
    """Points that train as one sweep, with what is predicted of them."""

    root: Path
    points: tuple[Point, ...]
    each_epoch: bool
    evaluate: bool
    ood: tuple[str, ...]

    def run(
        self, *, most_members: int, say: Say, observer: SweepObserver, should_stop: Callable[[], bool]
    ) -> tuple[str, ...]:
        """Train and evaluate what is not finished; returns the points of which every member failed.

        Raises:
            ConfigError, DataError, CheckpointError: bad input.
            Interrupted: `should_stop` returned true.
        """
        outcome = run_sweep(
            self.points,
            self.root,
            most_members=most_members,
            evaluate=self.evaluate,
            ood=self.ood,
            each_epoch=self.each_epoch,
            say=say,
            observer=observer,
            should_stop=should_stop,
        )
        return outcome.failed


def plan_figures(
    names: Sequence[str], profile: str, config: RunConfig, out: str | Path, ood: Sequence[str] = ()
) -> tuple[list[FigurePlan], list[Training]]:
    """What the figures need, and the trainings that give it, each point once; writes `paper.json`.

    Args:
        names: figures by name.
        profile: the profile by name.
        config: its settings, with those asked for in their place.
        out: the directory.
        ood: tasks by name with rows unlike the training rows, in place of the profile's.

    Raises:
        ConfigError: settings that cannot work, that a figure sets itself, or other ones than the directory's.
        CheckpointError: something else is in the directory.
        DataError: the demo's headlines are needed and not there.
    """
    root, scale = Path(out), read_profile(profile)
    recipes = {name: read_figure(name, profile) for name in dict.fromkeys(names)}
    tasks = _tasks(config.data, scale)
    settings = {name: figure_settings(recipe, scale, tasks) for name, recipe in recipes.items()}
    check_overrides(config, scale, settings)
    for name, own in settings.items():
        named_points(config, own, name)  # refuses bad settings before anything is written
    config, far = _with_rows(config, tasks, scale, root, ood, any(recipe.ood for recipe in recipes.values()))
    plans: list[FigurePlan] = []
    trainings: dict[Path, Training] = {}
    for name, recipe in recipes.items():
        points = named_points(config, settings[name], name)
        if recipe.methods:
            plans.append(FigurePlan(name, recipe, tuple(points), (RunDir(root / "trainings" / "comparison"),)))
            continue
        folders = []
        for point in points:
            training = _training(recipe, point, root / "trainings", far)
            before = trainings.get(training.root, training)
            names_before = {one.name for one in before.points}
            every = before.points if point.name in names_before else (*before.points, point)
            trainings[training.root] = dataclasses.replace(before, points=every)
            folders.append(RunDir(training.root / "runs" / point.name))
        plans.append(FigurePlan(name, recipe, tuple(points), tuple(folders)))
    return plans, list(trainings.values())


def _training(recipe: Recipe, point: Point, folder: Path, far: tuple[str, ...]) -> Training:
    """The training that a recipe's point belongs to, with that point."""
    kinds = [name for name, asked in (("each-epoch", recipe.each_epoch), ("ood", recipe.ood)) if asked]
    kind = "-".join(kinds or ["plain"]) + ("" if recipe.evaluate else "-unevaluated")
    root = folder / "alone" / f"{kind}-{point.name}" if recipe.separate else folder / kind
    return Training(root, (point,), recipe.each_epoch, recipe.evaluate, far if recipe.ood else ())


def _tasks(data: DataConfig, profile: Profile) -> tuple[str, ...]:
    """The tasks that all points are trained on: that which is asked for, or the profile's."""
    if data.task is not None:
        return (data.task,)
    return () if data.train is not None else profile.tasks


def _with_rows(
    config: RunConfig, tasks: tuple[str, ...], profile: Profile, root: Path, ood: Sequence[str], ood_asked: bool
) -> tuple[RunConfig, tuple[str, ...]]:
    """The settings with their rows, and tasks or files with rows unlike them; the directory is made with its record."""
    headlines = not tasks and config.data.train is None
    data = dataclasses.replace(config.data, task=tasks[0]) if tasks else config.data
    far = tuple(name for name in ood or profile.ood if name not in tasks[:1])
    for name in far:
        is_task_name(name)  # refuses what is neither a task nor a file
    if ood_asked and not (far or headlines):
        raise ConfigError("--ood: fig5 and ood need rows unlike the training rows; name tasks with --ood TASK ...")
    asked = dataclasses.replace(config, data=absolute_paths(data))
    _register(root, profile.name, asked, far)
    if headlines:
        files = write_demo_data(root / "data", HEADLINES, seed=0)
        prompt = (
            config.data.prompt
            if config.data.prompt.template
            else dataclasses.replace(config.data.prompt, template=DEMO_PROMPT)
        )
        data = dataclasses.replace(
            data,
            train=str(files.train),
            val=str(files.val),
            test=str(files.test),
            scoring="text" if data.scoring == "auto" else data.scoring,
            prompt=prompt,
        )
        far = far or tuple(str(path) for path in files.ood.values())
    return dataclasses.replace(config, data=absolute_paths(data)), far


def _register(root: Path, profile: str, config: RunConfig, far: tuple[str, ...]) -> None:
    """Make the directory, or see that what is in it was made with the same profile and settings."""
    path = root / "paper.json"
    if path.exists():
        record = read_json(path)
        check_shape(record, _RECORD, path)
        if record["format_version"] != FORMAT_VERSION:
            raise CheckpointError(f"{path}: format_version is {record['format_version']}, this is {FORMAT_VERSION}")
        before = from_mapping(RunConfig, record["config"], str(path))
        changed = {"--profile": (profile, record["profile"]), "--ood": (list(far), record["ood"])}
        changed |= {f"--{name}": values for name, values in differences(config, before).items()}
        for name, (now, then) in changed.items():
            if now != then:
                raise ConfigError(
                    f"{name}: the figures in {root} were made with {then!r}, not {now!r}; keep it, or choose another"
                    " --out"
                )
        return
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise CheckpointError(f"--out {root}: exists and is not the directory of paper figures; choose another name")
    record = {"format_version": FORMAT_VERSION, "profile": profile, "config": to_mapping(config), "ood": list(far)}
    atomic_write_json(path, record)
