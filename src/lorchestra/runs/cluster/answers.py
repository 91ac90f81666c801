"""Answers to many rows by workers on a Ray cluster, in parts that appear whole.

The rows are read once, in order, by the process that starts the job, as `lorchestra predict` reads them; a part is the
answers to so many consecutive rows. So the parts depend on rows and settings alone, not on the number of workers, and
in the order of their names they are the bytes of `predict`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lorchestra.data.chunks import full_chunks
from lorchestra.data.formats import row_files
from lorchestra.data.input_rows import InputRow, digest_line, read_input_rows
from lorchestra.data.readers.remote import RemoteFile, SourceFile
from lorchestra.data.readers.streams import ReadOptions, shown_path
from lorchestra.errors import CheckpointError, DataError
from lorchestra.metrics.early_exit import ExitRule
from lorchestra.report.answers import AnswerFormat
from lorchestra.runs.answer_options import options_of
from lorchestra.runs.cluster.connection import WorkerShape, connection, worker_shape
from lorchestra.runs.cluster.pool import WorkerPool
from lorchestra.runs.ensemble import load_run
from lorchestra.runs.predict import CHUNK_ROWS_CPU, CHUNK_ROWS_CUDA, AnswerCounts, answer_chunks, shown_choices
from lorchestra.store.answer_parts import AnswerParts, AnswerSource, Part
from lorchestra.store.run import Run
from lorchestra.store.workspace import ANSWERS, Workspace
from lorchestra.types import Json

if TYPE_CHECKING:
    import ray

    from lorchestra.config.data import DataConfig
    from lorchestra.inference.pipeline import TooLong
    from lorchestra.training.callbacks import Callback

PART_LINES = 2048
"""Lines of a part: some chunks of either size, seconds to minutes of a worker's time."""


@dataclass(frozen=True)
class AnswerSettings:
    """How rows are answered and written, as the options of `lorchestra predict` of the same names."""

    base: str | None = None
    abstain_below: float | None = None
    early_exit: str | None = None
    too_long: TooLong | None = None
    raw: bool = False
    decisions: bool = True
    on_error: Literal["record", "fail"] = "record"
    top: int | Literal["all"] | None = None
    part_lines: int = PART_LINES


@dataclass(frozen=True)
class AnswerJob:
    """What a worker needs besides the rows; `of` is what the answers are made with (see `AnswerSource`)."""

    run: str
    data: DataConfig
    of: Mapping[str, object]
    form: AnswerFormat
    settings: AnswerSettings


@dataclass(frozen=True, eq=False)
class _Piece:
    """Consecutive rows, which a worker reads from Ray's object store."""

    part: Part
    rows: ray.ObjectRef
    rows_digest: str

    def __str__(self) -> str:
        return f"lines {self.part.first} to {self.part.last}"


class AnswerWorker:
    """Holds the base with the run's members, and answers pieces: a Ray actor.

    Args:
        job: what to do.
        parts: the directory for the answers.
        num_threads: of torch.
    """

    def __init__(self, job: AnswerJob, parts: AnswerParts, num_threads: int) -> None:
        self.job, self.parts, self.num_threads = job, parts, num_threads

    def load(self) -> None:
        """Load the base.

        Raises:
            CheckpointError: run, base or output directory are not the same here.
        """
        import ray
        import torch

        torch.set_num_threads(self.num_threads)
        settings = self.job.settings
        try:
            here, there = version("lorchestra"), self.job.of["lorchestra"]
            if here != there:
                raise CheckpointError(f"lorchestra {here} is installed, and the command is of {there}; install that")
            self.parts.check_visible()
            self.ensemble = load_run(self.job.run, base=settings.base)
        except CheckpointError as error:
            node = ray.util.get_node_ip_address()
            raise CheckpointError(
                f"{error} (on node {node}; run, base and --out must be on a file system that all nodes see)"
            ) from error
        rule = None if settings.early_exit is None else ExitRule.parse(settings.early_exit)
        self.options = options_of(
            self.ensemble,
            settings.abstain_below,
            rule,
            settings.too_long,
            raw=settings.raw,
            decisions=settings.decisions,
        )

    def answer(self, part: Part, rows: tuple[InputRow, ...], rows_digest: str) -> Part:
        """Write the answers to a part's rows, and return the part.

        Raises:
            DataError: a row cannot be answered, and that is to be an error.
            CheckpointError: the part cannot be written.
        """
        settings, form = self.job.settings, self.job.form
        counts, lines = AnswerCounts(), []
        chunks = full_chunks(rows, self.parts.source.chunk_rows)
        for chunk in answer_chunks(self.ensemble.pipeline, chunks, self.options):
            counts.add(chunk)
            if settings.on_error == "fail" and counts.first_fault:
                raise DataError(counts.first_fault)
            records = [
                answer.to_dict(early_exit=form.early_exit, top=shown_choices(settings.top, len(answer.choices or ())))
                for answer in chunk.answers
            ]
            lines.append(form.encode(records, first=False))
        max_length = self.ensemble.pipeline.max_length
        self.parts.write(part, rows_digest, b"".join(lines), max_length, dataclasses.asdict(counts))
        return part


@dataclass(frozen=True)
class AnsweredParts:
    """The outcome.

    Attributes:
        counts: of all rows.
        num_parts: all parts.
        num_finished_before: those that an earlier call had finished.
        max_length: tokens that a row may have.
    """

    counts: AnswerCounts
    num_parts: int
    num_finished_before: int
    max_length: int


