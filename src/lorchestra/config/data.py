"""Settings of the data: rows, columns, prompts, and how answers are scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from lorchestra.config.mappings import check_magnitudes
from lorchestra.errors import ConfigError

_DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "bar": "|"}

DATA_DIR_VARIABLE = "LORCHESTRA_DATA_DIR"
"""Environment variable with the default of `data.dir`."""


@dataclass(frozen=True)
class FieldsConfig:
    """Column names of the task files."""

    question: str = "question"
    """Column of the question of a multiple-choice row; several, with commas, become lines `column: cell`."""
    choices: str = "choices"
    """Column of the row's choices (a list; in a CSV cell, a JSON list), or one column per choice, as in A,B,C,D."""
    answer: str = "answer"
    """Column of the right choice; see --data.answer-as."""
    text: str = "text"
    """Column of the text to classify; a file with this column and the label column is read as
    texts with labels. Several, with commas (premise,hypothesis), become lines `column: cell`."""
    label: str = "label"
    """Column of the text's label."""
    id: str = "id"
    """Column of the row's id (optional in the file)."""


@dataclass(frozen=True)
class ChatFrame:
    """The text that a chat template writes around messages, as rendered when the run started.

    Templates may write today's date, so the text is saved: a run predicts with the text that it was trained with.
    """

    template: str = ""
    """A digest of the chat template, its tokens and the system prompt; empty if no template was rendered yet."""
    trim: Literal["", "strip", "lstrip", "rstrip"] = ""
    """How the template strips white space around a user's message."""
    alone: tuple[str, ...] = ()
    """For one question: the text before it, between it and its answer, and after the answer."""
    shots: tuple[str, ...] = ()
    """For three answered questions and a fourth: the text before each message, and after the last;
    () if conversations of other lengths cannot be derived from it."""


@dataclass(frozen=True)
class ReadConfig:
    """How files are read. On the command line these are options of `data`: --data.encoding."""

    format: Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow"] | None = None
    """Format of the files; default: by their suffix."""
    encoding: str | None = None
    """Text encoding of the files, such as cp1252; default: UTF-8, or as the byte order mark says."""
    delimiter: str | None = None
    """Cell delimiter of CSV files, as one character or its name; default: comma, semicolon, tab or
    bar, detected from the header."""
    answer_as: Literal["label", "index", "number", "letter", "text"] | None = None
    """How answers are given: a name that comes with the choices, an index from 0, a number from 1,
    a letter, or the choice's text; default: the one that fits all rows."""
    label_names: tuple[str, ...] = ()
    """Names of labels, as in `0=negative 1=positive`, or a YAML or JSON file with them. Labels
    with the same name are merged."""
    clean_labels: bool = False
    """Merge labels that differ only in case or spaces, under the most frequent spelling."""
    drop_unlabeled: bool = False
    """Drop training rows without a label or answer (empty, null, NaN, -1 or ?) instead of stopping."""
    questions: str | None = None
    """A YAML or JSON file with typed questions: each row is a state (a text or a JSON value) with a column per
    question. See docs/files.md."""
    question_weights: Literal["even", "rows"] = "even"
    """With typed questions, what counts equally in the loss: every question (even), or every answer (rows)."""
    rules: Literal[1, 2] = field(default=2, metadata={"cli": {"hidden": True}})
    """Version of the reading rules. 1: as in earlier versions (labels as spelled, sorted by characters)."""
    max_held_out: int | None = 2000
    """Maximum training rows held out for each of validation and test; null for a tenth without maximum."""

    @property
    def delimiter_mark(self) -> str | None:
        """The delimiter as a character."""
        return _DELIMITERS.get(str(self.delimiter), self.delimiter)


@dataclass(frozen=True)
class PromptConfig:
    """The prompt that a row becomes."""

    SAVED_WITHOUT: ClassVar[Mapping[str, object]] = {"version": 1}
    """Values of settings that are missing from a saved configuration, if they are not the defaults."""

    template: str | None = None
    """Prompt template; {question} is replaced by the question or text, {options} by the lettered list of choices."""
    chat_template: bool = False
    """Wrap the prompt in the tokenizer's chat template."""
    system_prompt: str | None = None
    """System message; implies chat_template."""
    answer_prefix: str = " "
    """Separator of a plain prompt and its answer, if the prompt does not end in white space: ""
    for languages without spaces."""
    option_orders: int = field(default=1, metadata={"cli": {"aliases": ["--data.option-orders"]}})
    """With letters: average the probabilities over this many orders of the options (at most their number)."""
    version: Literal[1, 2] = 2
    """Version of the tokenization rules. 1: as in runs of format 1 (a choice that continues another cannot win)."""
    frame: ChatFrame = field(default_factory=ChatFrame, metadata={"cli": {"hidden": True}})
    """The text of the chat template when the run started; set by training."""


