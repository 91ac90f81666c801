"""Load a finished run: the base it was trained on, its members, and a record and configuration that agree."""

from __future__ import annotations

import dataclasses
import logging
import reprlib
from dataclasses import dataclass
from pathlib import Path

from lorchestra.config.adapt import BaseConfig
from lorchestra.config.mappings import to_mapping
from lorchestra.config.run import RunConfig
from lorchestra.data.prompts import PromptTemplate
from lorchestra.errors import CheckpointError, ConfigError, DataError
from lorchestra.inference.pipeline import FORMAT_1_CHOICES, Pipeline
from lorchestra.metrics.information import InformationHead
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.init import make_adapter_settings
from lorchestra.models.loading import LoadedBase, load_base
from lorchestra.models.peft_files import WEIGHTS, load_member
from lorchestra.models.peft_import import CONFIG
from lorchestra.store.ensemble_record import EnsembleRecord, choice_end
from lorchestra.store.information import read_information
from lorchestra.store.linear_probe import read_linear_probe
from lorchestra.store.run import Run
from lorchestra.types import Example

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinishedRun:
    """A finished run whose base and members are not loaded: an `Ensemble` without its pipeline."""

    run: Run
    record: EnsembleRecord
    config: RunConfig

    @classmethod
    def read(cls, path: str | Path) -> FinishedRun:
        """The run in a directory.

        Raises:
            CheckpointError: no finished run, or damaged records.
        """
        run = Run.at(path)
        return cls(run, run.read_ensemble(), run.read_config())

    def load(self, moved_base: str | Path | None = None) -> Pipeline:
        """Its pipeline; see `load_pipeline`."""
        return load_pipeline(self.run, self.record, self.config, moved_base)


def load_pipeline(
    run: Run, record: EnsembleRecord, config: RunConfig, moved_base: str | Path | None = None
) -> Pipeline:
    """The pipeline of a finished run, with the members that did not fail.

    Args:
        run: the run.
        record: its record.
        config: its configuration.
        moved_base: where the base is now (hub id, directory, .gguf file), if it has moved.

    Raises:
        CheckpointError: damaged files, or the base is not the one the run was trained on.
    """
    _check_consistent(run, record, config)
    good = good_members(run, record)
    for m, reason in record.failed_members.items():
        logger.info(f"member {m} failed and is left out: {reason}")
    base = load_base_of(run, record, config, moved_base)
    members = [record.members[m] for m in good]
    adapt = dataclasses.replace(config.adapt, members=len(good))
    # imported members, and those trained with separate settings, have their rank and scaling in the record
    adapter_settings = [
        dataclasses.replace(
            settings.as_saved,
            r=settings.r if member.r is None else member.r,
            scaling=settings.scaling if member.scaling is None else member.scaling,
        )
        for settings, member in zip(make_adapter_settings(adapt, config.train.seed), members, strict=True)
    ]
    num_labels = len(record.labels) if record.labels is not None and record.scoring == "head" else None
    model = EnsembleModel(base.model, adapt, config.train.seed, adapter_settings, num_labels)
    for index, member in enumerate(members):
        load_member(model.adapters, index, run.inside(member.path), member.sha256, member.r)
    template = PromptTemplate.from_config(config.data, has_labels=record.labels is not None, tokenizer=base.tokenizer)
    assert config.data.scoring != "auto"
    if template.text(config.data.scoring) != record.prompt_template:
        raise CheckpointError(
            f"{run.ensemble}: prompt_template is not the one of data.prompt in {run.config.name}; one of the two files"
            " was changed"
        )
    assert config.train.token_budget is not None
    pipeline = Pipeline(base, model, template, config.data, config.data.scoring, config.train.token_budget, record.task)
    if record.information is not None:
        pipeline.information = _information(run, record.information, model)
    if record.linear_probe is not None:
        sizes = len(record.labels or ()), model.num_layers, model.hidden_size
        pipeline.linear_probe = read_linear_probe(run.linear_probe, record.linear_probe, *sizes)
    _log_hopeless_labels(pipeline, record)
    return pipeline


def _information(run: Run, sha256: str, model: EnsembleModel) -> InformationHead:
    """The head of a distilled run that predicts mutual information."""
    if model.num_members != 1:
        raise CheckpointError(
            f"{run.ensemble}: has {model.num_members} members and information, which only runs of one member have; the"
            " file was changed"
        )
    return read_information(run.information, sha256, model.hidden_size + 1)


