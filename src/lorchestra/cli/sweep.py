"""`lorchestra sweep`: a grid of settings around a recipe, trained in as few packed passes as possible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro

from lorchestra.cli.arguments import parse_with_recipe
from lorchestra.cli.engine import EngineArguments
from lorchestra.config.run import RunConfig
from lorchestra.errors import ConfigError

if TYPE_CHECKING:
    from lorchestra.runs.sweep.engine import Engine
    from lorchestra.runs.sweep.points import Point


@dataclass(frozen=True)
class SweepArguments(RunConfig):
    """Train and evaluate an ensemble for every point of a grid of settings.

    Takes the same recipe and options as train, and one --grid for each setting that varies:

        lorchestra sweep recipes/quick.yaml --data.train reviews.csv --out sweeps/decay \\
            --grid regularize.weight_decay_b=0,10,100 --grid train.lr=2e-4,5e-4

    Points that share base, rows, layers and steps train as members of one packed pass, and the layers below the
    adapters are computed once for all of them. Every point gets a run directory under OUT/runs; results.csv summarizes
    them. Run the same command again to resume after an interruption (finished points are skipped), or with more values
    to add their points.

    With --engine ray, packed passes are trained at the same time on the nodes of a Ray cluster; a pass whose node is
    lost is repeated from its last checkpoint. Results are the same; --most-members decides how many passes there are.
    """

    out: str = field(kw_only=True)
    """The directory of the sweep."""
    grid: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = field(default=(), kw_only=True)
    """A setting and its values, as in train.lr=1e-4,3e-4; repeat the option for each setting that varies."""
    ood: tuple[str, ...] = field(default=(), kw_only=True)
    """Out-of-distribution rows (named tasks or files): how well does uncertainty separate them from the test rows?"""
    most_members: int = field(default=100, kw_only=True)
    """Maximum number of members in one packed pass; fewer need less memory."""
    each_epoch: bool = field(default=False, kw_only=True)
    """Also save predictions of the test rows after every epoch."""
    skip_evaluation: bool = field(default=False, kw_only=True)
    """Do not evaluate on the test rows."""
    json: bool = field(default=False, kw_only=True)
    """Print the results as JSON instead of a table."""
    where: Annotated[EngineArguments, tyro.conf.arg(name="")] = field(default=EngineArguments(), kw_only=True)


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed, config = parse_with_recipe(SweepArguments, arguments, "sweep", required=["out"])
    if not parsed.grid:
        raise ConfigError("--grid: no setting varies; give a setting and its values, as in --grid train.lr=1e-4,3e-4")

    from lorchestra.cli.output import messages, print_json, printer, results
    from lorchestra.cli.progress import SweepProgress
    from lorchestra.cli.stopping import GracefulStop
    from lorchestra.report.comparisons import sweep_table
    from lorchestra.runs.sweep.points import grid_points, parse_axis
    from lorchestra.runs.sweep.results import collect_results
    from lorchestra.runs.sweep.run import run_sweep
    from lorchestra.training.callbacks import Interrupted

    parsed.where.check()
    points = grid_points(config, [parse_axis(text) for text in parsed.grid])
    console = messages()
    say = printer(console)
    try:
        with (
            _engine(parsed.where, points) as engine,
            SweepProgress(console, points) as progress,
            GracefulStop() as stop,
        ):
            outcome = run_sweep(
                points,
                parsed.out,
                most_members=parsed.most_members,
                evaluate=not parsed.skip_evaluation,
                ood=parsed.ood,
                each_epoch=parsed.each_epoch,
                callbacks=[progress, stop],
                engine=engine,
            )
    except Interrupted:
        say("stopped; run the same command again to resume")
        return 130
    point_results = collect_results(outcome.root, points, outcome.failed)
    if parsed.json:
        print_json({"points": point_results})
    else:
        results().print(sweep_table(point_results))
    say(f"runs: {outcome.root / 'runs'}; summary: {outcome.root / 'results.csv'}")
    for name in outcome.failed:
        say(f"warning: {name} failed; {outcome.root / 'failed.json'} has the reason")
    return 1 if outcome.failed else 0


@contextmanager
def _engine(where: EngineArguments, points: Sequence[Point]) -> Iterator[Engine]:
    """What trains the passes; connected to the cluster for the time of the block, if there is one."""
    from lorchestra.runs.sweep.engine import LocalEngine

    if where.engine == "local":
        yield LocalEngine()
        return
    from lorchestra.runs.cluster.connection import connection, worker_shape
    from lorchestra.runs.cluster.passes import RayEngine

    with connection(where.address):
        uses_gpus = any(point.config.base.device != "cpu" for point in points)
        yield RayEngine(worker_shape(where.workers, gpus=uses_gpus))
