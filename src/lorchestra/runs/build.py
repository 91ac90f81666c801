"""From a configuration to a pipeline (base, members, prompt, scoring), and what a run records about it."""

from __future__ import annotations

import dataclasses
import logging
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata

import torch

from lorchestra.config.mappings import to_mapping
from lorchestra.config.run import RunConfig, check_run
from lorchestra.data.prompts import PromptTemplate
from lorchestra.errors import ConfigError
from lorchestra.inference.pipeline import (
    CPU_TOKEN_BUDGET,
    Pipeline,
    decide_scoring,
    default_token_budget,
    text_tokenizer,
    underscore_hint,
)
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.init import AdapterSettings
from lorchestra.models.loading import LoadedBase, dtype_name, load_base
from lorchestra.models.number_format import ProductRates, automatic_dtype, with_dtype
from lorchestra.models.peft_files import check_readable
from lorchestra.models.probe import probe
from lorchestra.runs.rows import RunRows, absolute_settings
from lorchestra.store.ensemble_record import BaseRecord, EnsembleRecord, MemberRecord, choice_end
from lorchestra.store.run import Run
from lorchestra.training.module import EnsembleModule
from lorchestra.types import Example, Task

logger = logging.getLogger(__name__)


@contextmanager
def torch_threads(number: int | None) -> Iterator[None]:
    """Set the number of torch's threads for the time of the block; None leaves it.

    A run repeats its bits only with the same number, so every job has `base.threads`; a process that calls the library
    has its number back afterwards.
    """
    before = torch.get_num_threads()
    try:
        if number is not None:
            torch.set_num_threads(number)
        yield
    finally:
        torch.set_num_threads(before)


def settle_dtype(config: RunConfig) -> tuple[RunConfig, ProductRates | None]:
    """The configuration of a new job with `base.dtype` resolved, and the rates that decided it, if any were measured.

    Not for a saved one: an "auto" in it was saved before formats were measured, and means what it meant then, float32
    on a CPU and bfloat16 on CUDA.

    Raises:
        ConfigError, CheckpointError: the base does not exist.
    """
    if config.base.dtype != "auto":
        return config, None
    num_tokens = min(config.train.token_budget or CPU_TOKEN_BUDGET, CPU_TOKEN_BUDGET)
    dtype, rates = automatic_dtype(config.base, num_tokens)
    if rates is not None:
        logger.info(rates.sentence())
    return dataclasses.replace(config, base=with_dtype(config.base, dtype)), rates


def build_pipeline(
    config: RunConfig,
    task: str,
    labels: tuple[str, ...] | None,
    train: Sequence[Example],
    *,
    adapter_settings: Sequence[AdapterSettings] | None = None,
    check_base: Callable[[LoadedBase], None] = lambda base: None,
) -> tuple[Pipeline, RunConfig]:
    """Load the base, put members on it, probe it once, and settle what the configuration leaves open.

    Args:
        config: the run's configuration.
        task: its task's name.
        labels: the label set in order, None if every row has its choices.
        train: training rows, on which `scoring: auto` is decided.
        adapter_settings: shape and initialization of each member (see `EnsembleModel`).
        check_base: may refuse the loaded base, before members are put on it.

    Returns:
        The pipeline, and the configuration with number format, threads (those of now, see `torch_threads`) and scoring
        resolved; its token budget is the device's default if none is given (see `budget.settle_budget`).
    """
    base = load_base(config.base)
    check_context(config, base)
    check_base(base)
    num_labels = None
    if config.data.scoring == "head":
        if labels is None:
            raise ConfigError("data.scoring: a head needs texts with labels; questions have their choices: use text")
        num_labels = len(labels)
    if config.adapt.order == "bootstrap" and train and train[0].asked is not None:
        raise ConfigError(
            "adapt.order: bootstrap draws rows one by one, which typed questions share; use another order"
        )
    model = EnsembleModel(base.model, config.adapt, config.train.seed, adapter_settings, num_labels)
    check_readable(model)
    probe(model)
    template = PromptTemplate.from_config(config.data, has_labels=labels is not None, tokenizer=base.tokenizer)
    token_budget = config.train.token_budget or default_token_budget(base.device.type)
    has_labels = labels is not None
    scoring, reason = decide_scoring(base, model, template, config.data, train, token_budget, has_labels)
    if config.data.scoring == "auto":
        logger.info(f"scoring answers by {scoring}: {reason}")
    if scoring == "tree" and has_labels and train:
        hint = underscore_hint(train[0], template, text_tokenizer(base, config.data))
        if hint is not None:
            logger.info(hint)
    prompt = config.data.prompt
    if template.chat and template.version > 1:
        # saved, since the template may write another date when the run resumes or predicts
        prompt = dataclasses.replace(prompt, frame=template.frame)
    resolved = dataclasses.replace(
        config,
        base=dataclasses.replace(with_dtype(config.base, dtype_name(base.dtype)), threads=torch.get_num_threads()),
        data=dataclasses.replace(config.data, scoring=scoring, prompt=prompt),
        train=dataclasses.replace(config.train, token_budget=token_budget),
    )
    return Pipeline(base, model, template, resolved.data, scoring, token_budget, task), resolved


