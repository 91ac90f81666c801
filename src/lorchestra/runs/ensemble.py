"""A finished run as a session: base, members and prompt as they were trained."""

from __future__ import annotations

import dataclasses
import logging
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorchestra.config.adapt import BaseConfig
from lorchestra.config.data import DataConfig
from lorchestra.config.mappings import to_mapping
from lorchestra.config.run import RunConfig, read_config
from lorchestra.data.in_memory import entries_of, is_file
from lorchestra.data.input_rows import InputRow, input_rows, read_input_rows
from lorchestra.data.prompts import PromptTemplate
from lorchestra.errors import CheckpointError, ConfigError, DataError, printable
from lorchestra.inference.pipeline import FORMAT_1_CHOICES, Pipeline, TooLong
from lorchestra.metrics.early_exit import ExitRule
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.init import make_adapter_settings
from lorchestra.models.loading import LoadedBase, load_base
from lorchestra.models.peft_files import WEIGHTS, load_member
from lorchestra.models.peft_import import CONFIG
from lorchestra.runs.predict import AnswerCounts, AnswerOptions, answer_chunks, chunk_rows
from lorchestra.runs.record import choice_end
from lorchestra.runs.rows import read_like
from lorchestra.store.run_dir import RunDir, read_ensemble
from lorchestra.training.module import EnsembleModule
from lorchestra.types import Example

logger = logging.getLogger(__name__)


