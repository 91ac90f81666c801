"""The token budget of a run: as configured, or as the free memory allows."""

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


def settle_budget(config: RunConfig, pipeline: Pipeline, rows: TrainingRows) -> int:
    """The token budget that `config` gives, or the device's default, lowered where memory is short.

    Where memory is ample the result depends on nothing but device and rows. `pipeline` may have fewer members than
    `config`. No budget goes below the longest row; where even that takes more memory than is free, a warning is logged.

    Raises:
        ConfigError: the budget given is below the longest row.
    """
    longest, asked = longest_row(rows), config.train.token_budget
    if asked is not None:
        if asked < longest:
            raise ConfigError(
                f"train.token_budget: {asked} is below the longest row, which has {longest} tokens; raise it to"
                f" {longest} or more, or bound rows by data.max_length"
            )
        return asked
    model = pipeline.model
    free = free_bytes(model.device)
    default = default_token_budget(model.device.type, shared_tokens(model, rows))
    each = token_bytes(model, rows.train, config.train.gradient_checkpointing)
    other = _still_to_come(model, rows, config.adapt.members)
    budget = fitting_budget(default, longest, each, other, free)
    if free is None:
        return budget
    needed = round(other + each * budget)
    if needed > SHARE * free:
        logger.warning(
            f"training may need {readable_bytes(needed)} more memory even at a token budget of {budget}, the"
            f" longest row, and {readable_bytes(free)} are free; lorchestra plan says what would help"
        )
    elif budget < default:
        logger.info(
            f"token budget: {budget} instead of {default}, since {readable_bytes(free)} of memory are free; give"
            " train.token_budget to have it otherwise"
        )
    return budget


def budget_within(model: EnsembleModel, rows: TrainingRows, members: int, checkpointing: bool) -> int:
    """The largest token budget that the free memory allows, though not below the longest row."""
    each = token_bytes(model, rows.train, checkpointing)
    other = _still_to_come(model, rows, members)
    free = free_bytes(model.device)
    every = sum(row.num_tokens for row in rows.train)
    return fitting_budget(members * every, longest_row(rows), each, other, free)


def adapter_counts(model: EnsembleModel, members: int) -> AdapterCounts:
    """What the adapters of so many members are made of."""
    adapters = model.adapters
    return AdapterCounts(members, adapters.values.shape[1], 2 * len(adapters.slices), adapters.values.element_size())


def trunk_places(model: EnsembleModel, rows: TrainingRows, memory_gb: float) -> tuple[int, int]:
    """Bytes of the splits' trunks in memory and in files, if there were layers without adapters below."""
    sizes = [
        trunk_bytes(model, rows.train, shared_tokens(model, rows)),
        trunk_bytes(model, rows.val, shareable_prefix(rows.val, dropout=False)),
    ]
    return split_trunk(sizes, round(memory_gb * 1e9))


def shared_tokens(model: EnsembleModel, rows: TrainingRows) -> int:
    """First tokens that a training step computes once a member and micro-batch."""
    return shareable_prefix(rows.train, dropout=any(own.dropout > 0 for own in model.adapter_settings))


def longest_row(rows: TrainingRows) -> int:
    """Tokens of the longest training or validation row."""
    return max(row.num_tokens for split in (rows.train, rows.val) for row in split)


def _still_to_come(model: EnsembleModel, rows: TrainingRows, members: int) -> int:
    """Bytes that training will allocate beside activations: what members lack, their state, cached trunks."""
    counts = adapter_counts(model, members)
    missing = counts.adapter_bytes - adapter_counts(model, model.num_members).adapter_bytes
    trunk = trunk_places(model, rows, model.adapt.trunk_memory_gb)[0] if model.trunk_layers > 0 else 0
    return missing + counts.training_bytes + trunk
