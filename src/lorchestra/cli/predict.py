"""`lorchestra predict`: one JSON line a row, with uncertainty, as soon as its chunk of rows is answered."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from lorchestra.cli.arguments import check_run_argument, parse
from lorchestra.errors import ConfigError


@dataclass(frozen=True)
class ColumnArguments:
    """Column names of the file, where they are not those of the training rows."""

    question: str | None = None
    """Column with the question."""
    choices: str | None = None
    """Column with the row's choices."""
    answer: str | None = None
    """Column with the right choice, if it is known."""
    text: str | None = None
    """Column with the text."""
    label: str | None = None
    """Column with the text's label, if it is known."""
    id: str | None = None
    """Column with the row's id; ids may repeat."""


@dataclass(frozen=True)
class ReadingArguments:
    """How the file is read, where it differs from the training rows."""

    fields: ColumnArguments = field(default_factory=ColumnArguments)
    """Column names of the file, where they are not those of the training rows."""
    format: Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow"] | None = None
    """The file's format, where its suffix does not say it."""
    encoding: str | None = None
    """The file's text encoding, such as cp1252; default: UTF-8, or what a byte order mark says."""
    delimiter: str | None = None
    """What separates the cells of a CSV file; default: comma, semicolon, tab or bar, as the header goes."""
    too_long: Annotated[Literal["error", "drop", "truncate"] | None, tyro.conf.arg(aliases=["--too-long"])] = None
    """A row over the longest length is not answered (error), has no line (drop), or is answered with its question cut
    (truncate); default: as the run was trained."""


@dataclass(frozen=True)
class PredictArguments:
    """Answer every row of a file: one JSON line a row, with the ensemble's probabilities and uncertainty.

    The rows have the form the run was trained on; answers are not needed. They are read and answered in chunks, and the
    lines of a chunk go to stdout, or to --out, at once. A row that cannot be answered has a line, too: its "error" says
    why, and "prediction" is null. The exit code is 0 if any row was answered. A line's "input" has the row's columns.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    data: str
    """The file with the rows (or a directory, a pattern, or - for standard input)."""
    out: str | None = None
    """File to write instead of stdout: lines of JSON, or a table where it ends in .csv or .tsv (then text that a
    spreadsheet would run as a formula gets an apostrophe before it); with .gz it is compressed. Until it is whole it is
    called FILE.partial."""
    if_exists: Literal["overwrite", "resume", "fail"] | None = None
    """With --out: continue the rows of an interrupted command (resume; the result is the same bytes), start over
    (overwrite), or refuse (fail). Default: a whole file is replaced, the rows of an interrupted command are not."""
    base: str | None = None
    """Where the run's base is now, if it has moved: hub id, directory or .gguf file with the same weights."""
    abstain_below: float | None = None
    """Mark rows whose confidence is below this, in [0, 1], as ones to leave to a person."""
    early_exit: str | None = None
    """Ask a row's members one after the other, and stop when its answer can no longer change (exact), or when the mean
    probability of two or more reaches this number in (0, 1]. Lines get members_used."""
    on_error: Literal["record", "fail"] = "record"
    """A row that cannot be answered (no text, no JSON, too long) gets a line that says why, or ends the command."""
    reading: Annotated[ReadingArguments, tyro.conf.arg(name="data")] = field(default_factory=ReadingArguments)


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(PredictArguments, arguments, "predict")
    check_run_argument(parsed.run, "predict")
    check_run_argument(parsed.run, "predict")
    threshold = parsed.abstain_below
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"--abstain-below: {threshold} is not in [0, 1]")
    if parsed.if_exists is not None and parsed.out is None:
        raise ConfigError(f"--if-exists {parsed.if_exists}: lines on stdout cannot be continued; give --out FILE")

    from lorchestra.cli.prediction import Prediction
    from lorchestra.metrics.early_exit import ExitRule
    from lorchestra.report.answers import AnswerFormat
    from lorchestra.store.run import Run

    rule = None if parsed.early_exit is None else ExitRule.parse(parsed.early_exit)
    record = Run.at(parsed.run).read_ensemble()
    form = AnswerFormat("jsonl")
    if parsed.out is not None:
        form = AnswerFormat.of_file(parsed.out, record.labels, rule is not None)
    command = f"lorchestra predict {shlex.join(_without_if_exists(arguments))}"
    return Prediction(parsed, form, f"{command} --if-exists resume").run()


def _without_if_exists(arguments: Sequence[str]) -> list[str]:
    kept, skip = [], False
    for argument in arguments:
        name = argument.replace("_", "-")
        if not skip and name != "--if-exists" and not name.startswith("--if-exists="):
            kept.append(argument)
        skip = name == "--if-exists"
    return kept
