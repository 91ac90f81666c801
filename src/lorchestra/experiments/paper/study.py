"""Training what a figure needs: its runs as a sweep, or its methods as a comparison."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorchestra.data.demo import DemoSizes, write_demo_data
from lorchestra.engine.config import RunConfig
from lorchestra.errors import ConfigError
from lorchestra.experiments.build import Say
from lorchestra.experiments.compare import compare_methods
from lorchestra.experiments.demo import demo_config
from lorchestra.experiments.paper.recipe import FigureRecipe
from lorchestra.experiments.sweep.points import Point, named_points, with_settings
from lorchestra.experiments.sweep.run import MOST_MEMBERS, SweepObserver, run_sweep
from lorchestra.methods.contract import Silent


@dataclass(frozen=True)
class Study:
    """What a figure is drawn from: finished runs, or results of methods."""

    runs: Path
    points: tuple[tuple[str, Mapping[str, Any]], ...]
    results: tuple[dict[str, Any], ...]
    caption: str


def study_points(
    recipe: FigureRecipe, out: Path, overrides: Mapping[str, Any]
) -> tuple[RunConfig, list[Point], list[str]]:
    """The figure's configuration, its points, and the tasks or files with rows unlike the training rows.

    Without a task the demo's headlines are written into `out/data` and taken.

    Raises:
        ConfigError: an unknown setting or a value that does not fit it.
    """
    base, ood = RunConfig(), list(recipe.ood)
    settings = {**recipe.settings, **overrides}
    if "data.task" not in settings and "data.train" not in settings:
        sizes = dataclasses.replace(DemoSizes(), **recipe.headlines)
        data = write_demo_data(out / "data", sizes)
        base = dataclasses.replace(RunConfig(), data=demo_config(data, 0).data)
        ood = [str(path) for path in data.ood.values()] if recipe.ood else []
    config = with_settings(base, settings, "--set")
    return config, named_points(config, recipe.points), ood


def run_study(
    recipe: FigureRecipe,
    out: Path,
    overrides: Mapping[str, Any],
    *,
    say: Say,
    observer: Callable[[Sequence[Point]], SweepObserver],
    should_stop: Callable[[], bool],
) -> Study:
    """Train and evaluate what a figure needs; what is finished is skipped.

    Args:
        recipe: the figure's, at some scale.
        out: the figure's directory.
        overrides: settings by dotted field, put above the recipe's.
        say: is told, in one line each, what a person should know.
        observer: makes the observer of a sweep's points.
        should_stop: asked between micro-batches.

    Raises:
        ConfigError, DataError, CheckpointError: bad input.
        Interrupted: `should_stop` returned true.
    """
    config, points, ood = study_points(recipe, out, overrides)
    caption = _caption(recipe, config)
    if recipe.methods:
        results = compare_methods(
            config, recipe.methods, out / "comparison", say=say, observe=lambda name: Silent(), should_stop=should_stop
        )
        return Study(out / "comparison", (), tuple(one for one in results if "entry" in one), caption)
    outcome = run_sweep(
        points,
        out / "sweep",
        most_members=1 if recipe.separately else MOST_MEMBERS,
        ood=ood,
        each_epoch=recipe.each_epoch,
        say=say,
        observer=observer(points),
        should_stop=should_stop,
    )
    if outcome.failed:
        raise ConfigError(
            f"every member of {', '.join(outcome.failed)} failed; the figure cannot be drawn without them"
        )
    return Study(outcome.root / "runs", tuple((p.name, p.settings) for p in points), (), caption)


def _caption(recipe: FigureRecipe, config: RunConfig) -> str:
    """What was trained, and whose values these are."""
    adapt, train = config.adapt, config.train
    task = config.data.task or Path(config.data.train or "").name.split(".")[0]
    return (
        f"Here: {Path(config.base.name).name}, {task}, M = {adapt.members}, r = {adapt.r}, layers {adapt.layers},"
        f" lr {train.lr:g}, {train.epochs} epochs. The paper: {recipe.paper}\nThis project's choice: {recipe.ours}"
    )
