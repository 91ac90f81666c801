"""A finished run, loaded: base, members and prompt as they were trained."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorchestra.config.data import DataConfig
from lorchestra.config.run import RunConfig
from lorchestra.data.in_memory import entries_of, is_file
from lorchestra.data.input_rows import InputRow, input_rows, read_input_rows
from lorchestra.errors import DataError
from lorchestra.inference.pipeline import Pipeline, TooLong
from lorchestra.metrics.early_exit import ExitRule
from lorchestra.runs.loading import load_pipeline
from lorchestra.runs.predict import Answer, AnswerCounts, AnswerOptions, answer_chunks, chunk_rows
from lorchestra.runs.rows import read_like
from lorchestra.store.ensemble_record import EnsembleRecord
from lorchestra.store.run import Run
from lorchestra.training.module import EnsembleModule
from lorchestra.types import Example

logger = logging.getLogger(__name__)


@dataclass
class Ensemble:
    """A finished run, ready to predict.

    Failed members are left out: `pipeline` holds the others, in order, and `members` their numbers in the run.
    """

    run: Run
    record: EnsembleRecord
    config: RunConfig
    pipeline: Pipeline
    members: tuple[int, ...]

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The label set in order; None if every question brings its own choices."""
        return self.record.labels

    def as_module(self) -> EnsembleModule:
        """The members as a `torch.nn.Module`: differentiable, and with the adapters as its parameters."""
        return EnsembleModule(self.pipeline)

    def read(self, path: str | Path, *, require_answer: bool) -> tuple[Example, ...]:
        """Rows of a file, in the form the run was trained on."""
        return read_like(path, self.config.data, self.labels, require_answer=require_answer).examples

    def asked(self, rows: Any, data: DataConfig | None = None) -> Iterator[InputRow]:
        """Rows to be answered, read as they are asked for.

        Args:
            rows: a file's path; or rows in memory: texts (for a run on texts with labels), dicts, examples, a
                DataFrame, a Series or a Dataset (see `entries_of`).
            data: how files are read and how their columns are called; by default as in training.

        Raises:
            DataError: the file cannot be read, or no row has the columns that are needed.
            InputError: what was given from Python holds no rows.
        """
        data = data or self.config.data
        if is_file(rows):
            return read_input_rows(rows, data, self.labels)
        return input_rows(entries_of(rows, self.labels), data, self.labels)

    def predict(
        self,
        rows: Any,
        abstain_below: float | None = None,
        early_exit: str | float | None = None,
        *,
        on_error: Literal["record", "fail"] = "record",
        too_long: TooLong | None = None,
    ) -> Iterator[Answer]:
        """Answer rows, each as soon as its chunk is answered; memory does not grow with their number.

        Args:
            rows: see `asked`.
            abstain_below: `Answer.abstain` is true if the confidence is below.
            early_exit: "exact" or a confidence in (0, 1]: members are asked until a row is decided (see `ExitRule`).
            on_error: "record" (in `Answer.error`) or "fail" (raise) what makes a row unanswerable.
            too_long: what to do with a row over the maximum length: "error", "drop" (no answer) or "truncate" (cut the
                question); by default as in training.

        Raises:
            ConfigError: `early_exit` is neither of the two.
            DataError: see `asked`; or a row cannot be answered, and `on_error` is "fail".
        """
        rule = None if early_exit is None else ExitRule.parse(early_exit, "early_exit")
        options = AnswerOptions(abstain_below, rule, too_long or self.config.data.too_long)
        return self._answers(self.asked(rows), options, on_error)

    def _answers(
        self, rows: Iterator[InputRow], options: AnswerOptions, on_error: Literal["record", "fail"]
    ) -> Iterator[Answer]:
        counts = AnswerCounts()
        for chunk in answer_chunks(self.pipeline, rows, options, chunk_rows(self.pipeline)):
            counts.add(chunk)
            for answer in chunk.answers:
                if on_error == "fail" and answer.error is not None:
                    raise DataError(answer.error)
                yield answer
        for sentence in counts.sentences(self.pipeline.max_length):
            logger.info(sentence)


def load_run(root: str | Path, *, base: str | Path | None = None) -> Ensemble:
    """Load a finished run.

    Args:
        root: its directory.
        base: where the base is now (hub id, directory, .gguf file), if not where it was; its weights must be the same.

    Raises:
        CheckpointError: no finished run, damaged files, or the base is not the one the run was trained on.
    """
    run = Run.at(root)
    record = run.read_ensemble()
    config = run.read_config()
    pipeline = load_pipeline(run, record, config, base)
    return Ensemble(run, record, config, pipeline, record.good_members)
