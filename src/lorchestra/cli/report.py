"""`lorchestra report`: one HTML page about a finished run, several of one task, a sweep, or compared methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lorchestra.cli.arguments import check_run_argument, parse
from lorchestra.errors import ConfigError


@dataclass(frozen=True)
class ReportArguments:
    """Write one HTML page about a finished and evaluated run: did the ensemble help, by how much, at what cost?

    The page is one file that opens offline. It is made from saved predictions and metrics; no model is loaded. Several
    runs of one task are also compared with each other; the directory of a sweep stands for its finished runs. Methods
    that lorchestra compare has fitted on the same rows get a section, and the verdict then says how the ensemble stands
    against one LoRA with temperature scaling and against controls of equal compute. The page's path goes to stdout.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """The run directories; or a sweep, or compared methods."""
    out: str | None = None
    """The page; for one directory report.html within it by default."""
    methods: str | None = None
    """A directory of compared methods (lorchestra compare), on the same rows as the runs."""
    split: str | None = None
    """Which evaluation to show, by the name of its split; by default test, or else the latest."""
    examples: int = 8
    """Rows in each list of examples; 0 keeps the texts of the data out of the page."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(ReportArguments, arguments, "report")
    for run in parsed.runs:
        check_run_argument(run, "report")
    given = parsed.runs or ((parsed.methods,) if parsed.methods is not None else ())
    if not given:
        raise ConfigError("report: no run given; name at least one run directory")

    from lorchestra.report.html.methods import is_comparison
    from lorchestra.report.html.page import write_report
    from lorchestra.store.safe_paths import inside

    belong = [root for root in given if not is_comparison(Path(root))] or given
    if parsed.out is None and len(belong) > 1:
        raise ConfigError("--out: a page about several runs belongs to none of them; name it with --out FILE.html")

    out = inside(belong[0], "report.html") if parsed.out is None else Path(parsed.out)
    write_report(parsed.runs, out, split=parsed.split, examples=parsed.examples, methods=parsed.methods)
    print(out)
    return 0