@dataclass
class Ensemble:
    """A finished run, ready to predict.

    Failed members are left out: `pipeline` holds the others, in order, and `members` their numbers in the run.
    """

    run: RunDir
    record: dict[str, Any]
    config: RunConfig
    pipeline: Pipeline
    members: tuple[int, ...]

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The label set in order; None where every question brings its own choices."""
        return None if self.record["labels"] is None else tuple(self.record["labels"])

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
    ) -> Iterator[dict[str, Any]]:
        """One dictionary a row, as soon as its chunk of rows is answered; memory does not grow with their number.

        See `prediction_rows` for the fields. To these come `row`, its number from 1; `input`, its columns but for id
        and choices; and `error`, None or why there is no answer: `prediction` and all that follows from it are None
        then.

        Args:
            rows: see `asked`.
            abstain_below: `abstain` is true where the confidence is below.
            early_exit: "exact" or a confidence in (0, 1]: members are asked until a row is decided (see `ExitRule` and
                `early_exit_rows`).
            on_error: whether a row that cannot be answered is recorded, or raised.
            too_long: what to do with a row over the longest length: "error", "drop" (no record) or "truncate" (cut the
                question); by default as in training.

        Raises:
            ConfigError: `early_exit` is neither of the two.
            DataError: see `asked`; or a row cannot be answered, and `on_error` is "fail".
        """
        rule = None if early_exit is None else ExitRule.parse(early_exit, "early_exit")
        options = AnswerOptions(abstain_below, rule, too_long or self.config.data.too_long)
        return self._records(self.asked(rows), options, on_error)

    def _records(
        self, rows: Iterator[InputRow], options: AnswerOptions, on_error: Literal["record", "fail"]
    ) -> Iterator[dict[str, Any]]:
        counts = AnswerCounts()
        for chunk in answer_chunks(self.pipeline, rows, options, chunk_rows(self.pipeline)):
            counts.add(chunk)
            for record in chunk.records:
                if on_error == "fail" and record["error"] is not None:
                    raise DataError(record["error"])
                yield record
        for sentence in counts.sentences(self.pipeline.max_length):
            logger.info(sentence)


def load_own_base(
    run: RunDir, record: dict[str, Any], config: RunConfig, moved: str | Path | None = None
) -> LoadedBase:
    """The base a run was trained on.

    Args:
        run: the run.
        record: its record.
        config: its configuration.
        moved: where the base is now (as base.name), if not where it was.

    Raises:
        CheckpointError: it cannot be loaded, or is not what it was.
    """
    base = _saved_base(run, record, config, moved)
    try:
        loaded = load_base(base)
    except CheckpointError as error:
        if moved is not None:
            raise
        raise CheckpointError(f"{error} Where the run's base has moved, --base names its new path or id.") from error
    if loaded.digest != record["base"]["digest"] and moved is not None:
        raise CheckpointError(
            f"--base {moved}: is another base than {record['base'].get('id') or config.base.name}, on which"
            f" {run.root} was trained (digest {loaded.digest[:12]} against {record['base']['digest'][:12]}); adapters"
            " are only right on their own base"
        )
    if loaded.digest != record["base"]["digest"]:
        raise CheckpointError(
            f"{run.ensemble}: trained on another base than {config.base.name!r} is now (digest"
            f" {record['base']['digest'][:12]} against {loaded.digest[:12]}); adapters are only right on their own base"
        )
    if loaded.tokenizer_digest != record["tokenizer_digest"]:
        raise CheckpointError(f"{run.ensemble}: the tokenizer of {base.name!r} has changed since the run was trained")
    return loaded


def _saved_base(run: RunDir, record: dict[str, Any], config: RunConfig, moved: str | Path | None) -> BaseConfig:
    """Where to load the base from; runs once saved a relative path as it was typed, and where it was in the record.

    Raises:
        CheckpointError: the base was a directory or file, and is no longer there.
    """
    if moved is not None:
        return dataclasses.replace(config.base, name=str(moved), revision=None)
    base, saved = dataclasses.replace(config.base, revision=record["base"]["revision"]), str(record["base"].get("id"))
    if base.revision is not None or not Path(saved).is_absolute() or Path(base.name).is_absolute():
        return base
    if not Path(saved).exists():
        raise CheckpointError(
            f"{run.ensemble}: its base was {saved}, and is no longer there; put it back, or give --base with the place"
            " where it is now"
        )
    return dataclasses.replace(base, name=saved)


def load_run(root: str | Path, *, base: str | Path | None = None) -> Ensemble:
    """Load a finished run.

    Args:
        root: its directory.
        base: where the base is now (hub id, directory, .gguf file), if not where it was; its weights must be the same.

    Raises:
        CheckpointError: no finished run, damaged files, or the base is not the one the run was trained on.
    """
    run, record = read_ensemble(root)
    config = read_config(run.config)
    _check_consistent(run, record, config)
    good = good_members(run, record)
    for m, reason in failed_members(record).items():
        logger.info(f"member {m} failed and is left out: {reason}")
    loaded = load_own_base(run, record, config, base)
    members = [record["members"][m] for m in good]
    adapt = dataclasses.replace(config.adapt, members=len(good))
    # members that were imported, or trained with settings of their own, have their rank and scaling in the record
    adapter_settings = [
        dataclasses.replace(own.as_saved, r=member.get("r", own.r), scaling=member.get("scaling", own.scaling))
        for own, member in zip(make_adapter_settings(adapt, config.train.seed), members, strict=True)
    ]
    model = EnsembleModel(loaded.model, adapt, config.train.seed, adapter_settings)
    for index, member in enumerate(members):
        load_member(model.adapters, index, run.inside(member["path"]), member["sha256"], member.get("r"))
    template = PromptTemplate.from_config(
        config.data, has_labels=record["labels"] is not None, tokenizer=loaded.tokenizer
    )
    if template.text(record["scoring"]) != record["prompt_template"]:
        raise CheckpointError(
            f"{run.ensemble}: prompt_template is not the one of data.prompt in {run.config.name}; one of the two files"
            " was changed"
        )
    assert config.train.token_budget is not None
    pipeline = Pipeline(
        loaded, model, template, config.data, record["scoring"], config.train.token_budget, record["task"]
    )
    _note_hopeless_labels(pipeline, record)
    return Ensemble(run, record, config, pipeline, good)


def failed_members(record: dict[str, Any]) -> dict[int, str]:
    """Members that failed, by their numbers in the run, with what happened."""
    failed = {m: own for m, own in enumerate(record["members"]) if own["state"] == "failed"}
    # runs of earlier versions have the reason in events.jsonl alone
    return {m: printable(str(own.get("reason") or "events.jsonl has the reason")) for m, own in failed.items()}


def _note_hopeless_labels(pipeline: Pipeline, record: dict[str, Any]) -> None:
    """Log once, and not per row, that a label of a run of format 1 cannot win."""
    if record["labels"] is None or pipeline.template.version > 1:
        return
    labels = tuple(record["labels"])
    try:
        hopeless = pipeline.tokenize([Example("labels", "text", labels, None)], pipeline.data.too_long).hopeless
    except (ConfigError, DataError):
        return  # prediction says it of its rows
    if hopeless:
        logger.info(
            f"labels {', '.join(map(repr, labels[:12]))}{', ...' if len(labels) > 12 else ''}: {FORMAT_1_CHOICES}"
        )
        pipeline.mark_logged("hopeless")


def good_members(run: RunDir, record: dict[str, Any]) -> tuple[int, ...]:
    """The members that did not fail, by their numbers in the run.

    Raises:
        CheckpointError: every member failed, or a file of one of the others is missing.
    """
    good = tuple(m for m, member in enumerate(record["members"]) if member["state"] != "failed")
    if not good:
        raise CheckpointError(f"{run.ensemble}: every member failed; train again with a smaller train.lr")
    for m in good:
        for name in (CONFIG, WEIGHTS):
            file = run.inside(record["members"][m]["path"], name)
            if not file.is_file():
                raise CheckpointError(f"{file}: missing; copy the run directory again, whole")
    return good


def _check_consistent(run: RunDir, record: dict[str, Any], config: RunConfig) -> None:
    """The record and the configuration must speak of the same run."""
    if len(record["members"]) != config.adapt.members:
        raise CheckpointError(
            f"{run.ensemble}: has {len(record['members'])} members, and adapt.members in {run.config.name} is"
            f" {config.adapt.members}; one of the two files was changed"
        )
    if config.data.scoring != record["scoring"]:
        raise CheckpointError(
            f"{run.ensemble}: scoring is {record['scoring']!r}, and data.scoring in {run.config.name} is"
            f" {config.data.scoring!r}; one of the two files was changed"
        )
    if choice_end(config.data.prompt.version) != record.get("choice_end", "never"):
        raise CheckpointError(
            f"{run.ensemble}: choice_end is {record.get('choice_end', 'never')!r}, and data.prompt.version in"
            f" {run.config.name} is {config.data.prompt.version}; one of the two files was changed"
        )
    _check_prompt(run, record, config)
    if config.train.token_budget is None:
        raise CheckpointError(f"{run.config}: train.token_budget is missing; the file was changed")


def _check_prompt(run: RunDir, record: dict[str, Any], config: RunConfig) -> None:
    """The model card asks as the record says, and predictions are made as the configuration says."""
    prompt = config.data.prompt
    used: dict[str, Any] = {
        "normalize": config.data.normalize,
        "system_prompt": prompt.system_prompt,
        "answer_prefix": prompt.answer_prefix,
    }
    if prompt.frame.template:
        used["chat_frame"] = to_mapping(prompt.frame)
    for field, value in used.items():
        if record.get(field, value) != value:
            raise CheckpointError(
                f"{run.ensemble}: {field} is {reprlib.repr(record[field])}, and {run.config.name} has"
                f" {reprlib.repr(value)}; one of the two files was changed"
            )
