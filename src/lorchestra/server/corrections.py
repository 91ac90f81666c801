"""Corrected answers, appended to a file of labelled rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lorchestra.data.row_writer import RowWriter, value_of
from lorchestra.errors import CheckpointError, ConfigError
from lorchestra.questions import Question
from lorchestra.server.errors import CorrectionsFullError, EngineError
from lorchestra.server.registry import ServedRun
from lorchestra.store.appending import FileFullError, append_line

logger = logging.getLogger(__name__)

_MAX_BYTES = 64 * 2**20
_SUFFIXES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Correction:
    """The right answer to a trained question about a state.

    Attributes:
        state: as text.
        question: of the run.
        answer: index of the right option.
        prediction: index of the option that was predicted; None if it was not sent.
        client: name of the key; "" if the server is open.
    """

    state: str
    question: Question
    answer: int
    prediction: int | None
    client: str


class Corrections:
    """The file of corrections of a run; `lorchestra calibrate` and `lorchestra monitor` read it as `--data`.

    Args:
        path: the file; made at the first correction.
        runs: what is served: one run, since another one would not read its rows.
        max_bytes: the file's largest size.

    Raises:
        ConfigError: several runs, or one without trained questions, or one that would not read the rows; or the file's
            name or folder is unusable.
    """

    def __init__(self, path: str, runs: Sequence[ServedRun], *, max_bytes: int = _MAX_BYTES) -> None:
        self.path = path
        self._max_bytes = max_bytes
        option = f"--corrections {path}"
        if Path(path).suffix not in _SUFFIXES:
            raise ConfigError(
                f"{option}: the rows are JSON lines, which are known by the file's name: end it with .jsonl"
            )
        if not Path(path).absolute().parent.is_dir():
            raise ConfigError(f"{option}: there is no such folder; make it first")
        if len(runs) > 1:
            raise ConfigError(f"{option}: takes the rows of one run, and {len(runs)} are served; serve one")
        (run,) = runs
        if not run.questions or run.writer is None:
            raise ConfigError(f"{option}: {run.name} was trained on questions with separate choices; leave it out")
        try:
            run.writer.check()
        except ConfigError as error:
            raise ConfigError(f"{option}: {error}; leave it out") from None
        self._writer: RowWriter = run.writer

    def save(self, correction: Correction) -> None:
        """Append a correction; it is on the disk when this returns.

        Raises:
            CorrectionsFullError: the file has its largest size.
            EngineError: it cannot be written.
        """
        predicted, question = correction.prediction, correction.question
        more = {
            "question": question.name,
            "prediction": None if predicted is None else value_of(question, predicted),
            "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "key": correction.client or None,
        }
        line = self._writer.line(correction.state, question, correction.answer, more)
        try:
            append_line(self.path, line, max_bytes=self._max_bytes)
        except FileFullError as error:
            logger.error("a correction was not saved: %s", error)
            raise CorrectionsFullError("the server's file of corrections is full; ask its operator") from error
        except CheckpointError as error:
            logger.error("a correction was not saved: %s", error)
            raise EngineError("the correction could not be saved; the server's log says why") from error
