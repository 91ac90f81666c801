"""`lorchestra plan`: memory and time of a training, estimated before running it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lorchestra.cli.arguments import parse_with_recipe
from lorchestra.config.run import RunConfig
from lorchestra.errors import ConfigError


@dataclass(frozen=True)
class PlanArguments(RunConfig):
    """Estimate memory, disk space and time of a training before running it.

    Takes the same recipe and options as train:

        lorchestra plan recipes/quick.yaml --data.train reviews.csv

    Rows are read and the base is loaded as for training, and a few seconds of training passes measure the speed of this
    machine and the memory they need. So the base itself must fit into memory. The time covers all epochs, without early
    stopping, loading the base, and the evaluation on test rows. If the training does not fit, settings that would help
    are listed, and the exit code is 1.
    """

    out: str = field(default=".", kw_only=True)
    """Where the run directory would be: its disk is checked for space."""
    seconds: float = field(default=10.0, kw_only=True)
    """Duration of the measurement; a longer one is more accurate on a busy machine."""
    json: bool = field(default=False, kw_only=True)
    """Print JSON instead of a table."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed, config = parse_with_recipe(PlanArguments, arguments, "plan")
    if not 0 < parsed.seconds < 3600:
        raise ConfigError(f"--seconds: {parsed.seconds} is not a number of seconds above 0 and below 3600")

    from lorchestra.cli.output import messages, print_json, results
    from lorchestra.cli.progress import PlanProgress
    from lorchestra.report.plan import plan_tables
    from lorchestra.runs.plan import plan_run

    console = messages()
    with console.status("") as status:
        record = plan_run(config, parsed.out, seconds=parsed.seconds, callbacks=[PlanProgress(status)])
    if parsed.json:
        print_json(record)
    else:
        for part in plan_tables(record):
            results().print(part, highlight=False)
    return 0 if record["bytes"]["fits"] and record["disk_bytes"]["fits"] else 1
