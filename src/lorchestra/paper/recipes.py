"""Recipes of figures and profiles of scale: read from YAML, and made into points to train."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorchestra.config.mappings import differences, from_mapping, read_mapping
from lorchestra.config.run import RunConfig
from lorchestra.errors import ConfigError, did_you_mean

_PROFILES = "profiles"


@dataclass(frozen=True)
class Recipe:
    """What a figure needs to be trained; `recipes/paper/<figure>.yaml`."""

    title: str = ""
    """What the figure shows, in one line."""
    points: tuple[dict, ...] = ()
    """Points by dotted setting; a list of values stands for a point each, several lists for their combinations, and
    `$name` for a value of the profile."""
    each_epoch: bool = False
    """Whether the test rows are predicted after every epoch."""
    ood: bool = False
    """Whether rows unlike the training rows are predicted."""
    evaluate: bool = True
    """Whether runs are evaluated on the test rows."""
    separate: bool = False
    """Whether every point is trained by itself, so that its cost is its own."""
    one_task: bool = False
    """Whether the first of several tasks is enough."""
    methods: tuple[str, ...] = ()
    """Methods to compare on the first point's configuration, in place of training the points."""
    profiles: dict = field(default_factory=dict)
    """Other values of the above at a profile, by its name."""


@dataclass(frozen=True)
class Profile:
    """A scale at which figures are trained; one of `recipes/paper/profiles.yaml`."""

    name: str = ""
    """Its name."""
    summary: str = ""
    """What it takes, in one line."""
    settings: RunConfig = field(default_factory=RunConfig)
    """The settings that all its points have in common."""
    tasks: tuple[str, ...] = ()
    """Tasks by name, each of which gets all points; none for the demo's headlines."""
    ood: tuple[str, ...] = ()
    """Tasks by name with rows unlike the training rows."""
    values: dict = field(default_factory=dict)
    """What `$name` stands for in points."""
    values_by_task: dict = field(default_factory=dict)
    """The same for single tasks, in place of the above."""


def recipes_folder() -> Path:
    """The folder with the recipes: within the installed package, or beside the sources of a checkout.

    Raises:
        ConfigError: neither is there.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "recipes" / "paper", package.parents[1] / "recipes" / "paper"):
        if (folder / f"{_PROFILES}.yaml").is_file():
            return folder
    raise ConfigError(f"{package}: the recipes of the paper's figures are missing; install lorchestra again")


def read_profile(name: str) -> Profile:
    """A profile by name.

    Raises:
        ConfigError: an unknown name (the nearest is suggested), or a damaged file.
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
    """A figure's recipe, as it is at a profile.

    Raises:
        ConfigError: no such recipe, or a damaged one.
    """
    path = recipes_folder() / f"{name}.yaml"
    mapping = read_mapping(path)
    other = mapping.get("profiles", {})
    here = other.get(profile, {}) if isinstance(other, dict) else {}
    return from_mapping(Recipe, {**mapping, **(here or {})}, str(path))


def figure_settings(recipe: Recipe, profile: Profile, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """A recipe's points as settings without lists and `$names`, for each task; equal ones once.

    Args:
        recipe: the figure's.
        profile: gives the values that points name.
        tasks: tasks by name; with more than one, the task is a setting of the points.

    Raises:
        ConfigError: a point names a value that the profile does not have.
    """
    found: dict[str, dict[str, Any]] = {}
    for task in (tasks[:1] if recipe.one_task else tasks) or ("",):
        values = profile.values | profile.values_by_task.get(task, {})
        own = {"data.task": task} if len(tasks) > 1 else {}
        for point in recipe.points:
            for settings in _combinations(point, values):
                one = dict(sorted((own | settings).items()))  # so that a point has the same name in every figure
                found.setdefault(repr(one), one)
    return list(found.values())


def check_overrides(config: RunConfig, profile: Profile, settings: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Refuse to override what all figures set themselves: it would have no effect.

    Args:
        config: the settings that were asked for.
        profile: the profile whose settings they replace.
        settings: the points of each figure by its name.

    Raises:
        ConfigError: names the field.
    """
    every = [point for points in settings.values() for point in points]
    for name in differences(config, profile.settings):
        if all(name in point for point in every):
            values = ", ".join(dict.fromkeys(str(point[name]) for point in every))
            raise ConfigError(f"--{name}: {', '.join(settings)} sets it itself ({values}); leave it out")


def _combinations(point: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    lists = []
    for value in point.values():
        if isinstance(value, str) and value.startswith("$"):
            if value[1:] not in values:
                raise ConfigError(f"{value}: the profile has no such value; {did_you_mean(value[1:], values)}")
            value = values[value[1:]]
        lists.append(value if isinstance(value, list) else [value])
    for chosen in itertools.product(*lists):
        yield dict(zip(point, chosen, strict=True))
