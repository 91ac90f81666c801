"""From figures by name to finished runs; figures share what they have in common.

Format of the directory: `paper.json` (profile and settings, the same for all figures in it), `data/` (the demo's
headlines, where no task is named), `trainings/` (see `paper.trainings`; `comparison` of methods) and a folder for each
figure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorchestra.config.data import DataConfig
from lorchestra.config.mappings import differences, from_mapping, to_mapping
from lorchestra.config.run import RunConfig
from lorchestra.demo.data import DEMO_PROMPT, DemoSizes, write_demo_data
from lorchestra.errors import CheckpointError, ConfigError
from lorchestra.models.loading import absolute_base
from lorchestra.paper.recipes import Profile, Recipe, check_overrides, figure_settings, read_figure, read_profile
from lorchestra.paper.trainings import Training, Trainings
from lorchestra.runs.rows import absolute_settings, is_task_name
from lorchestra.runs.sweep.points import Point, named_points
from lorchestra.store.atomic import atomic_write_json
from lorchestra.store.run import Run
from lorchestra.store.safe_paths import inside, typed_path
from lorchestra.store.schema import Shape, read_json

FORMAT_VERSION = 1
HEADLINES = DemoSizes(train=120, val=60, test=200, ood=60)
"""Rows of the demo's data, which stand in where no task is named."""

_RECORD: Shape = {"format_version": int, "profile": str, "config": dict, "ood": [str]}


@dataclass(frozen=True)
class FigurePlan:
    """A figure with its points; `folders` are the run directories of the points, in their order.

    Of a comparison of methods, it is the directory of that.
    """

    name: str
    recipe: Recipe
    points: tuple[Point, ...]
    folders: tuple[Run, ...]

    def finished(self) -> list[tuple[Point, Run]]:
        """The points that have a run; those of which every member failed have none."""
        return [pair for pair in zip(self.points, self.folders, strict=True) if pair[1].ensemble.exists()]


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
    root, scale = typed_path(out), read_profile(profile)
    recipes = {name: read_figure(name, profile) for name in dict.fromkeys(names)}
    tasks = _tasks(config.data, scale)
    settings = {name: figure_settings(recipe, scale, tasks) for name, recipe in recipes.items()}
    check_overrides(config, scale, settings)
    for name, own in settings.items():
        named_points(config, own, name)  # refuses bad settings before anything is written
    config, far = _with_rows(config, tasks, scale, root, ood, any(recipe.ood for recipe in recipes.values()))
    points = {name: named_points(config, own, name) for name, own in settings.items()}
    trained = {name: recipe for name, recipe in recipes.items() if not recipe.methods}
    trainings = Trainings(inside(root, "trainings"), far)
    for name, recipe in trained.items():
        trainings.ask(recipe, points[name])
    plans = []
    for name, recipe in recipes.items():
        folders = (
            [trainings.place(recipe, point) for point in points[name]]
            if name in trained
            else [Run(inside(root, "trainings", "comparison"))]
        )
        plans.append(FigurePlan(name, recipe, tuple(points[name]), tuple(folders)))
    return plans, trainings.all()


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
    asked = absolute_settings(dataclasses.replace(config, data=data))
    _register(root, profile.name, asked, far)
    if headlines:
        files = write_demo_data(inside(root, "data"), HEADLINES, seed=0)
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
    return absolute_settings(dataclasses.replace(config, data=data)), far


def _register(root: Path, profile: str, config: RunConfig, far: tuple[str, ...]) -> None:
    """Make the directory, or see that what is in it was made with the same profile and settings."""
    path = inside(root, "paper.json")
    if path.exists():
        record = read_json(path, _RECORD)
        if record["format_version"] != FORMAT_VERSION:
            raise CheckpointError(f"{path}: format_version is {record['format_version']}, this is {FORMAT_VERSION}")
        before = from_mapping(RunConfig, record["config"], str(path))
        before = dataclasses.replace(before, base=absolute_base(before.base))
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