def build_module(config: RunConfig, task: Task) -> EnsembleModule:
    """Untrained members on their base as a `torch.nn.Module`, for a custom training loop.

    What the configuration leaves open is settled on the training rows; `module.pipeline.data` has the resulting data
    settings, with which `Ensemble.from_peft` makes a run of the trained members.

    Raises:
        ConfigError, CheckpointError: bad input; or `adapt.init_lora_weights` is pissa (see `EnsembleModule`).
    """
    check_run(config)
    config, _ = settle_dtype(config)
    return EnsembleModule(build_pipeline(config, task.name, task.labels, task.splits["train"])[0])


def check_context(config: RunConfig, base: LoadedBase) -> None:
    """Refuse a `max_length` beyond the base's context."""
    if config.data.max_length is not None and config.data.max_length > base.context_length:
        raise ConfigError(
            f"data.max_length: {config.data.max_length} is more than the {base.context_length} tokens of context that"
            f" {base.id} has"
        )


def describe(
    run: Run,
    resolved: RunConfig,
    rows: RunRows,
    pipeline: Pipeline,
    rates: ProductRates | None = None,
    num_processes: int = 1,
) -> None:
    """Write what a run starts with: splits, environment and configuration."""
    described = environment(pipeline.base, rates, num_processes)
    run.write_description(absolute_settings(resolved), described, rows.record())


def environment(base: LoadedBase, rates: ProductRates | None = None, num_processes: int = 1) -> dict[str, object]:
    """What a run was made with: versions, machine, threads, processes, and the rates that decided its number format."""
    packages = ("lorchestra", "torch", "transformers", "tokenizers", "safetensors", "peft", "numpy")
    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "num_cpus": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "num_processes": num_processes,
        "device": torch.cuda.get_device_name() if base.device.type == "cuda" else "cpu",
        "dtype": dtype_name(base.dtype),
        "quantization": base.quantization or "none",
        **({} if rates is None else {"gflops_per_core": rates.to_dict()}),
    }


def ensemble_record(
    pipeline: Pipeline, rows: RunRows, members: Sequence[MemberRecord], cost: Mapping[str, float | None]
) -> EnsembleRecord:
    """The record of an ensemble.

    Args:
        pipeline: base, prompt and scoring.
        rows: the task's rows, for its name, labels and typed questions.
        members: its members.
        cost: the cost of their training here.
    """
    base, template = pipeline.base, pipeline.template
    frame = template.frame if template.chat and template.version > 1 else None
    return EnsembleRecord(
        base=BaseRecord(base.id, base.revision, base.digest, base.path_for_peft, base.quantization),
        tokenizer_digest=base.tokenizer_digest,
        members=tuple(members),
        task=rows.task.name,
        labels=rows.task.labels,
        prompt_template=template.text(pipeline.scoring),
        chat_template=template.chat,
        system_prompt=pipeline.data.prompt.system_prompt,
        choice_end=choice_end(template.version),
        chat_frame=None if frame is None else to_mapping(frame),
        answer_prefix=template.answer_prefix,
        max_length=pipeline.max_length,
        scoring=pipeline.scoring,
        normalize=pipeline.data.normalize,
        cost=cost,
        questions=rows.task.questions,
    )
