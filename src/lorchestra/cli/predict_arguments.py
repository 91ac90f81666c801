"""The options of `lorchestra predict`, and what both of its ways of writing answers make of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from lorchestra.cli.engine import EngineArguments

if TYPE_CHECKING:
    from lorchestra.config.data import DataConfig
    from lorchestra.report.answers import AnswerFormat
    from lorchestra.runs.predict import AnswerCounts


@dataclass(frozen=True)
class ColumnArguments:
    """Column names of the file, if they differ from those of the training rows."""

    question: str | None = None
    """Column with the question."""
    choices: str | None = None
    """Column with the row's choices."""
    answer: str | None = None
    """Column with the correct choice, if known."""
    text: str | None = None
    """Column with the text."""
    label: str | None = None
    """Column with the text's label, if known."""
    id: str | None = None
    """Column with the row's id; ids may repeat."""


@dataclass(frozen=True)
class ReadingArguments:
    """How to read the file, if it differs from the training rows."""

    fields: ColumnArguments = field(default_factory=ColumnArguments)
    """Column names of the file, if they differ from those of the training rows."""
    format: Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow"] | None = None
    """The file's format, if its suffix does not tell."""
    encoding: str | None = None
    """The file's text encoding, such as cp1252. Default: UTF-8, or that of the byte order mark."""
    delimiter: str | None = None
    """Delimiter of a CSV file. Default: comma, semicolon, tab or bar, whichever the header uses."""
    too_long: Annotated[Literal["error", "drop", "truncate"] | None, tyro.conf.arg(aliases=["--too-long"])] = None
    """What to do with a row over the maximum length: report an error in its line (error), write no line (drop), or cut
    its question (truncate). Default: as in training."""


@dataclass(frozen=True)
class PredictArguments:
    """Answer every row of a file: one JSON line per row, with the ensemble's probabilities and uncertainty.

    The rows have the same form as the training rows; answers are optional. They are read and answered in chunks, and
    each chunk's lines are written at once, to stdout or to --out. From a pipe (--data -), a chunk is what has arrived
    within a tenth of a second: rows are answered as they come, and whoever sends them waits for the answers. A row that
    cannot be answered gets a line as well: its "error" is the reason, and its "prediction" is null. "input" repeats the
    row's columns. The exit code is 0 if at least one row was answered.

    With --engine ray, workers on a Ray cluster answer the rows of many files, and --out is a directory: its parts
    appear whole, have the lines of this command in the order of their names, and are skipped if the same command is
    started again. Only --out, the run and its base must be seen by all nodes; this process reads the rows.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    data: str
    """The file with the rows (or a directory, a pattern, a URL such as s3://bucket/rows-*.jsonl, or - for standard
    input)."""
    second_run: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN_LARGE]")] = None
    """With --cascade: the second run of a cascade that lorchestra calibrate RUN RUN_LARGE has certified."""
    out: str | None = None
    """File to write instead of stdout: JSON lines, or a table if the name ends in .csv or .tsv (there, an apostrophe is
    put before text that a spreadsheet would run as a formula); .gz compresses it. It is called FILE.partial until it
    is complete."""
    resume: bool = False
    """With --out: skip the rows that are answered in it, or in the FILE.partial of an interrupted command. Give the
    same rows again; they are compared. New rows may follow, also after those of a complete FILE that was made with
    --resume or from a pipe."""
    if_exists: Literal["overwrite", "resume", "fail"] | None = None
    """With --out: the same as --resume (resume), start over (overwrite), or stop with an error (fail). Default: replace
    a complete file, but not the rows of an interrupted command."""
    base: str | None = None
    """The run's base, if it has moved: hub id, directory or .gguf file with the same weights."""
    raw: bool = False
    """Answer with the mixture of the members as it is, without the run's calibration ("calibrated" is then false) and
    without its decisions."""
    decisions: bool = True
    """Decide by the run's certified threshold ("decision": automate or abstain) and fill in "prediction_set", if
    lorchestra calibrate has made them."""
    abstain_below: float | None = None
    """Set "abstain" for rows whose confidence is below this threshold in [0, 1]: leave them to a person. The confidence
    is the calibrated one, except with --raw. Where the run has a certified threshold, --no-decisions is needed too."""
    early_exit: str | None = None
    """Evaluate a row's members one after the other, and stop when the answer can no longer change (exact), or when the
    mean probability of two or more members, before calibration, reaches this number in (0, 1]. Adds members_used to
    each line."""
    cascade: bool = False
    """Answer with RUN where it is sure and with RUN_LARGE elsewhere, by the certified cascade of the two. members_used
    counts the members of both. (A cascade within one run needs no option.)"""
    top: int | Literal["all"] | None = None
    """Write this many of a row's most probable choices, most probable first ("top" in a line), or the probabilities of
    all choices under all members (all). Default: all of at most 10 choices, and the top 5 of more."""
    on_error: Literal["record", "fail"] = "record"
    """For a row that cannot be answered (no text, invalid JSON, too long): write a line with the reason, or stop the
    command."""
    reading: Annotated[ReadingArguments, tyro.conf.arg(name="data")] = field(default_factory=ReadingArguments)
    where: Annotated[EngineArguments, tyro.conf.arg(name="")] = field(default=EngineArguments())


def made_with(parsed: PredictArguments, form: AnswerFormat) -> dict[str, object]:
    """What the lines depend on, except for the rows, which have a digest."""
    from lorchestra.store.atomic import sha256_file
    from lorchestra.store.run import Run

    run = Run.at(parsed.run)
    run.read_ensemble()  # refuses what is not a finished run
    options = {
        name: getattr(parsed, name) for name in ("abstain_below", "decisions", "early_exit", "on_error", "raw", "top")
    }
    if parsed.second_run is not None:
        second = Run.at(parsed.second_run)
        options["second_run"] = [sha256_file(path) for path in (second.ensemble, second.calibration) if path.exists()]
    reading = {f"data.{name}": value for name, value in dataclasses.asdict(parsed.reading).items()}
    return {
        "lorchestra": version("lorchestra"),
        "run": sha256_file(run.ensemble),
        "calibration": sha256_file(run.calibration) if run.calibration.exists() and not parsed.raw else None,
        "format": form.name,
        **{f"--{name.replace('_', '-')}": value for name, value in (options | reading).items()},
    }


def data_settings(reading: ReadingArguments, data: DataConfig) -> DataConfig:
    """A run's data settings, overridden by the options given."""
    given = {name: value for name, value in dataclasses.asdict(reading.fields).items() if value is not None}
    read = {name: getattr(reading, name) for name in ("format", "encoding", "delimiter")}
    return dataclasses.replace(
        data, fields=dataclasses.replace(data.fields, **given), read=dataclasses.replace(data.read, **read)
    )


def sentences(counts: AnswerCounts, max_length: int) -> Iterator[str]:
    """Messages about rows without an answer, decisions and long rows."""
    if counts.failed:
        yield (
            f"warning: {counts.failed} of {counts.rows} rows could not be answered; their lines have the error;"
            f" the first: {counts.first_fault}"
        )
    yield from counts.sentences(max_length)
