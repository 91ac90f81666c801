"""`lorchestra predict`: one JSON line a row, with uncertainty, as soon as its chunk of rows is answered."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import tyro

from lorchestra.cli.arguments import parse
from lorchestra.errors import ConfigError, DataError, LorchestraError

if TYPE_CHECKING:
    from lorchestra.data.asked import AskedRow
    from lorchestra.data.config import DataConfig
    from lorchestra.experiments.answers import AnsweredChunk
    from lorchestra.experiments.load import TrainedEnsemble
    from lorchestra.report.answers import AnswerFormat


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
    (truncate); default: truncate where the run was trained so, else error."""


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
    threshold = parsed.abstain_below
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"--abstain-below: {threshold} is not in [0, 1]")
    if parsed.if_exists is not None and parsed.out is None:
        raise ConfigError(f"--if-exists {parsed.if_exists}: lines on stdout cannot be continued; give --out FILE")

    from lorchestra.core.early_exit import ExitRule
    from lorchestra.report.answers import AnswerFormat
    from lorchestra.store.run_dir import read_ensemble

    rule = None if parsed.early_exit is None else ExitRule.parse(parsed.early_exit)
    _, record = read_ensemble(parsed.run)
    form = AnswerFormat("jsonl")
    if parsed.out is not None:
        form = AnswerFormat.of_file(parsed.out, record["labels"], rule is not None)
    command = f"lorchestra predict {shlex.join(_without_if_exists(arguments))}"
    return _Prediction(parsed, form, f"{command} --if-exists resume").run()


@dataclass
class Counts:
    """What became of the rows so far; saved with the lines of an interrupted command."""

    rows: int = 0
    answered: int = 0
    failed: int = 0
    truncated: int = 0
    members_used: int = 0
    first_fault: str = ""

    def add(self, chunk: AnsweredChunk) -> None:
        """Count a chunk."""
        self.rows += len(chunk.rows)
        self.truncated += chunk.truncated
        for record in chunk.records:
            if record["error"] is None:
                self.answered += 1
                self.members_used += record.get("members_used", 0)
            else:
                self.failed += 1
                self.first_fault = self.first_fault or record["error"]


class Sink(Protocol):
    """Where lines go, chunk by chunk."""

    num_rows: int
    state: dict[str, Any]

    def append(self, data: bytes, num_rows: int, state: dict[str, Any]) -> None:
        """Take a chunk's lines."""

    def finish(self) -> None:
        """All chunks were given."""


