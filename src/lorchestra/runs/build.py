"""From a configuration to a session: base, members, probe, prompt and scoring."""

from __future__ import annotations

import dataclasses
import logging
import os
import platform
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import torch

from lorchestra.config.run import RunConfig
from lorchestra.data.prompts import PromptTemplate
from lorchestra.errors import ConfigError
from lorchestra.inference.pipeline import Pipeline, decide_scoring, default_token_budget
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.init import AdapterSettings
from lorchestra.models.loading import LoadedBase, load_base
from lorchestra.models.peft_files import check_readable
from lorchestra.models.probe import probe
from lorchestra.types import Example

logger = logging.getLogger(__name__)


def build_pipeline(
    config: RunConfig,
    task: str,
    labels: tuple[str, ...] | None,
    train: Sequence[Example],
    *,
    adapter_settings: Sequence[AdapterSettings] | None = None,
    check_base: Callable[[LoadedBase], None] = lambda base: None,
) -> tuple[Pipeline, RunConfig]:
    """Load the base, put members on it, try it once, and settle what the configuration left open.

    Args:
        config: the run's configuration.
        task: its task's name.
        labels: the label set in order, None where every row brings its own choices.
        train: training rows, on which `scoring: auto` is decided.
        adapters: each member's own shape and start (see `EnsembleModel`).
        check_base: may refuse the loaded base, before members are put on it.

    Returns:
        The session, and the configuration with threads and scoring resolved; its token budget is the device's default
        where none is given (see `budget.settle_budget`).
    """
    if config.base.threads is not None:
        torch.set_num_threads(config.base.threads)
    base = load_base(config.base)
    check_context(config, base)
    check_base(base)
    model = EnsembleModel(base.model, config.adapt, config.train.seed, adapter_settings)
    check_readable(model)
    probe(model)
    template = PromptTemplate.from_config(config.data, has_labels=labels is not None, tokenizer=base.tokenizer)
    token_budget = config.train.token_budget or default_token_budget(base.device.type)
    scoring, why = decide_scoring(base, model, template, config.data, train, token_budget)
    if config.data.scoring == "auto":
        logger.info(f"scoring answers by {scoring}: {why}")
    prompt = config.data.prompt
    if template.chat and template.version > 1:
        # as it is now: the template may write another date when the run resumes or predicts
        prompt = dataclasses.replace(prompt, frame=template.frame)
    resolved = dataclasses.replace(
        config,
        base=dataclasses.replace(config.base, threads=torch.get_num_threads()),
        data=dataclasses.replace(config.data, scoring=scoring, prompt=prompt),
        train=dataclasses.replace(config.train, token_budget=token_budget),
    )
    return Pipeline(base, model, template, resolved.data, scoring, token_budget, task), resolved


def check_context(config: RunConfig, base: LoadedBase) -> None:
    """Refuse a `max_length` beyond what the base was made for."""
    if config.data.max_length is not None and config.data.max_length > base.context_length:
        raise ConfigError(
            f"data.max_length: {config.data.max_length} is more than the {base.context_length} tokens of context that"
            f" {base.id} has"
        )


def environment(base: LoadedBase) -> dict[str, Any]:
    """What a run was made with: versions, machine and threads."""
    packages = ("lorchestra", "torch", "transformers", "tokenizers", "safetensors", "peft", "numpy")
    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "num_cpus": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if base.device.type == "cuda" else "cpu",
        "dtype": str(base.dtype).removeprefix("torch."),
    }