@dataclass(frozen=True)
class DataConfig:
    """A named task or files of rows, and how rows become prompts with scored choices."""

    SAVED_WITHOUT: ClassVar[Mapping[str, object]] = {
        "read": ReadConfig(max_held_out=None, rules=1),
        "prompt": PromptConfig(version=1),
    }
    """Values of settings that are missing from a saved configuration, if they are not the defaults."""

    task: str | None = None
    """A named task (`lorchestra tasks` lists them), instead of files."""
    dir: str | None = field(default=None, metadata={"cli": {"aliases": ["--data-dir"]}})
    """Directory of data sets, the first source of a named task; default: $LORCHESTRA_DATA_DIR."""
    train: str | None = None
    """Training rows: a .jsonl, .json, .csv, .tsv, .parquet or .arrow file (text also as .gz or
    .zst), a directory of such files, or a pattern in quotes."""
    val: str | None = None
    """Validation rows; default: a seeded, stratified part of the training rows is held out."""
    test: str | None = None
    """Test rows, never fitted; default: a seeded, stratified part of the training rows is held out."""
    fields: FieldsConfig = field(default_factory=FieldsConfig)
    """Column names of the files."""
    read: ReadConfig = field(default_factory=ReadConfig, metadata={"cli": {"name": ""}})
    """How files are read."""
    scoring: Literal["auto", "letter", "text", "tree", "head"] = "auto"
    """Score answers by their option letter, by their text, by their text as a tree (many labels:
    shared first tokens once, each token chosen among those that continue a choice), by a
    classification head per member (texts with labels only), or (auto) by letters if the base can
    use them, else as a tree (many labels) or text; with many labels by a head if it does better in
    the search of the learning rate."""
    normalize: Literal["sum", "token", "byte"] = "sum"
    """With text scoring: log-probability of the whole choice, per token, or per byte."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    """The prompt that a row becomes."""
    keep_tokens: tuple[str, ...] = ()
    """Tokens added to the tokenizer (not special ones) that are tokens in rows too; all others are
    read as plain text."""
    max_length: int | None = None
    """Maximum tokens of a row; default: the model's context."""
    too_long: Literal["error", "drop", "truncate"] = "error"
    """For rows over max_length: stop (error), leave the row out (drop), or cut the question, never
    the choices (truncate)."""
    class_weights: bool = False
    """Weight each training row by the inverse frequency of its label (texts with labels only)."""


def check_data(config: DataConfig) -> None:
    """Check that settings are in range, before any file is read.

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
    if not 1 <= config.prompt.option_orders <= 26:
        raise ConfigError(f"data.prompt.option_orders: {config.prompt.option_orders} is not between 1 and 26")
    mark = config.read.delimiter_mark
    if mark is not None and (len(mark) != 1 or mark in '\r\n"'):
        message = f"--data.delimiter: {config.read.delimiter!r} cannot separate cells"
        raise ConfigError(f"{message}; give one character, or comma, semicolon, tab or bar")
    if config.read.questions is not None:
        _check_typed(config)
    elif config.read.question_weights != "even":
        raise ConfigError(
            f"--data.question-weights {config.read.question_weights}: there are no typed questions to weigh; give them"
            " with --data.questions FILE, or leave it out"
        )
    if config.scoring in ("tree", "head") and config.normalize != "sum":
        message = f"data.normalize: {config.normalize} divides the log-probabilities of texts"
        raise ConfigError(f"{message}, and a {config.scoring} has none; use data.scoring: text, or leave it out")
    if config.scoring == "tree" and config.prompt.version == 1:
        message = "data.scoring: a tree needs an end after a choice that another continues"
        raise ConfigError(f"{message}, which data.prompt.version 1 does not have; use text, or leave the version out")
    frame = config.prompt.frame
    if (len(frame.alone), len(frame.shots)) not in ((0, 0), (3, 0), (3, 9)):
        message = f"data.prompt.frame: {len(frame.alone)} and {len(frame.shots)} texts instead of 3 and 0 or 9"
        raise ConfigError(f"{message}; leave data.prompt.frame out, training sets it")
    texts = {name: getattr(config.prompt, name) or "" for name in ("template", "system_prompt", "answer_prefix")}
    texts |= {"frame.alone": "".join(frame.alone), "frame.shots": "".join(frame.shots)}
    for name, text in texts.items():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = f"data.prompt.{name}: lone surrogate at index {error.start}, which is not a character"
            raise ConfigError(f"{message}; fix the escape") from None


def _check_typed(config: DataConfig) -> None:
    """Refuse settings of other rows together with typed questions."""
    others = {
        f"data.task {config.task}": (config.task is not None, "a task by name has its questions"),
        "data.scoring head": (config.scoring == "head", "a head has one set of labels; use tree, text or letter"),
        "data.prompt.template": (config.prompt.template is not None, "typed questions have a prompt of their type"),
        "--data.class-weights": (config.class_weights, "use --data.question-weights"),
        "--data.label-names": (bool(config.read.label_names), "the questions file names and describes the options"),
        "--data.clean-labels": (config.read.clean_labels, "the questions file has the options"),
        "--data.answer-as": (config.read.answer_as is not None, "the question's type says how it is answered"),
    }
    for setting, (given, reason) in others.items():
        if given:
            message = f"--data.questions {config.read.questions}: cannot be combined with {setting}"
            raise ConfigError(f"{message}: {reason}; leave one of the two out")
