"""Recipes of figures and profiles of scale: read from YAML and expanded into points to train."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorchestra.config.mappings import differences, from_mapping, read_mapping
from lorchestra.config.run import RunConfig
from lorchestra.errors import ConfigError, did_you_mean
from lorchestra.types import Json

Settings = Mapping[str, Any]
"""The settings in which the points of a figure differ, by dotted field."""
_PROFILES = "profiles"


@dataclass(frozen=True)
class Recipe:
    """How a figure is trained; `recipes/paper/<figure>.yaml`."""

    title: str = ""
    """Title of the figure, one line."""
    points: tuple[dict, ...] = ()
    """Points as values by dotted setting. A list expands to one point per value, several lists to their combinations;
    `$name` is replaced by a value of the profile."""
    each_epoch: bool = False
    """Whether the test rows are predicted after every epoch."""
    ood: bool = False
    """Whether OOD rows are predicted."""
    evaluate: bool = True
    """Whether runs are evaluated on the test rows."""
    separate: bool = False
    """Whether every point is trained separately, so that its cost can be measured."""
    one_task: bool = False
    """Whether only the first of several tasks is used."""
    methods: tuple[str, ...] = ()
    """Methods to compare on the first point's configuration, instead of training the points."""
    profiles: dict = field(default_factory=dict)
    """Overrides of the fields above, by profile name."""


@dataclass(frozen=True)
class Profile:
    """A scale at which figures are trained; an entry of `recipes/paper/profiles.yaml`."""

    name: str = ""
    """Its name."""
    summary: str = ""
    """Required time and hardware, one line."""
    settings: RunConfig = field(default_factory=RunConfig)
    """The settings shared by all points."""
    tasks: tuple[str, ...] = ()
    """Tasks by name, each trained with all points; empty for the demo's headlines."""
    ood: tuple[str, ...] = ()
    """OOD tasks by name."""
    values: dict = field(default_factory=dict)
    """Values of `$name` in points."""
    values_by_task: dict = field(default_factory=dict)
    """Overrides of `values` for single tasks."""


def recipes_folder() -> Path:
    """The folder with the recipes: in the installed package, or in the root of a source checkout.

    Raises:
        ConfigError: neither exists.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "recipes" / "paper", package.parents[1] / "recipes" / "paper"):
        if (folder / f"{_PROFILES}.yaml").is_file():
            return folder
    raise ConfigError(f"{package}: the recipes of the paper's figures are missing; install lorchestra again")


def read_profile(name: str) -> Profile:
    """Read a profile.

    Raises:
        ConfigError: unknown name (the closest is suggested), or invalid file.
    """
    known = profile_names()
    if name not in known:
        raise ConfigError(f"--profile {name}: no such profile; {did_you_mean(name, known)}")
    path = recipes_folder() / f"{_PROFILES}.yaml"
    mapping = read_mapping(path)[name]
    return replace(from_mapping(Profile, mapping, str(path), name), name=name)


def profile_names() -> tuple[str, ...]:
    """The profiles, from the largest scale to the smallest."""
    return tuple(read_mapping(recipes_folder() / f"{_PROFILES}.yaml"))


def read_figure(name: str, profile: str | None = None) -> Recipe:
    """Read a figure's recipe, with the overrides of a profile.

    Raises:
        ConfigError: no such recipe, or invalid file.
    """
    path = recipes_folder() / f"{name}.yaml"
    mapping = read_mapping(path)
    profiles = mapping.get("profiles", {})
    overrides = profiles.get(profile, {}) if isinstance(profiles, dict) else {}
    return from_mapping(Recipe, {**mapping, **(overrides or {})}, str(path))


def figure_settings(recipe: Recipe, profile: Profile, tasks: Sequence[str]) -> list[Settings]:
    """A recipe's points, expanded per task and without duplicates.

    Args:
        recipe: the figure's recipe.
        profile: gives the values of `$names`.
        tasks: tasks by name; with more than one, the task is a setting of the points.

    Raises:
        ConfigError: a point uses a value that the profile does not define.
    """
    expanded: dict[str, Settings] = {}
    for task in (tasks[:1] if recipe.one_task else tasks) or ("",):
        values = profile.values | profile.values_by_task.get(task, {})
        task_settings = {"data.task": task} if len(tasks) > 1 else {}
        for point in recipe.points:
            for combination in _combinations(point, values):
                settings = dict(sorted((task_settings | combination).items()))  # names are equal across figures
                expanded.setdefault(repr(settings), settings)
    return list(expanded.values())


def check_overrides(config: RunConfig, profile: Profile, settings: Mapping[str, Sequence[Settings]]) -> None:
    """Refuse to override a setting that all points set: it would have no effect.

    Args:
        config: the requested settings.
        profile: the profile whose settings they replace.
        settings: points by figure name.

    Raises:
        ConfigError: names the field.
    """
    points = [point for of_figure in settings.values() for point in of_figure]
    for name in differences(config, profile.settings):
        if all(name in point for point in points):
            values = ", ".join(dict.fromkeys(str(point[name]) for point in points))
            raise ConfigError(f"--{name}: set by {', '.join(settings)} ({values}); remove the option")


def _combinations(point: Settings, values: Settings) -> Iterator[Json]:
    lists = []
    for value in point.values():
        if isinstance(value, str) and value.startswith("$"):
            if value[1:] not in values:
                raise ConfigError(f"{value}: the profile has no such value; {did_you_mean(value[1:], values)}")
            value = values[value[1:]]
        lists.append(value if isinstance(value, list) else [value])
    for combination in itertools.product(*lists):
        yield dict(zip(point, combination, strict=True))
