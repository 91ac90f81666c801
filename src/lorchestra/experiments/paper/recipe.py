"""Recipes of figures: what is trained for each, at which scale, and which values are the paper's.

A recipe is `recipes/paper/<figure>.yaml`; what all figures have in common at a scale is in `profiles.yaml` beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

import lorchestra
from lorchestra.errors import ConfigError, did_you_mean

PROFILES = ("smoke", "small", "7b")
Profile = Literal["smoke", "small", "7b"]


@dataclass(frozen=True)
class FigureRecipe:
    """What one figure needs, at one scale."""

    title: str
    paper: str
    """What is known of the paper's own set-up."""
    ours: str
    """Values that the paper leaves open and this project chose."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of every run, by dotted field."""
    points: list[dict[str, Any]] = field(default_factory=lambda: [{}])
    """Settings in which the runs differ, one mapping a run."""
    each_epoch: bool = False
    """Whether test rows are predicted after every epoch."""
    ood: list[str] = field(default_factory=list)
    """Tasks by name with rows unlike the training rows."""
    separately: bool = False
    """Whether each run has a packed pass of its own: its cost is what the figure is about."""
    methods: list[str] = field(default_factory=list)
    """Methods to compare, where that is the figure."""
    headlines: dict[str, int] = field(default_factory=dict)
    """Rows of the demo's headlines to train on, where no task is named; see `data.demo.DemoSizes`."""


def recipe_directory() -> Path:
    """Where the recipes are: in the package, or beside it in a checkout.

    Raises:
        ConfigError: nowhere.
    """
    package = Path(lorchestra.__file__).parent
    for place in (package / "recipes" / "paper", package.parents[1] / "recipes" / "paper"):
        if (place / "profiles.yaml").is_file():
            return place
    raise ConfigError("the recipes of the paper's figures are not installed; install lorchestra from a checkout")


def figure_names() -> list[str]:
    """Figures that have a recipe, in the order of the paper."""
    found = {path.stem for path in recipe_directory().glob("*.yaml")} - {"profiles"}
    return sorted(found, key=lambda name: (not name.startswith("fig"), name))


def read_figure(name: str, profile: Profile) -> FigureRecipe:
    """A figure's recipe at a scale: the profile's settings, then the figure's, then the figure's own for the profile.

    Raises:
        ConfigError: an unknown figure or profile.
    """
    if name not in figure_names():
        raise ConfigError(f"paper: {name!r} is no figure; {did_you_mean(name, figure_names())}")
    if profile not in PROFILES:
        raise ConfigError(f"--profile: {profile!r} is no profile; {did_you_mean(profile, PROFILES)}")
    common = _read("profiles")[profile]
    own = _read(name)
    scaled = own.pop("profiles", {}).get(profile, {})
    parts: list[Mapping[str, Any]] = [common, own, scaled]
    merged: dict[str, Any] = {}
    for part in parts:
        merged |= part
    merged["settings"] = {key: value for part in parts for key, value in part.get("settings", {}).items()}
    return FigureRecipe(**merged)


def titles() -> dict[str, str]:
    """Every figure's title, by name."""
    return {name: str(_read(name)["title"]) for name in figure_names()}


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((recipe_directory() / f"{name}.yaml").read_text(encoding="utf-8"))
    return found
