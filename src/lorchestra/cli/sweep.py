"""`lorchestra sweep`: a grid of settings around a recipe, trained in as few packed passes as possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from lorchestra.cli.arguments import parse_with_recipe
from lorchestra.config.run import RunConfig
from lorchestra.errors import ConfigError


@dataclass(frozen=True)
class SweepArguments(RunConfig):
    """Train and evaluate an ensemble for every point of a grid of settings.

    Takes the same recipe and options as train, and one --grid for each setting that varies:

        lorchestra sweep recipes/quick.yaml --data.train reviews.csv --out sweeps/decay \\
            --grid regularize.weight_decay_b=0,10,100 --grid train.lr=2e-4,5e-4

    Points that share base, rows, layers and steps train as members of one packed pass, and the layers below the
    adapters are computed once for all. Every point becomes a run directory of its own under OUT/runs; results.csv has
    them all. The same command goes on after an interruption and skips what is finished; with more values it adds their
    points.
    """

    out: str = field(kw_only=True)
    """The directory of the sweep."""
    grid: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = field(default=(), kw_only=True)
    """A setting and its values, as in train.lr=1e-4,3e-4; once for each setting that varies."""
    ood: tuple[str, ...] = field(default=(), kw_only=True)
    """Tasks by name, or files, with rows unlike the training rows; how well does uncertainty tell them apart?"""
    most_members: int = field(default=100, kw_only=True)
    """Most members of one packed pass; fewer take less memory."""
    each_epoch: bool = field(default=False, kw_only=True)
    """Also predict the test rows after every epoch, into the runs' predictions."""
    skip_evaluation: bool = field(default=False, kw_only=True)
    """Do not evaluate on the test rows."""
    json: bool = field(default=False, kw_only=True)
    """Print the results as JSON instead of a table."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed, config = parse_with_recipe(SweepArguments, arguments, "sweep", required=["out"])
    if not parsed.grid:
        raise ConfigError("--grid: nothing varies; name a setting and its values, as in --grid train.lr=1e-4,3e-4")

    from lorchestra.cli.output import messages, print_json, printer, results
    from lorchestra.cli.progress import GracefulStop
    from lorchestra.cli.sweep_progress import SweepProgress
    from lorchestra.report.comparisons import sweep_table
    from lorchestra.runs.sweep.points import grid_points, parse_axis
    from lorchestra.runs.sweep.results import collect_results
    from lorchestra.runs.sweep.run import run_sweep
    from lorchestra.training.callbacks import Interrupted

    points = grid_points(config, [parse_axis(text) for text in parsed.grid])
    console = messages()
    say = printer(console)
    try:
        with SweepProgress(console, points) as progress, GracefulStop() as stop:
            outcome = run_sweep(
                points,
                parsed.out,
                most_members=parsed.most_members,
                evaluate=not parsed.skip_evaluation,
                ood=parsed.ood,
                each_epoch=parsed.each_epoch,
                callbacks=[progress, stop],
            )
    except Interrupted:
        say("stopped; the same command goes on")
        return 130
    found = collect_results(outcome.root, points, outcome.failed)
    if parsed.json:
        print_json({"points": found})
    else:
        results().print(sweep_table(found))
    say(f"runs: {outcome.root / 'runs'}; as one table: {outcome.root / 'results.csv'}")
    for name in outcome.failed:
        say(f"warning: {name} failed; {outcome.root / 'failed.json'} has the reason")
    return 1 if outcome.failed else 0
