"""`lorchestra report`: one HTML page about a finished run, or several of one task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lorchestra.cli.arguments import parse
from lorchestra.errors import ConfigError


@dataclass(frozen=True)
class ReportArguments:
    """Write one HTML page about a finished and evaluated run: did the ensemble help, by how much, at what cost?

    The page is one file that opens offline. It is made from saved predictions and metrics; no model is loaded. Several
    runs of one task are also compared with each other. The page's path goes to stdout.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """The run directories."""
    out: str | None = None
    """The page; for one run RUN/report.html by default."""
    split: str | None = None
    """Which evaluation to show, by the name of its split; by default test, or else the latest."""
    examples: int = 8
    """Rows in each list of examples; 0 keeps the texts of the data out of the page."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(ReportArguments, arguments, "report")
    if not parsed.runs:
        raise ConfigError("report: no run given; name at least one run directory")
    if parsed.out is None and len(parsed.runs) > 1:
        raise ConfigError("--out: a page about several runs belongs to none of them; name it with --out FILE.html")

    from lorchestra.report.html.page import write_report

    out = Path(parsed.runs[0]) / "report.html" if parsed.out is None else Path(parsed.out)
    write_report(parsed.runs, out, split=parsed.split, examples=parsed.examples)
    print(out)
    return 0
