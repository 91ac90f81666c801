"""Settings of the data: which rows, which columns, how an answer is asked for and scored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from lorchestra.config import check_magnitudes
from lorchestra.errors import ConfigError

DATA_DIR_VARIABLE = "LORCHESTRA_DATA_DIR"
"""The environment variable that stands in for `data.dir`."""


@dataclass(frozen=True)
class FieldsConfig:
    """Column names of the task files."""

    question: str = "question"
    """Column with the question of a multiple-choice row."""
    choices: str = "choices"
    """Column with the row's choices (a list; in a CSV cell, a JSON list)."""
    answer: str = "answer"
    """Column with the index of the right choice, from 0."""
    text: str = "text"
    """Column with the text to classify; a file with this column and the label column is read as texts with labels."""
    label: str = "label"
    """Column with the text's label."""
    id: str = "id"
    """Column with the row's id (optional in the file)."""


@dataclass(frozen=True)
class PromptConfig:
    """How a row is put to the model."""

    template: str | None = None
    """Prompt template; {question} stands for the question or text, {options} for the lettered list of choices."""
    chat_template: bool = False
    """Wrap the prompt in the tokenizer's chat template."""
    system_prompt: str | None = None
    """System message; implies chat_template."""


@dataclass(frozen=True)
class DataConfig:
    """A task by name or its files, and how rows become prompts with scored choices."""

    task: str | None = None
    """A task by name (`lorchestra tasks` lists them) instead of files."""
    dir: Annotated[str | None, tyro.conf.arg(aliases=["--data-dir"])] = None
    """Directory with data sets, where a task by name is looked for first; default: $LORCHESTRA_DATA_DIR."""
    train: str | None = None
    """Training rows: a .jsonl, .jsonl.gz, .csv or .parquet file."""
    val: str | None = None
    """Validation rows. Without it a seeded, stratified part of the training rows is held out."""
    test: str | None = None
    """Test rows, never fitted. Without it a seeded, stratified part of the training rows is held out."""
    fields: FieldsConfig = field(default_factory=FieldsConfig)
    """Column names, where the files use others."""
    scoring: Literal["auto", "letter", "text"] = "auto"
    """How an answer is scored: its option letter, its text, or (auto) letters if the base can use them, else text."""
    normalize: Literal["sum", "token", "byte"] = "sum"
    """With text scoring: log-probability of the whole choice, or per token, or per byte of it."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    """How a row is put to the model."""
    max_length: int | None = None
    """Longest row in tokens; the default is the model's context."""
    too_long: Literal["error", "drop", "truncate"] = "error"
    """What to do with a row over max_length: stop, leave the row out, or cut the question (never the choices)."""
    class_weights: bool = False
    """Weight each training row by the inverse frequency of its label (texts with labels only)."""


def check_data(config: DataConfig) -> None:
    """Refuse settings out of range, before any file is read.

    Raises:
        ConfigError: names the field and its value.
    """
    check_magnitudes(config, "data")
    if config.max_length is not None and config.max_length < 1:
        raise ConfigError(f"data.max_length: {config.max_length} is less than 1; give the longest row in tokens")
    for name in ("template", "system_prompt"):
        try:
            (getattr(config.prompt, name) or "").encode()
        except UnicodeEncodeError as error:
            message = (
                f"data.prompt.{name}: holds half of a surrogate pair at place {error.start}, which is no character"
            )
            raise ConfigError(f"{message}; mend the escape") from None