def load_base_of(run: Run, record: EnsembleRecord, config: RunConfig, moved: str | Path | None = None) -> LoadedBase:
    """The base a run was trained on; see `load_pipeline` for the arguments.

    Raises:
        CheckpointError: it cannot be loaded, or has changed.
    """
    base = _saved_base(run, record, config, moved)
    try:
        loaded = load_base(base)
    except CheckpointError as error:
        if moved is not None:
            raise
        raise CheckpointError(f"{error} Where the run's base has moved, --base names its new path or id.") from error
    saved_digest = record.base.digest[:12]
    if loaded.digest != record.base.digest and moved is not None:
        raise CheckpointError(
            f"--base {moved}: is another base than {record.base.id or config.base.name}, on which {run.root} was"
            f" trained (digest {loaded.digest[:12]} against {saved_digest}); adapters fit only the base they were"
            " trained on"
        )
    if loaded.digest != record.base.digest:
        raise CheckpointError(
            f"{run.ensemble}: trained on another base than {config.base.name!r} is now (digest {saved_digest} against"
            f" {loaded.digest[:12]}); adapters fit only the base they were trained on"
        )
    if loaded.tokenizer_digest != record.tokenizer_digest:
        raise CheckpointError(f"{run.ensemble}: the tokenizer of {base.name!r} has changed since the run was trained")
    return loaded


def _saved_base(run: Run, record: EnsembleRecord, config: RunConfig, moved: str | Path | None) -> BaseConfig:
    """Where to load the base from; early runs saved a relative path as typed, and the absolute one in the record.

    Raises:
        CheckpointError: the base was a directory or file that no longer exists.
    """
    if moved is not None:
        return dataclasses.replace(config.base, name=str(moved), revision=None)
    base, saved = dataclasses.replace(config.base, revision=record.base.revision), record.base.id
    if base.revision is not None or not Path(saved).is_absolute() or Path(base.name).is_absolute():
        return base
    if not Path(saved).exists():
        raise CheckpointError(
            f"{run.ensemble}: its base was {saved}, which no longer exists; restore it, or give its new path with"
            " --base"
        )
    return dataclasses.replace(base, name=saved)


def good_members(run: Run, record: EnsembleRecord) -> tuple[int, ...]:
    """Indices of the members that did not fail.

    Raises:
        CheckpointError: every member failed, or a file of one of the others is missing.
    """
    good = record.good_members
    if not good:
        raise CheckpointError(f"{run.ensemble}: every member failed; train again with a smaller train.lr")
    for m in good:
        for name in (CONFIG, WEIGHTS):
            file = run.inside(record.members[m].path, name)
            if not file.is_file():
                raise CheckpointError(f"{file}: missing; copy the run directory again, whole")
    return good


def _log_hopeless_labels(pipeline: Pipeline, record: EnsembleRecord) -> None:
    """Log once, instead of per row, that a label of a run of format 1 cannot win."""
    labels = record.labels
    if labels is None or pipeline.template.version > 1:
        return
    try:
        hopeless = pipeline.tokenize([Example("labels", "text", labels, None)], pipeline.data.too_long).hopeless
    except (ConfigError, DataError):
        return  # prediction reports it for its rows
    if hopeless:
        logger.info(
            f"labels {', '.join(map(repr, labels[:12]))}{', ...' if len(labels) > 12 else ''}: {FORMAT_1_CHOICES}"
        )
        pipeline.mark_logged("hopeless")


def _check_consistent(run: Run, record: EnsembleRecord, config: RunConfig) -> None:
    """Refuse a record and a configuration of different runs."""
    file, version = run.config.name, config.data.prompt.version
    if len(record.members) != config.adapt.members:
        raise _changed(run, f"has {len(record.members)} members, and adapt.members in {file} is {config.adapt.members}")
    if config.data.scoring != record.scoring:
        raise _changed(run, f"scoring is {record.scoring!r}, and data.scoring in {file} is {config.data.scoring!r}")
    if choice_end(version) != record.choice_end:
        raise _changed(run, f"choice_end is {record.choice_end!r}, and data.prompt.version in {file} is {version}")
    _check_prompt(run, record, config)
    if config.train.token_budget is None:
        raise CheckpointError(f"{run.config}: train.token_budget is missing; the file was changed")


def _check_prompt(run: Run, record: EnsembleRecord, config: RunConfig) -> None:
    """The model card shows the prompt of the record, and predictions use that of the configuration."""
    prompt = config.data.prompt
    used: dict[str, object] = {
        "normalize": config.data.normalize,
        "system_prompt": prompt.system_prompt,
        "answer_prefix": prompt.answer_prefix,
    }
    if prompt.frame.template:
        used["chat_frame"] = to_mapping(prompt.frame)
    for field, value in used.items():
        recorded = getattr(record, field)
        if field not in record.missing and recorded != value:
            raise _changed(run, f"{field} is {reprlib.repr(recorded)}, and {run.config.name} has {reprlib.repr(value)}")


def _changed(run: Run, what: str) -> CheckpointError:
    return CheckpointError(f"{run.ensemble}: {what}; one of the two files was changed")