class _Stream:
    """A sink of lines that cannot be continued: stdout, a pipe, a device."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self.num_rows = 0
        self.state: dict[str, Any] = {}

    def append(self, data: bytes, num_rows: int, state: dict[str, Any]) -> None:
        """Write a chunk."""
        self._write(data)
        self.num_rows += num_rows

    def finish(self) -> None:
        """Nothing is left to do."""


class _Prediction:
    """One run of the command.

    Args:
        parsed: its arguments.
        form: how answers become lines.
        resume_with: the command that continues it.
    """

    def __init__(self, parsed: PredictArguments, form: AnswerFormat, resume_with: str) -> None:
        from lorchestra.cli.output import messages, speaker

        self.parsed, self.form, self.resume_with = parsed, form, resume_with
        self.console = messages()
        self.say = speaker(self.console)
        self.counts = Counts()
        self.digest = hashlib.sha256()
        self.cells_left_out = 0

    def run(self) -> int:
        """Answer all rows; returns the exit code."""
        with ExitStack() as opened:
            sink = self._sink(opened)
            try:
                self._answer(sink)
            except (KeyboardInterrupt, LorchestraError) as error:
                if sink.num_rows and self._resumable():
                    self.say(
                        f"{sink.num_rows} rows are in {self.parsed.out}.partial; continue with: {self.resume_with}"
                    )
                elif isinstance(error, KeyboardInterrupt) and sink.num_rows:
                    self.say(f"interrupted after {sink.num_rows} rows")
                raise
            if self.counts.rows == 0:
                raise DataError(f"{self.parsed.data}: the file has no rows; give it one example a row")
            sink.finish()
        self._report()
        return 2 if self.counts.failed == self.counts.rows else 0

    def _sink(self, opened: ExitStack) -> Sink:
        from lorchestra.store.answer_file import answer_file
        from lorchestra.store.disk import explained

        out = self.parsed.out
        if out is None or out == "-":
            # the stream of now: while progress is shown, what goes to sys.stdout would go to stderr
            stdout = sys.stdout

            def write(data: bytes) -> None:
                stdout.write(data.decode("utf-8"))
                stdout.flush()

            return _Stream(write)
        if self._resumable():
            return opened.enter_context(answer_file(out, self._made_with(), self.parsed.if_exists, self.say))
        with explained(Path(out), None):
            device = opened.enter_context(Path(out).open("wb", buffering=0))  # noqa: SIM115

        def write_through(data: bytes) -> None:
            with explained(Path(out), None):
                device.write(data)

        return _Stream(write_through)

    def _resumable(self) -> bool:
        """Whether lines go to a file of the usual kind, which is there or not."""
        out = self.parsed.out
        return out is not None and out != "-" and (not Path(out).exists() or Path(out).is_file() or Path(out).is_dir())

    def _made_with(self) -> dict[str, Any]:
        """What the lines depend on but for the rows, which have a digest."""
        from importlib.metadata import version

        from lorchestra.store.atomic import sha256_file
        from lorchestra.store.run_dir import read_ensemble

        run, _ = read_ensemble(self.parsed.run)
        options = {
            f"--{name.replace('_', '-')}": getattr(self.parsed, name)
            for name in ("abstain_below", "early_exit", "on_error")
        }
        return {
            "lorchestra": version("lorchestra"),
            "run": sha256_file(run.ensemble),
            "format": self.form.name,
            **options,
            **{f"--data.{name}": value for name, value in dataclasses.asdict(self.parsed.reading).items()},
        }

    def _answer(self, sink: Sink) -> None:
        from lorchestra.cli.progress import RowProgress
        from lorchestra.core.early_exit import ExitRule
        from lorchestra.experiments.answers import AnswerOptions, answer_chunks, chunk_rows
        from lorchestra.experiments.load import load_run

        parsed = self.parsed
        rule = None if parsed.early_exit is None else ExitRule.parse(parsed.early_exit)
        with RowProgress(self.console, live=parsed.out is not None or not sys.stdout.isatty()) as progress:
            trained = load_run(parsed.run, self.say)
            rows = trained.asked(parsed.data, self._data(trained), self.say)
            size = chunk_rows(trained.session)
            self._restore(sink, rows, size)
            too_long = parsed.reading.too_long or trained.default_too_long
            options = AnswerOptions(parsed.abstain_below, rule, too_long)
            self.num_members = trained.session.model.num_members
            for chunk in answer_chunks(trained.session, rows, options, size):
                self._write(chunk, sink, size)
                progress("predicting", self.counts.rows, None)

    def _data(self, trained: TrainedEnsemble) -> DataConfig:
        """How the run's files are read, with what is given now."""
        reading = self.parsed.reading
        data = trained.config.data
        given = {name: value for name, value in dataclasses.asdict(reading.fields).items() if value is not None}
        others = {name: getattr(reading, name) for name in ("format", "encoding", "delimiter")}
        return dataclasses.replace(data, fields=dataclasses.replace(data.fields, **given), **others)

    def _restore(self, sink: Sink, rows: Iterator[AskedRow], size: int) -> None:
        """Pass over the rows that are answered already.

        Raises:
            DataError: they are not the rows of before.
        """
        if not sink.num_rows:
            return
        state = sink.state
        for row in rows:
            self._digest(row)
            self.counts.rows += 1
            if self.counts.rows == sink.num_rows:
                break
        if self.digest.hexdigest() != state.get("rows_digest") or state.get("chunk_rows") != size:
            raise DataError(
                f"{self.parsed.data}: its first {sink.num_rows} rows are not those that {self.parsed.out}.partial was"
                " begun with; restore the file, or start over with --if-exists overwrite"
            )
        self.counts = Counts(**state["counts"])
        self.form = dataclasses.replace(self.form, input_columns=tuple(state["columns"]))
        self.say(f"continuing after {sink.num_rows} rows")

    def _digest(self, row: AskedRow) -> None:
        line = json.dumps([row.id, row.fault, row.cells], default=str)
        self.digest.update(line.encode("ascii") + b"\n")

    def _write(self, chunk: AnsweredChunk, sink: Sink, size: int) -> None:
        if self.parsed.on_error == "fail":
            for record in chunk.records:
                if record["error"] is not None:
                    raise DataError(record["error"])
        for row in chunk.rows:
            self._digest(row)
        first = self.form.input_columns is None
        if first:
            self.form = self.form.with_columns(chunk.records)
        self.cells_left_out += self.form.left_out(chunk.records)
        self.counts.add(chunk)
        state = {
            "rows_digest": self.digest.hexdigest(),
            "chunk_rows": size,
            "counts": dataclasses.asdict(self.counts),
            "columns": self.form.input_columns,
        }
        sink.append(self.form.encode(chunk.records, first=first), len(chunk.rows), state)

    def _report(self) -> None:
        counts, out = self.counts, self.parsed.out
        if out is not None:
            self.say(f"{counts.rows} rows: {out}")
        if counts.failed:
            self.say(
                f"warning: {counts.failed} of {counts.rows} rows could not be answered; their lines have the error, the"
                f" first: {counts.first_fault}"
            )
        if dropped := counts.rows - counts.answered - counts.failed:
            self.say(f"{dropped} row(s) over the longest length left out")
        if counts.truncated:
            self.say(f"{counts.truncated} row(s) over the longest length cut at the question's end")
        if self.cells_left_out:
            self.say(
                f"{self.cells_left_out} row(s) have columns that the first rows lack, and the table; lines of JSON"
                " (--out FILE.jsonl) have them all"
            )
        if self.parsed.early_exit is not None and counts.answered:
            mean = counts.members_used / counts.answered
            self.say(f"early exit ({self.parsed.early_exit}): {mean:.2f} of {self.num_members} members a row")


def _without_if_exists(arguments: Sequence[str]) -> list[str]:
    kept, skip = [], False
    for argument in arguments:
        name = argument.replace("_", "-")
        if not skip and name != "--if-exists" and not name.startswith("--if-exists="):
            kept.append(argument)
        skip = name == "--if-exists"
    return kept