def answer_parts(
    job: AnswerJob,
    data: str | Path,
    out: str | Path,
    *,
    address: str | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    callback: Callback,
) -> AnsweredParts:
    """Answer the rows of files on a Ray cluster, into a directory of parts; finished parts are skipped.

    Args:
        job: run, settings and what the answers are made with; the run, its base and `out` must be on a file system
            that all nodes see.
        data: a file, a directory, a pattern or a URL; read by this process alone.
        out: the directory of the parts.
        address: of the cluster (see `connection`).
        workers: their number (see `worker_shape`).
        overwrite: discard earlier parts.
        callback: reports progress.

    Raises:
        ConfigError: Ray is not installed, or the cluster has no room.
        ClusterError: the cluster cannot be reached, or loses the same work again and again.
        DataError: the files cannot be read or have no rows, or a row cannot be answered and that is to be an error.
        CheckpointError: `out` has answers of another run, other settings or other rows, or cannot be written.
    """
    run = Run.at(job.run)
    record = run.read_ensemble()
    files = _files(data, job.data)
    uses_gpus = run.read_config().base.device != "cpu"
    with Workspace.open(out, ANSWERS) as workspace, connection(address):
        shape = worker_shape(workers, gpus=uses_gpus)
        root = workspace.root.absolute()
        source = AnswerSource(
            job.of, files, CHUNK_ROWS_CUDA if shape.num_gpus else CHUNK_ROWS_CPU, job.settings.part_lines
        )
        rows = read_input_rows(data, job.data, record.labels, record.questions)
        first = next(rows, None)
        if first is None:
            raise DataError(f"{shown_path(str(data))}: has no rows; give it one example per row")
        # only now: rows that cannot be read leave no directory behind
        if workspace.resuming and overwrite:
            AnswerParts.discard(root)
        resuming = workspace.resuming and not overwrite
        parts = AnswerParts.resume(root, source) if resuming else AnswerParts.start(root, source)
        outcome = _Answering(job, parts, shape, callback).answer(itertools.chain([first], rows))
        parts.complete(outcome.counts.rows)
        return outcome


class _Answering:
    """One call of `answer_parts`, connected to the cluster."""

    def __init__(self, job: AnswerJob, parts: AnswerParts, shape: WorkerShape, callback: Callback) -> None:
        self.job, self.parts, self.shape, self.callback = job, parts, shape, callback
        self.counts: dict[Part, AnswerCounts] = {}
        self.num_finished = self.num_rows = self.max_length = 0

    def answer(self, rows: Iterator[InputRow]) -> AnsweredParts:
        """Answer the rows of all parts that are not finished."""
        with WorkerPool(self._start, self._submit, self.shape.number) as pool:
            for piece, _ in pool.results(self._pieces(rows)):
                record = self.parts.record(piece.part, piece.rows_digest)
                if record is None:
                    raise CheckpointError(
                        f"--out {self.parts.root}: a worker has written {piece.part.name}.jsonl, and it is not here; is"
                        " this a file system that all nodes see?"
                    )
                self._add(piece.part, record)
        total = AnswerCounts()
        for part in sorted(self.counts, key=lambda one: one.first):
            total.merge(self.counts[part])
        return AnsweredParts(total, len(self.counts), self.num_finished, self.max_length)

    def _pieces(self, rows: Iterator[InputRow]) -> Iterator[_Piece]:
        """The unfinished ones; finished ones are compared with their rows, and counted."""
        import ray

        last = 0
        for chunk in full_chunks(rows, self.parts.source.part_lines):
            part = Part(last + 1, last + len(chunk))
            last = part.last
            digest = hashlib.sha256()
            for row in chunk:
                digest.update(digest_line(row))
            record = self.parts.record(part, digest.hexdigest())
            if record is None:
                yield _Piece(part, ray.put(chunk), digest.hexdigest())
            else:
                self.num_finished += 1
                self._add(part, record)

    def _start(self) -> ray.actor.ActorHandle:
        import ray

        actor = ray.remote(num_cpus=self.shape.num_cpus, num_gpus=self.shape.num_gpus)(AnswerWorker)
        return actor.remote(self.job, self.parts, self.shape.num_cpus)

    def _submit(self, actor: ray.actor.ActorHandle, piece: _Piece) -> ray.ObjectRef:
        return actor.answer.remote(piece.part, piece.rows, piece.rows_digest)

    def _add(self, part: Part, record: Json) -> None:
        self.counts[part] = AnswerCounts.from_dict(record["counts"], self.parts.record_path(part))
        self.max_length = record["max_length"]
        self.num_rows += part.last - part.first + 1
        self.callback.on_progress("predicting", self.num_rows, 0)


def _files(data: str | Path, config: DataConfig) -> list[tuple[str, int | None]]:
    """The files with rows and their sizes, for the record.

    Raises:
        DataError: there are none, or one cannot be read.
    """
    read = config.read
    options = ReadOptions(read.encoding, read.format, read.delimiter_mark)
    files = [file for file, _ in row_files(data, options)]
    return [(str(file if isinstance(file, RemoteFile) else file.absolute()), _size(file)) for file in files]


def _size(file: SourceFile) -> int | None:
    try:
        return file.num_bytes if isinstance(file, RemoteFile) else file.stat().st_size
    except OSError as error:
        raise DataError(f"{file}: the file cannot be read ({error}); check its permissions") from error
