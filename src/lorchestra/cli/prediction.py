"""One run of `lorchestra predict`: rows in, lines out, chunk by chunk, and what is said about them at the end."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from lorchestra.cli.output import messages, printer
from lorchestra.cli.predict import PredictArguments
from lorchestra.cli.progress import RowProgress
from lorchestra.config.data import DataConfig
from lorchestra.data.queries import QueryRow
from lorchestra.errors import DataError, LorchestraError
from lorchestra.metrics.early_exit import ExitRule
from lorchestra.report.answers import AnswerFormat
from lorchestra.runs.ensemble import Ensemble, load_run, queries_of
from lorchestra.runs.predict import AnswerCounts, AnsweredChunk, AnswerOptions, answer_chunks, chunk_rows
from lorchestra.store.answer_file import answer_file
from lorchestra.store.atomic import sha256_file
from lorchestra.store.disk import explained
from lorchestra.store.run import Run
from lorchestra.store.safe_paths import typed_path
from lorchestra.store.schema import COUNT, check_shape

_COUNTS = {name: str if isinstance(value, str) else COUNT for name, value in dataclasses.asdict(AnswerCounts()).items()}
_STATE: dict[str, Any] = {"rows_digest": str, "chunk_rows": COUNT, "counts": _COUNTS, "columns": ([str], None)}
"""What is saved with each chunk, so that another command can write on."""


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


class Prediction:
    """One run of the command.

    Args:
        parsed: its arguments.
        form: how answers become lines.
        resume_with: the command that continues it.
    """

    def __init__(self, parsed: PredictArguments, form: AnswerFormat, resume_with: str) -> None:
        self.parsed, self.form, self.resume_with = parsed, form, resume_with
        self.console = messages()
        self.say = printer(self.console)
        self.counts = AnswerCounts()
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
        out = self.parsed.out
        if out is None or out == "-":
            # the stream of now: while progress is shown, what goes to sys.stdout would go to stderr
            stdout = sys.stdout

            def write(data: bytes) -> None:
                stdout.write(data.decode("utf-8"))
                stdout.flush()

            return _Stream(write)
        if self._resumable():
            return opened.enter_context(answer_file(out, self._made_with(), self.parsed.if_exists))
        with explained(Path(out), None):
            device = opened.enter_context(Path(out).open("wb", buffering=0))  # noqa: SIM115

        def write_through(data: bytes) -> None:
            rest = memoryview(data)
            with explained(Path(out), None):
                while rest:
                    rest = rest[device.write(rest) :]

        return _Stream(write_through)

    def _resumable(self) -> bool:
        """Whether lines go to a file of the usual kind, which is there or not."""
        out = self.parsed.out
        if out is None or out == "-":
            return False
        path = typed_path(out)
        return not os.path.exists(path) or os.path.isfile(path) or os.path.isdir(path)

    def _made_with(self) -> dict[str, Any]:
        """What the lines depend on but for the rows, which have a digest."""
        run = Run.at(self.parsed.run)
        run.read_ensemble()
        options = {
            f"--{name.replace('_', '-')}": getattr(self.parsed, name)
            for name in ("abstain_below", "early_exit", "on_error")
        }
        return {
            "lorchestra": version("lorchestra"),
            "run": sha256_file(run.ensemble),
            "format": self.form.name,
            **options,
            **{
                f"--data.{name.replace('_', '-')}": value
                for name, value in dataclasses.asdict(self.parsed.reading).items()
            },
        }

    def _answer(self, sink: Sink) -> None:
        parsed = self.parsed
        rule = None if parsed.early_exit is None else ExitRule.parse(parsed.early_exit)
        with RowProgress(self.console, live=parsed.out is not None or not sys.stdout.isatty()) as progress:
            trained = load_run(parsed.run, base=parsed.base)
            rows = queries_of(trained, Path(parsed.data), self._data(trained), self.say)
            size = chunk_rows(trained.pipeline)
            self._restore(sink, rows, size)
            too_long = parsed.reading.too_long or trained.config.data.too_long
            options = AnswerOptions(parsed.abstain_below, rule, too_long)
            self.num_members, self.max_length = trained.pipeline.model.num_members, trained.pipeline.max_length
            for chunk in answer_chunks(trained.pipeline, rows, options, size):
                self._write(chunk, sink, size)
                progress.on_progress("predicting", self.counts.rows, 0)

    def _data(self, trained: Ensemble) -> DataConfig:
        """How the run's files are read, with what is given now."""
        reading = self.parsed.reading
        data = trained.config.data
        given = {name: value for name, value in dataclasses.asdict(reading.fields).items() if value is not None}
        read = {name: getattr(reading, name) for name in ("format", "encoding", "delimiter")}
        return dataclasses.replace(
            data, fields=dataclasses.replace(data.fields, **given), read=dataclasses.replace(data.read, **read)
        )

    def _restore(self, sink: Sink, rows: Iterator[QueryRow], size: int) -> None:
        """Pass over the rows that are answered already.

        Raises:
            DataError: they are not the rows of before.
        """
        if not sink.num_rows:
            return
        state = sink.state
        check_shape(state, _STATE, typed_path(f"{self.parsed.out}.partial.json"), "state")
        for row in rows:
            self._digest(row)
            self.counts.rows += 1
            if self.counts.rows == sink.num_rows:
                break
        same_rows = self.counts.rows == sink.num_rows and self.digest.hexdigest() == state["rows_digest"]
        if not same_rows or state["chunk_rows"] != size:
            raise DataError(
                f"{self.parsed.data}: its first {sink.num_rows} rows are not those that {self.parsed.out}.partial was"
                " begun with; restore the file, or start over with --if-exists overwrite"
            )
        self.counts = AnswerCounts(**{name: state["counts"][name] for name in _COUNTS})
        self.form = dataclasses.replace(self.form, input_columns=tuple(state["columns"]))
        self.say(f"continuing after {sink.num_rows} rows")

    def _digest(self, row: QueryRow) -> None:
        line = json.dumps([row.id, row.fault, row.cells], default=str)
        self.digest.update(line.encode("ascii") + b"\n")

    def _write(self, chunk: AnsweredChunk, sink: Sink, size: int) -> None:
        if self.parsed.on_error == "fail":
            for answer in chunk.answers:
                if answer.error is not None:
                    raise DataError(answer.error)
        records = [answer.to_dict(early_exit=self.parsed.early_exit is not None) for answer in chunk.answers]
        for row in chunk.rows:
            self._digest(row)
        first = self.form.input_columns is None
        if first:
            self.form = self.form.with_columns(records)
        self.cells_left_out += self.form.left_out(records)
        self.counts.add(chunk)
        state = {
            "rows_digest": self.digest.hexdigest(),
            "chunk_rows": size,
            "counts": dataclasses.asdict(self.counts),
            "columns": self.form.input_columns,
        }
        sink.append(self.form.encode(records, first=first), len(chunk.rows), state)

    def _report(self) -> None:
        counts, out = self.counts, self.parsed.out
        if out is not None:
            self.say(f"{counts.rows} rows: {out}")
        if counts.failed:
            self.say(
                f"warning: {counts.failed} of {counts.rows} rows could not be answered; their lines have the error, the"
                f" first: {counts.first_fault}"
            )
        for sentence in counts.sentences(self.max_length):
            self.say(sentence)
        if self.cells_left_out:
            self.say(
                f"{self.cells_left_out} row(s) have columns that the first rows lack, and the table; lines of JSON"
                " (--out FILE.jsonl) have them all"
            )
        if self.parsed.early_exit is not None and counts.answered:
            mean = counts.members_used / counts.answered
            self.say(f"early exit ({self.parsed.early_exit}): {mean:.2f} of {self.num_members} members a row")
