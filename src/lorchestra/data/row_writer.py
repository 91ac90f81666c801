"""Labelled rows as JSON lines that a run reads again: `calibrate`, `monitor` and `evaluate` take them as data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from lorchestra.config.data import DataConfig
from lorchestra.data.typed_rows import ANSWERS, STATE
from lorchestra.errors import ConfigError, visible_json
from lorchestra.questions import Question


@dataclass(frozen=True)
class RowWriter:
    """Writes rows of a run: one typed question per row, or a text and its label.

    Attributes:
        config: how the run reads files.
        typed: whether it was trained on typed questions.
    """

    config: DataConfig
    typed: bool

    def check(self) -> None:
        """Refuse a run that would not read these rows as they are written.

        Raises:
            ConfigError: it reads files in another format or encoding, or joins its texts from several columns.
        """
        read, text = self.config.read, self.config.fields.text
        if read.format not in (None, "jsonl"):
            raise ConfigError(f"the run reads every file as {read.format} (data.read.format), and these are JSON lines")
        if read.encoding is not None and read.encoding.lower().replace("-", "") not in ("utf8", "ascii"):
            raise ConfigError(f"the run reads every file as {read.encoding} (data.read.encoding), and these are UTF-8")
        if not self.typed and "," in text:
            raise ConfigError(f"the run's texts are joined from the columns {text}, which a text cannot be split into")

    def line(self, state: str, question: Question, answer: int, more: Mapping[str, object]) -> str:
        """A row without its line end: a state, the index of the answer to a question, and a column `correction`."""
        fields = self.config.fields
        row: dict[str, object]
        if self.typed:
            row = {STATE: state, ANSWERS: {question.name: value_of(question, answer)}}
        else:
            row = {fields.text: state, fields.label: question.options[answer]}
        # one column for all that the readers ignore: others could have the names of columns that they look for
        return visible_json(json.dumps({**row, "correction": more}, ensure_ascii=False))


def value_of(question: Question, answer: int) -> str | bool:
    """An answer as files have it: the option's text; true or false for a predicate."""
    return bool(answer) if question.type == "predicate" else question.options[answer]
