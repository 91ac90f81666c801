"""The micro-batches that a training would run, counted without running them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from lorchestra.config.run import RunConfig
from lorchestra.nn.packing import BASE, Item, forward_budget, plan_micro_batches, shareable_prefix
from lorchestra.planning.estimate import Work, packed_tokens
from lorchestra.training.members import member_settings
from lorchestra.training.sampler import MemberSampler
from lorchestra.training.trainer import Trainer
from lorchestra.types import EncodedExample

_MAX_MEMBERS = 64
"""Members whose rows are laid out; of more, the others are taken to be like these."""
_MAX_ITEMS = 20_000
"""Rows that are laid out in all: packing is even enough that a sample of steps tells the rest."""


@dataclass(frozen=True)
class Workload:
    """What a training runs."""

    batches: tuple[tuple[Item, ...], ...]
    """Micro-batches of sampled steps, in order."""
    largest: tuple[Item, ...]
    """The one with the most tokens among them."""
    shared: int
    micro_batches: int
    """In the whole run."""
    steps: int
    tokens_per_epoch: int
    """Tokens of the rows that all members see, as the record of a run counts them: shared ones each time."""
    work: Work


def plan_workload(trainer: Trainer, members: int, token_budget: int) -> Workload:
    """Lay out the steps of a run, or a sample of them, as the trainer would; no member stops early.

    Args:
        trainer: of any number of members, for rows, settings and seeds.
        members: M of the run.
        token_budget: of the run.
    """
    rows, config, shared = trainer.rows, trainer.config, trainer.shared
    laid_out = min(members, _MAX_MEMBERS)
    sampled = _sample(trainer.num_steps, max(1, _MAX_ITEMS // (laid_out * config.batch_size)))
    batches: list[tuple[Item, ...]] = []
    adapt = dataclasses.replace(trainer.model.adapt, members=laid_out)
    settings = member_settings(
        RunConfig(adapt=adapt, train=config, regularize=trainer.settings[0].regularize), len(rows.train)
    )
    sampler = MemberSampler(settings, rows.train, config.batch_size)
    for step in sampled:
        batches += map(tuple, plan_micro_batches(sampler.items(range(laid_out), step), token_budget, shared))
    row_tokens = sum(row.num_tokens for row in rows.train)
    # a ratio and not a share of the steps: an epoch's last step may be shorter than the others
    seen = sum(item.example.num_tokens for batch in batches for item in batch)
    scale = row_tokens * members * config.epochs / seen
    train_tokens = sum(packed_tokens(batch, shared) for batch in batches) * scale
    cut = trainer.model.trunk_layers > 0
    with_base = any(own.regularize.kl_beta > 0 for own in trainer.settings)
    val_shared = shareable_prefix(rows.val, dropout=False)
    room = forward_budget(token_budget, trainer.model.device)
    train_once = _pass_tokens(rows.train, room, shared)
    return Workload(
        batches=tuple(batches),
        largest=max(batches, key=lambda batch: packed_tokens(batch, shared)),
        shared=shared,
        micro_batches=round(len(batches) * scale),
        steps=trainer.num_steps,
        tokens_per_epoch=row_tokens * members,
        work=Work(
            train_tokens=round(train_tokens),
            trunk_tokens=train_once + _pass_tokens(rows.val, room, val_shared) if cut else 0,
            evaluate_tokens=_evaluation_tokens(rows.val, members, val_shared) * config.epochs,
            base_tokens=_evaluation_tokens(rows.train, 1, shared) if with_base else 0,
            updates=members * trainer.num_steps,
        ),
    )


def _sample(num_steps: int, most: int) -> list[int]:
    """Steps at even distances."""
    number = min(num_steps, most)
    return [math.floor(index * num_steps / number) for index in range(number)]


def _pass_tokens(rows: Sequence[EncodedExample], room: int, shared: int) -> int:
    batches = plan_micro_batches([Item(BASE, row) for row in rows], room, shared)
    return sum(packed_tokens(batch, shared) for batch in batches)


def _evaluation_tokens(rows: Sequence[EncodedExample], members: int, shared: int) -> int:
    """Packed tokens of one evaluation: every member's pass over the shared first tokens and the rows' own."""
    kept = shared if len(rows) > 1 else 0
    return members * (sum(row.num_tokens - kept for row in rows) + kept)
