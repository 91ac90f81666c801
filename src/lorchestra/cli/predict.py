"""`lorchestra predict`: one JSON line per row, with uncertainty, written as soon as its chunk of rows is answered."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from lorchestra.cli.arguments import check_run_argument, parse
from lorchestra.cli.predict_arguments import PredictArguments, data_settings, made_with, sentences
from lorchestra.cli.sinks import Sink, StreamSink
from lorchestra.cli.stopping import terminated_like_interrupted
from lorchestra.data.readers.remote import is_url
from lorchestra.data.readers.streams import shown_path
from lorchestra.errors import ConfigError, DataError, LorchestraError
from lorchestra.store.disk import explained
from lorchestra.store.safe_paths import typed_path

if TYPE_CHECKING:
    from lorchestra.data.input_rows import InputRow
    from lorchestra.metrics.early_exit import ExitRule
    from lorchestra.report.answers import AnswerFormat
    from lorchestra.runs.ensemble import Ensemble
    from lorchestra.runs.predict import AnsweredChunk
    from lorchestra.types import Json


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = _with_resume(parse(PredictArguments, arguments, "predict"))
    check_run_argument(parsed.run, "predict")
    threshold = parsed.abstain_below
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"--abstain-below: {threshold} is not in [0, 1]")
    _check_cascade(parsed)
    parsed.where.check()
    if isinstance(parsed.top, int) and parsed.top < 1:
        raise ConfigError(f"--top: {parsed.top} is less than 1; give a number of choices, or all")
    if parsed.if_exists is not None and parsed.out is None:
        option = "--resume" if parsed.resume else f"--if-exists {parsed.if_exists}"
        raise ConfigError(f"{option}: lines on stdout cannot be resumed; give --out FILE")

    from lorchestra.metrics.early_exit import ExitRule
    from lorchestra.report.answers import AnswerFormat
    from lorchestra.store.run import Run

    rule = None if parsed.early_exit is None else ExitRule.parse(parsed.early_exit)
    record = Run.at(parsed.run).read_ensemble()
    has_stages = False
    if not parsed.raw:
        # refuses a damaged one before the base is loaded
        calibration = Run.at(parsed.run).read_calibration(record)
        has_stages = parsed.cascade or (parsed.decisions and calibration is not None and calibration.has_stages)
    form = AnswerFormat("jsonl", early_exit=rule is not None or has_stages)
    if parsed.where.engine == "ray":
        from lorchestra.cli.predict_parts import predict_parts

        with terminated_like_interrupted():
            return predict_parts(parsed, form)
    if parsed.out is not None:
        from lorchestra.runs.predict import shown_choices

        top = shown_choices(parsed.top, len(record.labels or ()))
        form = AnswerFormat.of_file(parsed.out, record.labels, form.early_exit, top, typed=bool(record.questions))
    command = f"lorchestra predict {shlex.join(_without_if_exists(arguments))}"
    with terminated_like_interrupted():
        return Prediction(parsed, form, rule, resume_with=f"{command} --resume").run()


def _with_resume(parsed: PredictArguments) -> PredictArguments:
    """--resume as --if-exists resume."""
    if not parsed.resume:
        return parsed
    if parsed.if_exists not in (None, "resume"):
        raise ConfigError(f"--resume: contradicts --if-exists {parsed.if_exists}; leave one of the two out")
    return dataclasses.replace(parsed, if_exists="resume")


def _check_cascade(parsed: PredictArguments) -> None:
    """Refuse a second run without --cascade, the reverse, and options that contradict it."""
    if parsed.second_run is None:
        if parsed.cascade:
            raise ConfigError("--cascade: give the second run too: lorchestra predict RUN RUN_LARGE --cascade")
        return
    check_run_argument(parsed.second_run, "predict", first=False)
    if not parsed.cascade:
        raise ConfigError(f"predict: {parsed.second_run} is a second run; to answer by the cascade of both: --cascade")
    for option, given in (
        ("--raw", parsed.raw),
        ("--no-decisions", not parsed.decisions),
        ("--abstain-below", parsed.abstain_below is not None),
        ("--early-exit", parsed.early_exit is not None),
    ):
        if given:
            raise ConfigError(f"{option}: a cascade of two runs is certified without it; leave one of the two out")


def _without_if_exists(arguments: Sequence[str]) -> list[str]:
    kept, skip = [], False
    for argument in arguments:
        name = argument.replace("_", "-")
        is_option = name in ("--resume", "--no-resume", "--if-exists") or name.startswith("--if-exists=")
        if not skip and not is_option:
            kept.append(argument)
        skip = name == "--if-exists"
    return kept


class _State(TypedDict):
    """Saved with each chunk, so that another command can resume."""

    rows_digest: str
    chunk_rows: int
    counts: Json
    columns: Sequence[str] | None


class Prediction:
    """One run of the command.

    Args:
        parsed: its arguments.
        form: how answers become lines.
        rule: when to stop evaluating the members of a row; None evaluates all.
        resume_with: the command that resumes it.
    """

    def __init__(self, parsed: PredictArguments, form: AnswerFormat, rule: ExitRule | None, resume_with: str) -> None:
        from lorchestra.cli.output import messages, printer
        from lorchestra.runs.predict import AnswerCounts

        self.parsed, self.form, self.rule, self.resume_with = parsed, form, rule, resume_with
        self.console = messages()
        self.say = printer(self.console)
        self.counts = AnswerCounts()
        self.digest = hashlib.sha256()
        self.cells_left_out = 0

    def run(self) -> int:
        """Answer all rows; returns the exit code."""
        with ExitStack() as stack:
            sink = self._sink(stack)
            before = sink.num_rows
            try:
                self._answer(sink)
            except (KeyboardInterrupt, LorchestraError) as error:
                if sink.num_rows > before and self._resumable():
                    self.say(f"{sink.num_rows} rows are in {self.parsed.out}.partial; resume with: {self.resume_with}")
                elif isinstance(error, KeyboardInterrupt) and sink.num_rows > before:
                    self.say(f"interrupted after {sink.num_rows} rows")
                raise
            if self.counts.rows == 0:
                raise DataError(f"{shown_path(self.parsed.data)}: has no rows; give it one example per row")
            sink.finish()
        self._report()
        return 2 if self.counts.failed == self.counts.rows else 0

    def _sink(self, stack: ExitStack) -> Sink:
        from lorchestra.data.chunks import may_pause
        from lorchestra.store.answer_file import answer_file

        out = self.parsed.out
        if out is None or out == "-":
            # the current stream: while a live line is shown, rich redirects sys.stdout to stderr
            stdout = sys.stdout

            def write(data: bytes) -> None:
                stdout.write(data.decode("utf-8"))
                stdout.flush()

            return StreamSink(write)
        if self._resumable():
            if_exists = self.parsed.if_exists
            # the end of a pipe may be that of a program that failed
            keep_record = if_exists == "resume" or may_pause(self.parsed.data)
            return stack.enter_context(answer_file(out, self._made_with(), if_exists, keep_record=keep_record))
        with explained(Path(out), None):
            device = stack.enter_context(Path(out).open("wb", buffering=0))  # noqa: SIM115

        def write_all(data: bytes) -> None:
            rest = memoryview(data)
            with explained(Path(out), None):
                while rest:
                    rest = rest[device.write(rest) :]

        return StreamSink(write_all)

    def _resumable(self) -> bool:
        """Whether the lines go to a regular file, existing or not."""
        out = self.parsed.out
        if out is None or out == "-":
            return False
        path = typed_path(out)
        return not os.path.exists(path) or os.path.isfile(path) or os.path.isdir(path)

    def _made_with(self) -> dict[str, object]:
        return made_with(self.parsed, self.form)

    def _answer(self, sink: Sink) -> None:
        from lorchestra.cli.progress import RowProgress
        from lorchestra.data.chunks import arriving_chunks, full_chunks, may_pause
        from lorchestra.runs.ensemble import input_rows_of, load_run
        from lorchestra.runs.predict import chunk_rows

        parsed = self.parsed
        with RowProgress(self.console, live=parsed.out is not None or not sys.stdout.isatty()) as progress:
            trained = load_run(parsed.run, base=parsed.base)
            path = parsed.data if is_url(parsed.data) else Path(parsed.data)
            rows = input_rows_of(trained, path, data_settings(parsed.reading, trained.config.data))
            size = chunk_rows(trained.pipeline)
            self._skip_answered(sink, rows, size)
            self.num_members, self.max_length = trained.pipeline.model.num_members, trained.pipeline.max_length
            chunks = arriving_chunks(rows, size) if may_pause(parsed.data) else full_chunks(rows, size)
            for chunk in self._answered(trained, chunks):
                self._write(chunk, sink, size)
                progress.on_progress("predicting", self.counts.rows, 0)

    def _answered(self, trained: Ensemble, chunks: Iterator[tuple[InputRow, ...]]) -> Iterator[AnsweredChunk]:
        """Answers by the run, or by the cascade of two runs."""
        from lorchestra.runs.answer_options import options_of
        from lorchestra.runs.ensemble import load_run
        from lorchestra.runs.predict import answer_chunks
        from lorchestra.runs.run_cascade import answer_chunks_by_runs, run_cascade_of

        parsed = self.parsed
        if parsed.second_run is not None:
            second = load_run(parsed.second_run)
            cascade = run_cascade_of(trained, second)
            self.num_members += second.pipeline.model.num_members
            self.has_stages = True
            return answer_chunks_by_runs(trained, second, cascade, chunks, parsed.reading.too_long)
        below, too_long = parsed.abstain_below, parsed.reading.too_long
        options = options_of(trained, below, self.rule, too_long, raw=parsed.raw, decisions=parsed.decisions)
        self.has_stages = options.decisions is not None and options.decisions.stages is not None
        return answer_chunks(trained.pipeline, chunks, options)

    def _skip_answered(self, sink: Sink, rows: Iterator[InputRow], size: int) -> None:
        """Skip the rows that an interrupted command has answered, and restore its state.

        Raises:
            DataError: the rows have changed.
        """
        if not sink.num_rows:
            return
        state = self._checked(sink.state)
        from lorchestra.data.input_rows import digest_line

        for row in rows:
            self.digest.update(digest_line(row))
            self.counts.rows += 1
            if self.counts.rows == sink.num_rows:
                break
        same_rows = self.counts.rows == sink.num_rows and self.digest.hexdigest() == state["rows_digest"]
        if not same_rows or state["chunk_rows"] != size:
            raise DataError(
                f"{shown_path(self.parsed.data)}: its first {sink.num_rows} rows are not those of {self.parsed.out},"
                " answered before; give the same rows again, or start over with --if-exists overwrite"
            )
        self.counts = dataclasses.replace(self.counts, **{name: state["counts"][name] for name in vars(self.counts)})
        columns = state["columns"]
        self.form = dataclasses.replace(self.form, input_columns=None if columns is None else tuple(columns))
        self.say(f"continuing after {sink.num_rows} rows")

    def _checked(self, state: dict[str, object]) -> _State:
        """Check the shape of what `_write` has saved.

        Raises:
            CheckpointError: names the field.
        """
        from lorchestra.runs.predict import AnswerCounts
        from lorchestra.store.schema import COUNT, Shape, check_shape

        shape: Shape = {
            "rows_digest": str,
            "chunk_rows": COUNT,
            "counts": AnswerCounts.shape(),
            "columns": ([str], None),
        }
        check_shape(state, shape, typed_path(f"{self.parsed.out}.partial.json"), "state")
        return cast(_State, state)

    def _write(self, chunk: AnsweredChunk, sink: Sink, size: int) -> None:
        from lorchestra.data.input_rows import digest_line
        from lorchestra.runs.predict import shown_choices

        if self.parsed.on_error == "fail":
            for answer in chunk.answers:
                if answer.error is not None:
                    raise DataError(answer.error)
        early_exit = self.form.early_exit
        records = [
            answer.to_dict(early_exit=early_exit, top=shown_choices(self.parsed.top, len(answer.choices or ())))
            for answer in chunk.answers
        ]
        for row in chunk.rows:
            self.digest.update(digest_line(row))
        first = self.form.input_columns is None
        if first:
            self.form = self.form.with_columns(records)
        self.cells_left_out += self.form.left_out(records)
        self.counts.add(chunk)
        state: _State = {
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
        for sentence in sentences(counts, self.max_length):
            self.say(sentence)
        if self.cells_left_out:
            self.say(
                f"{self.cells_left_out} row(s) have columns that the first rows lack; the table leaves them out, JSON"
                " lines (--out FILE.jsonl) do not"
            )
        if counts.answered and (self.has_stages or self.parsed.early_exit is not None):
            what = "cascade" if self.has_stages else f"early exit ({self.parsed.early_exit})"
            mean = counts.members_used / counts.answered
            self.say(f"{what}: {mean:.2f} of {self.num_members} members per row")
