"""`lorchestra report`: one HTML page about a finished run, several runs of one task, a sweep, or a comparison."""

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

    The page is one file that works offline, made from saved predictions and metrics without loading a model. Several
    runs of one task are also compared with each other; the directory of a sweep counts as its finished runs. A
    directory of lorchestra compare on the same rows adds a section, and the verdict then compares the ensemble to one
    LoRA with temperature scaling and to controls of equal compute. Prints the path of the page.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """The run directories, or the directory of a sweep or a comparison."""
    out: str | None = None
    """The page. Default, for one directory: report.html in it."""
    methods: str | None = None
    """The directory of a comparison (lorchestra compare) on the same rows as the runs."""
    split: str | None = None
    """The evaluation to show, by the name of its split. Default: test, or else the latest."""
    examples: int = 8
    """Rows in each list of examples; 0 keeps all texts of the data out of the page."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(ReportArguments, arguments, "report")
    for run in parsed.runs:
        check_run_argument(run, "report")
    directories = parsed.runs or ((parsed.methods,) if parsed.methods is not None else ())
    if not directories:
        raise ConfigError("report: no run given; name at least one run directory")

    from lorchestra.report.html.methods import is_comparison
    from lorchestra.report.html.page import write_report
    from lorchestra.store.safe_paths import inside

    homes = [root for root in directories if not is_comparison(Path(root))] or directories
    if parsed.out is None and len(homes) > 1:
        raise ConfigError("--out: a page about several runs needs a path; give --out FILE.html")

    out = inside(homes[0], "report.html") if parsed.out is None else Path(parsed.out)
    write_report(parsed.runs, out, split=parsed.split, examples=parsed.examples, methods=parsed.methods)
    print(out)
    return 0
