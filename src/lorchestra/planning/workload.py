"""The micro-batches of a training run, planned and counted without running them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from lorchestra.config.run import RunConfig
from lorchestra.nn.packing import BASE, Item, forward_budget, plan_micro_batches, shareable_prefix
from lorchestra.planning.estimate import Work, packed_tokens
from lorchestra.training.members import member_settings
from lorchestra.training.sampler import MemberSampler, unit_sizes
from lorchestra.training.trainer import Trainer
from lorchestra.types import EncodedExample

_MAX_MEMBERS = 64
"""Members to plan for; further members are assumed to be the same."""
_MAX_ITEMS = 20_000
"""Rows to plan for in total; packing is even enough to extrapolate from a sample of steps."""


@dataclass(frozen=True)
class Workload:
    """Micro-batches and total work of a run."""

    batches: tuple[tuple[Item, ...], ...]
    """Micro-batches of sampled steps, in order."""
    largest: tuple[Item, ...]
    """The micro-batch with the most tokens."""
    shared: int
    micro_batches: int
    """Number of micro-batches in the whole run."""
    steps: int
    tokens_per_epoch: int
    """Tokens of all members' rows per epoch, as in a run's record: shared tokens count once per row."""
    work: Work


def plan_workload(trainer: Trainer, members: int, token_budget: int) -> Workload:
    """Plan the steps of a run, or a sample of them, as the trainer would; assumes that no member stops early.

    Args:
        trainer: gives rows, settings and seeds; may have any number of members.
        members: M of the run.
        token_budget: token budget of the run.
    """
    rows, config, shared = trainer.rows, trainer.config, trainer.shared
    sampler = _sampler(trainer, min(members, _MAX_MEMBERS))
    num_steps = sampler.steps_per_epoch * config.num_epochs
    batches = _sampled_batches(sampler, num_steps, token_budget, shared)
    epoch_tokens = round(members * _mean_tokens(sampler, rows.train))
    # a ratio of tokens, not of steps: an epoch's last step may be shorter than the others
    seen = sum(item.example.num_tokens for batch in batches for item in batch)
    scale = epoch_tokens * config.num_epochs / seen
    train_tokens = sum(packed_tokens(batch, shared) for batch in batches) * scale
    has_trunk = trainer.model.trunk_layers > 0
    with_base = any(member.regularize.kl_beta > 0 for member in trainer.settings)
    val_shared = shareable_prefix(rows.val, dropout=False)
    room = forward_budget(token_budget, trainer.model.device)
    train_once = _pass_tokens(rows.train, room, shared)
    return Workload(
        batches=tuple(batches),
        largest=max(batches, key=lambda batch: packed_tokens(batch, shared)),
        shared=shared,
        micro_batches=round(len(batches) * scale),
        steps=num_steps,
        tokens_per_epoch=epoch_tokens,
        work=Work(
            train_tokens=round(train_tokens),
            trunk_tokens=train_once + _pass_tokens(rows.val, room, val_shared) if has_trunk else 0,
            evaluate_tokens=_evaluation_tokens(rows.val, members, val_shared) * config.num_epochs,
            base_tokens=_evaluation_tokens(rows.train, 1, shared) if with_base else 0,
            updates=members * num_steps,
        ),
    )


def _sampler(trainer: Trainer, members: int) -> MemberSampler:
    """The sampler of the run's first members."""
    rows, config = trainer.rows.train, trainer.config
    adapt = dataclasses.replace(trainer.model.adapt, members=members)
    run = RunConfig(adapt=adapt, train=config, regularize=trainer.settings[0].regularize)
    return MemberSampler(member_settings(run, len(rows), unit_sizes=unit_sizes(rows)), rows, config.batch_size)


def _sampled_batches(sampler: MemberSampler, num_steps: int, token_budget: int, shared: int) -> list[tuple[Item, ...]]:
    """Micro-batches of evenly spaced steps, as many as `_MAX_ITEMS` allows."""
    members = range(len(sampler.settings))
    number = min(num_steps, max(1, _MAX_ITEMS // (len(members) * sampler.batch_size)))
    batches: list[tuple[Item, ...]] = []
    for index in range(number):
        items = sampler.items(members, math.floor(index * num_steps / number))
        batches += map(tuple, plan_micro_batches(items, token_budget, shared))
    return batches


def _mean_tokens(sampler: MemberSampler, rows: Sequence[EncodedExample]) -> float:
    """Tokens of a member's rows, the mean over members."""
    tokens = [row.num_tokens for row in rows]
    totals = [sum(tokens if member.rows is None else (tokens[e] for e in member.rows)) for member in sampler.settings]
    return sum(totals) / len(totals)


def _pass_tokens(rows: Sequence[EncodedExample], room: int, shared: int) -> int:
    batches = plan_micro_batches([Item(BASE, row) for row in rows], room, shared)
    return sum(packed_tokens(batch, shared) for batch in batches)


def _evaluation_tokens(rows: Sequence[EncodedExample], members: int, shared: int) -> int:
    """Packed tokens of one evaluation: per member, the shared prefix once and the rest of every row."""
    shared = shared if len(rows) > 1 else 0
    return members * (sum(row.num_tokens - shared for row in rows) + shared)
