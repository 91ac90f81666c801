"""The token budget of a run: as configured, or as much as free memory allows."""

from __future__ import annotations

import logging

from lorchestra.config.run import RunConfig
from lorchestra.errors import ConfigError
from lorchestra.inference.pipeline import Pipeline, default_token_budget
from lorchestra.inference.trunk import trunk_bytes
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.nn.packing import shareable_prefix
from lorchestra.planning.estimate import SHARE, AdapterCounts, fitting_budget, split_trunk
from lorchestra.planning.measure import token_bytes
from lorchestra.planning.memory import free_bytes
from lorchestra.store.disk import readable_bytes
from lorchestra.training.precompute import TrainingRows

logger = logging.getLogger(__name__)


def settle_budget(config: RunConfig, pipeline: Pipeline, rows: TrainingRows, sharing: int = 1) -> int:
    """The configured token budget, or the device's default, reduced if memory is short.

    With enough memory the result depends on device and rows only. `pipeline` may have fewer members than `config`. The
    budget is at least the longest row; a warning is logged if even that may not fit.

    Args:
        config: the run's configuration.
        pipeline: the base with members on it.
        rows: the training and validation rows.
        sharing: number of processes that share the free memory.

    Raises:
        ConfigError: the configured budget is below the longest row.
    """
    longest, configured = longest_row(rows), config.train.token_budget
    check_budget(configured, longest)
    if configured is not None:
        return configured
    model = pipeline.model
    free = free_bytes(model.device)
    free = None if free is None else free // sharing
    default = default_token_budget(model.device.type, shared_tokens(model, rows))
    per_token = token_bytes(model, rows.train, config.train.gradient_checkpointing)
    other = _future_bytes(model, rows, config.adapt.members)
    budget = fitting_budget(default, longest, per_token, other, free)
    if free is None:
        return budget
    needed = round(other + per_token * budget)
    if needed > SHARE * free:
        logger.warning(
            f"training may need {readable_bytes(needed)} more memory even at a token budget of {budget}, the"
            f" longest row, and {readable_bytes(free)} are free; lorchestra plan suggests changes"
        )
    elif budget < default:
        logger.info(
            f"token budget: {budget} instead of {default}, because only {readable_bytes(free)} of memory are free; set"
            " train.token_budget to override it"
        )
    return budget


def check_budget(configured: int | None, longest: int) -> None:
    """Refuse a token budget below the longest row, in tokens.

    Raises:
        ConfigError: names both.
    """
    if configured is not None and configured < longest:
        raise ConfigError(
            f"train.token_budget: {configured} is below the longest row ({longest} tokens); raise it to"
            f" {longest} or more, or limit row length with data.max_length"
        )


def budget_within(model: EnsembleModel, rows: TrainingRows, members: int, checkpointing: bool) -> int:
    """The largest token budget that free memory allows, but at least the longest row."""
    per_token = token_bytes(model, rows.train, checkpointing)
    other = _future_bytes(model, rows, members)
    free = free_bytes(model.device)
    total = sum(row.num_tokens for row in rows.train)
    return fitting_budget(members * total, longest_row(rows), per_token, other, free)


def adapter_counts(model: EnsembleModel, members: int) -> AdapterCounts:
    """Sizes of the adapters for a number of members."""
    adapters = model.adapters
    return AdapterCounts(members, adapters.values.shape[1], 2 * len(adapters.slices), adapters.values.element_size())


def trunk_storage(model: EnsembleModel, rows: TrainingRows, memory_gb: float) -> tuple[int, int]:
    """Bytes of the splits' cached trunks in memory and in files, if there were layers without adapters."""
    sizes = [
        trunk_bytes(model, rows.train, shared_tokens(model, rows)),
        trunk_bytes(model, rows.val, shareable_prefix(rows.val, dropout=False)),
    ]
    return split_trunk(sizes, round(memory_gb * 1e9))


def shared_tokens(model: EnsembleModel, rows: TrainingRows) -> int:
    """Length of the prefix that a training step computes once per member and micro-batch."""
    return shareable_prefix(rows.train, dropout=any(member.dropout > 0 for member in model.adapter_settings))


def longest_row(rows: TrainingRows) -> int:
    """Tokens of the longest training or validation row."""
    return max(row.num_tokens for split in (rows.train, rows.val) for row in split)


def _future_bytes(model: EnsembleModel, rows: TrainingRows, members: int) -> int:
    """Bytes that training will allocate in addition to activations: missing members, their state, cached trunks."""
    counts = adapter_counts(model, members)
    missing = counts.adapter_bytes - adapter_counts(model, model.num_members).adapter_bytes
    trunk = trunk_storage(model, rows, model.adapt.trunk_memory_gb)[0] if model.trunk_layers > 0 else 0
    return missing + counts.training_bytes + trunk
