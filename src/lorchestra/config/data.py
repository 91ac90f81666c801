"""Settings of the data: which rows, which columns, how an answer is asked for and scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from lorchestra.config.mappings import check_magnitudes
from lorchestra.errors import ConfigError

_DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "bar": "|"}

DATA_DIR_VARIABLE = "LORCHESTRA_DATA_DIR"
"""The environment variable that stands in for `data.dir`."""


@dataclass(frozen=True)
class FieldsConfig:
    """Column names of the task files."""

    question: str = "question"
    """Column with the question of a multiple-choice row; several, with commas, become lines `column: cell`."""
    choices: str = "choices"
    """Column with the row's choices (a list; in a CSV cell, a JSON list), or the columns of one choice each, as in
    A,B,C,D."""
    answer: str = "answer"
    """Column with the right choice; see --data.answer-as."""
    text: str = "text"
    """Column with the text to classify; a file with this column and the label column is read as texts with labels.
    Several, with commas (premise,hypothesis), become lines `column: cell`."""
    label: str = "label"
    """Column with the text's label."""
    id: str = "id"
    """Column with the row's id (optional in the file)."""


@dataclass(frozen=True)
class ChatFrame:
    """What a chat template writes around the contents of a conversation, as it was when the run started.

    Templates write dates, and conditions that change: what a run was trained with is what it predicts with.
    """

    template: str = ""
    """A digest of the chat template, its tokens and the system prompt; empty where no template was rendered yet."""
    trim: Literal["", "strip", "lstrip", "rstrip"] = ""
    """What the template does to white space around a user's message."""
    alone: tuple[str, ...] = ()
    """One question: before it, between it and its answer, after the answer."""
    shots: tuple[str, ...] = ()
    """Three answered questions and one more: before each content, and after the last; () where no rule is in it."""


@dataclass(frozen=True)
class ReadConfig:
    """How files are read. On the command line these are options of `data` itself: --data.encoding."""

    format: Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow"] | None = None
    """The files' format, where their suffix does not say it."""
    encoding: str | None = None
    """The files' text encoding, such as cp1252; default: UTF-8, or what a byte order mark says."""
    delimiter: str | None = None
    """What separates the cells of CSV files, as one character or its name; default: comma, semicolon, tab or bar, as
    the header goes."""
    answer_as: Literal["label", "index", "number", "letter", "text"] | None = None
    """How answers are given: a name that comes with the choices, an index from 0, a number from 1, a letter, or the
    choice's text; default: the one that fits all rows."""
    label_names: tuple[str, ...] = ()
    """Names for labels, as in `0=negative 1=positive`, or a YAML or JSON file with them. Two labels with one name are
    one."""
    clean_labels: bool = False
    """Make one label of those that differ in case or spaces: the most frequent spelling."""
    drop_unlabeled: bool = False
    """Leave out rows without a label or answer (empty, null, NaN, -1 or ?) instead of stopping."""
    rules: Literal[1, 2] = field(default=2, metadata={"cli": {"hidden": True}})
    """Rules of reading. 1: as runs of earlier versions (labels as they are spelled, in the order of characters)."""
    max_held_out: int | None = 2000
    """Most rows held out of the training rows for each of validation and test; null for a tenth however many."""

    @property
    def delimiter_mark(self) -> str | None:
        """The character that `delimiter` stands for, which may be given by its name."""
        return _DELIMITERS.get(str(self.delimiter), self.delimiter)


@dataclass(frozen=True)
class PromptConfig:
    """How a row is put to the model."""

    SAVED_WITHOUT: ClassVar[Mapping[str, object]] = {"version": 1}
    """What a saved configuration without a setting was made with, where that is not the default."""

    template: str | None = None
    """Prompt template; {question} stands for the question or text, {options} for the lettered list of choices."""
    chat_template: bool = False
    """Wrap the prompt in the tokenizer's chat template."""
    system_prompt: str | None = None
    """System message; implies chat_template."""
    answer_prefix: str = " "
    """What parts an answer from a plain prompt that ends in no white space: "" for languages without spaces."""
    version: Literal[1, 2] = 2
    """Rules by which rows become tokens. 1: as runs of format 1 (a choice that continues another cannot win)."""
    frame: ChatFrame = field(default_factory=ChatFrame, metadata={"cli": {"hidden": True}})
    """What the chat template wrote when the run started; set by training."""


@dataclass(frozen=True)
class DataConfig:
    """A task by name or its files, and how rows become prompts with scored choices."""

    SAVED_WITHOUT: ClassVar[Mapping[str, object]] = {
        "read": ReadConfig(max_held_out=None, rules=1),
        "prompt": PromptConfig(version=1),
    }
    """What a saved configuration without a setting was made with, where that is not the default."""

    task: str | None = None
    """A task by name (`lorchestra tasks` lists them) instead of files."""
    dir: str | None = field(default=None, metadata={"cli": {"aliases": ["--data-dir"]}})
    """Directory with data sets, where a task by name is looked for first; default: $LORCHESTRA_DATA_DIR."""
    train: str | None = None
    """Training rows: a .jsonl, .json, .csv, .tsv, .parquet or .arrow file (text also as .gz or .zst), a directory of
    such files, or a pattern in quotes."""
    val: str | None = None
    """Validation rows. Without it a seeded, stratified part of the training rows is held out."""
    test: str | None = None
    """Test rows, never fitted. Without it a seeded, stratified part of the training rows is held out."""
    fields: FieldsConfig = field(default_factory=FieldsConfig)
    """Column names, where the files use others."""
    read: ReadConfig = field(default_factory=ReadConfig, metadata={"cli": {"name": ""}})
    """How files are read."""
    scoring: Literal["auto", "letter", "text"] = "auto"
    """How an answer is scored: its option letter, its text, or (auto) letters if the base can use them, else text."""
    normalize: Literal["sum", "token", "byte"] = "sum"
    """With text scoring: log-probability of the whole choice, or per token, or per byte of it."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    """How a row is put to the model."""
    keep_tokens: tuple[str, ...] = ()
    """Tokens added to the tokenizer (not special ones) that rows may hold as tokens; others are read as plain text."""
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
    if config.read.max_held_out is not None and config.read.max_held_out < 1:
        raise ConfigError(
            f"--data.max-held-out: {config.read.max_held_out} is less than 1; give the most rows, or null"
        )
    mark = config.read.delimiter_mark
    if mark is not None and (len(mark) != 1 or mark in '\r\n"'):
        message = f"--data.delimiter: {config.read.delimiter!r} cannot separate cells"
        raise ConfigError(f"{message}; give one character, or comma, semicolon, tab or bar")
    frame = config.prompt.frame
    if (len(frame.alone), len(frame.shots)) not in ((0, 0), (3, 0), (3, 9)):
        message = f"data.prompt.frame: has {len(frame.alone)} and {len(frame.shots)} texts, not 3 and 0 or 9"
        raise ConfigError(f"{message}; leave data.prompt.frame out, it is written by training")
    texts = {name: getattr(config.prompt, name) or "" for name in ("template", "system_prompt", "answer_prefix")}
    texts |= {"frame.alone": "".join(frame.alone), "frame.shots": "".join(frame.shots)}
    for name, text in texts.items():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = (
                f"data.prompt.{name}: holds half of a surrogate pair at place {error.start}, which is no character"
            )
            raise ConfigError(f"{message}; mend the escape") from None
