"""`lorchestra monitor`: are new rows like those that a guarantee was made on?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from lorchestra.cli.arguments import check_run_argument, parse
from lorchestra.errors import ConfigError


@dataclass(frozen=True)
class MonitorArguments:
    """Compare new rows with those that certified the run's threshold (lorchestra calibrate): a guarantee holds for rows
    like these.

    Compared are confidence, entropy, mutual information, tokens and predicted answers; where the new rows have labels,
    also their losses, in order, and the errors among automated rows. Each comparison with other rows is a look, kept in
    monitor.json; the more looks, the stricter each, so that a false alarm stays improbable over all of them. The exit
    code is 1 at an alarm.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    data: str | None = None
    """File with the new rows, with or without labels, in the order in which they came."""
    question: str | None = None
    """Of a run with typed questions, the one to compare."""
    false_alarm: float = 0.05
    """Probability of any alarm, over all looks, although nothing has changed."""
    base: str | None = None
    """The run's base, if it has moved: hub id, directory or .gguf file with the same weights."""
    json: bool = False
    """Print the result as JSON instead of a table."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(MonitorArguments, arguments, "monitor")
    check_run_argument(parsed.run, "monitor")
    if parsed.data is None:
        raise ConfigError("--data: missing; give the file with the new rows")

    from lorchestra.cli.output import messages, print_json, results
    from lorchestra.cli.progress import RowProgress
    from lorchestra.report.monitoring import monitoring_table
    from lorchestra.runs.ensemble import load_run

    with RowProgress(messages()) as progress:
        trained = load_run(parsed.run, base=parsed.base)
        monitoring = trained.monitor(
            parsed.data, false_alarm=parsed.false_alarm, question=parsed.question, callbacks=[progress]
        )
    if parsed.json:
        print_json(monitoring.to_dict())
    else:
        console = results()
        console.print(monitoring_table(monitoring))
        console.print(monitoring.sentence(), highlight=False, markup=False)
    return 1 if monitoring.is_alarm else 0
