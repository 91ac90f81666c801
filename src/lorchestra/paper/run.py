"""From figure names to the runs they need; figures share common points.

Format of the directory: `paper.json` (profile and settings of all its figures), `data/` (the demo's headlines, used if
no task is given), `trainings/` (see `paper.trainings`; `comparison` of methods) and a folder per figure.
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
HEADLINES = DemoSizes(train=120, val=60, test=200, certify=1, ood=60)
"""Sizes of the demo's data, used if no task is given."""

_RECORD: Shape = {"format_version": int, "profile": str, "config": dict, "ood": [str]}


@dataclass(frozen=True)
class FigurePlan:
    """A figure with its points."""

    name: str
    recipe: Recipe
    points: tuple[Point, ...]
    folders: tuple[Run, ...]
    """The points' run directories, or the single directory of a comparison of methods."""

    def finished(self) -> list[tuple[Point, Run]]:
        """The points with a finished run; a point of which every member failed has none."""
        return [pair for pair in zip(self.points, self.folders, strict=True) if pair[1].ensemble.exists()]


def plan_figures(
    names: Sequence[str], profile: str, config: RunConfig, out: str | Path, ood: Sequence[str] = ()
) -> tuple[list[FigurePlan], list[Training]]:
    """Plan the figures and the trainings they need, each point trained once; writes `paper.json`.

    Args:
        names: figures by name.
        profile: the profile by name.
        config: the profile's settings with the requested overrides.
        out: the directory.
        ood: OOD tasks by name, replacing the profile's.

    Raises:
        ConfigError: invalid settings, settings that a figure sets, or settings different from the directory's.
        CheckpointError: the directory contains something else.
        DataError: the demo's headlines are needed and missing.
    """
    root, scale = typed_path(out), read_profile(profile)
    recipes = {name: read_figure(name, profile) for name in dict.fromkeys(names)}
    tasks = _tasks(config.data, scale)
    settings = {name: figure_settings(recipe, scale, tasks) for name, recipe in recipes.items()}
    check_overrides(config, scale, settings)
    for name in settings:
        named_points(config, settings[name], name)  # refuses invalid settings before anything is written
    config, ood_sets = _with_rows(config, tasks, scale, root, ood, any(recipe.ood for recipe in recipes.values()))
    points = {name: named_points(config, settings[name], name) for name in settings}
    trainings = Trainings(inside(root, "trainings"), ood_sets)
    for name, recipe in recipes.items():
        if not recipe.methods:
            trainings.request(recipe, points[name])
    plans = []
    for name, recipe in recipes.items():
        folders = (
            [Run(inside(root, "trainings", "comparison"))]
            if recipe.methods
            else [trainings.add(recipe, point) for point in points[name]]
        )
        plans.append(FigurePlan(name, recipe, tuple(points[name]), tuple(folders)))
    return plans, trainings.all()


def _tasks(data: DataConfig, profile: Profile) -> tuple[str, ...]:
    """The tasks that all points are trained on: the requested one, or the profile's."""
    if data.task is not None:
        return (data.task,)
    return () if data.train is not None else profile.tasks


def _with_rows(
    config: RunConfig, tasks: tuple[str, ...], profile: Profile, root: Path, ood: Sequence[str], needs_ood: bool
) -> tuple[RunConfig, tuple[str, ...]]:
    """The settings with their rows, and the OOD tasks or files; creates the directory with its record."""
    headlines = not tasks and config.data.train is None
    data = dataclasses.replace(config.data, task=tasks[0]) if tasks else config.data
    ood_sets = tuple(name for name in ood or profile.ood if name not in tasks[:1])
    for name in ood_sets:
        is_task_name(name)  # refuses what is neither a task nor a file
    if needs_ood and not (ood_sets or headlines):
        raise ConfigError("--ood: fig5 and ood need OOD rows; name tasks with --ood TASK ...")
    _register(root, profile.name, absolute_settings(dataclasses.replace(config, data=data)), ood_sets)
    if headlines:
        files = write_demo_data(inside(root, "data"), HEADLINES, seed=0)
        prompt = data.prompt if data.prompt.template else dataclasses.replace(data.prompt, template=DEMO_PROMPT)
        data = dataclasses.replace(
            data,
            train=str(files.train),
            val=str(files.val),
            test=str(files.test),
            scoring="text" if data.scoring == "auto" else data.scoring,
            prompt=prompt,
        )
        ood_sets = ood_sets or tuple(str(path) for path in files.ood.values())
    return absolute_settings(dataclasses.replace(config, data=data)), ood_sets


def _register(root: Path, profile: str, config: RunConfig, ood: tuple[str, ...]) -> None:
    """Create the directory, or check that its figures were made with the same profile and settings."""
    path = inside(root, "paper.json")
    if path.exists():
        record = read_json(path, _RECORD)
        if record["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: format_version is {record['format_version']}, expected {FORMAT_VERSION}; choose another --out"
            )
        saved = from_mapping(RunConfig, record["config"], str(path))
        saved = dataclasses.replace(saved, base=absolute_base(saved.base))
        changed = {"--profile": (profile, record["profile"]), "--ood": (list(ood), record["ood"])}
        changed |= {f"--{name}": values for name, values in differences(config, saved).items()}
        for name, (now, then) in changed.items():
            if now != then:
                raise ConfigError(
                    f"{name}: the figures in {root} were made with {then!r}, not {now!r}; keep it, or choose another"
                    " --out"
                )
        return
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise CheckpointError(f"--out {root}: exists and is not a directory of paper figures; choose another name")
    record = {"format_version": FORMAT_VERSION, "profile": profile, "config": to_mapping(config), "ood": list(ood)}
    atomic_write_json(path, record)
