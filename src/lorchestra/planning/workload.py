"""The micro-batches of a training run, planned and counted without running them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorchestra.config.adapt import AdaptConfig
from lorchestra.config.run import RegularizeConfig, RunConfig, TrainConfig
from lorchestra.nn.packing import BASE, Item, forward_budget, plan_micro_batches, shareable_prefix
from lorchestra.planning.estimate import Work, evaluation_tokens, packed_tokens
from lorchestra.training.members import member_settings
from lorchestra.training.precompute import TrainingRows
from lorchestra.training.sampler import MemberSampler, unit_sizes
from lorchestra.training.search import expected_steps
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


@dataclass(frozen=True)
class PlannedRun:
    """What a workload depends on: rows and settings, and nothing of the base but whether it has a trunk."""

    rows: TrainingRows
    config: TrainConfig
    """With numbers for the learning rate and the epochs."""
    adapt: AdaptConfig
    regularize: RegularizeConfig
    shared: int
    """First tokens that a training step computes once per member and micro-batch."""
    has_trunk: bool
    device: torch.device

    @classmethod
    def of(cls, trainer: Trainer) -> PlannedRun:
        """The run of a trainer, whatever its number of members."""
        model = trainer.model
        kl = [member.regularize for member in trainer.settings if member.regularize.kl_beta > 0]
        regularize = kl[0] if kl else trainer.settings[0].regularize
        has_trunk = model.trunk_layers > 0
        return cls(trainer.rows, trainer.config, model.adapt, regularize, trainer.shared, has_trunk, model.device)


def plan_workload(run: PlannedRun, members: int, token_budget: int, option_orders: int = 1) -> Workload:
    """Plan the steps of a run, or a sample of them, as the trainer would; assumes that no member stops early.

    Args:
        run: its rows and settings.
        members: M of the run.
        token_budget: token budget of the run.
        option_orders: orders of the options over which answers by letters are averaged, in the calibration.
    """
    rows, config, shared = run.rows, run.config, run.shared
    sampler = _sampler(run, min(members, _MAX_MEMBERS))
    num_steps = sampler.steps_per_epoch * config.num_epochs
    batches = _sampled_batches(sampler, num_steps, token_budget, shared)
    epoch_tokens = round(members * _mean_tokens(sampler, rows.train))
    # a ratio of tokens, not of steps: an epoch's last step may be shorter than the others
    seen = sum(item.example.num_tokens for batch in batches for item in batch)
    scale = epoch_tokens * config.num_epochs / seen
    train_tokens = sum(packed_tokens(batch, shared) for batch in batches) * scale
    val_shared = shareable_prefix(rows.val, dropout=False)
    room = forward_budget(token_budget, run.device)
    train_once = _pass_tokens(rows.train, room, shared)
    calibration, calibration_trunk = _calibration_tokens(run, members, option_orders)
    return Workload(
        batches=tuple(batches),
        largest=max(batches, key=lambda batch: packed_tokens(batch, shared)),
        shared=shared,
        micro_batches=round(len(batches) * scale),
        steps=num_steps,
        tokens_per_epoch=epoch_tokens,
        work=Work(
            train_tokens=round(train_tokens),
            trunk_tokens=train_once + _pass_tokens(rows.val, room, val_shared) if run.has_trunk else 0,
            evaluate_tokens=evaluation_tokens(rows.val, members, val_shared) * config.num_epochs,
            base_tokens=evaluation_tokens(rows.train, 1, shared) if run.regularize.kl_beta > 0 else 0,
            updates=members * num_steps,
            calibration_tokens=calibration,
            calibration_trunk_tokens=calibration_trunk,
        ),
    )


def with_search(
    workload: Workload, searched: TrainConfig, settled: TrainConfig, per_epoch: int, members: int, grids: int
) -> Workload:
    """The workload with the tokens of the search that comes before the training, if there is one.

    A head's candidates have no tokens of the labels' texts, but are counted as if they had.

    Args:
        workload: of the settled training.
        searched: the training as configured.
        settled: the same with usual numbers in place of what a search chooses.
        per_epoch: optimizer steps per epoch.
        members: M.
        grids: number of scorings for which the rate is searched.
    """
    if not searched.is_auto:
        return workload
    steps = expected_steps(per_epoch, settled.num_epochs, grids=grids, length=searched.epochs == "auto")
    per_step = workload.work.train_tokens / (settled.num_epochs * per_epoch * members)
    return dataclasses.replace(workload, work=dataclasses.replace(workload.work, search_tokens=round(steps * per_step)))


def _calibration_tokens(run: PlannedRun, members: int, option_orders: int) -> tuple[int, int]:
    """Packed tokens of the predictions that a calibration is fitted on: of the members, and of the layers below.

    The rows are the validation rows with an answer. Their trunk is not the one that training cached.
    """
    of_members = below = 0
    if run.config.calibration == "none":
        return 0, 0
    answered = [row for row in run.rows.val if row.answer is not None]
    for order in range(option_orders):  # a row has at most as many orders as options
        rows = [row for row in answered if order == 0 or len(row.choices) > order]
        shared = shareable_prefix(rows, dropout=False)
        of_members += evaluation_tokens(rows, members, shared) if rows else 0
        below += evaluation_tokens(rows, 1, shared) if rows and run.has_trunk else 0
    return of_members, below


def _sampler(run: PlannedRun, members: int) -> MemberSampler:
    """The sampler of the run's first members."""
    rows, config = run.rows.train, run.config
    adapt = dataclasses.replace(run.adapt, members=members)
    whole = RunConfig(adapt=adapt, train=config, regularize=run.regularize)
    return MemberSampler(member_settings(whole, len(rows), unit_sizes=unit_sizes(rows)), rows, config.batch_size)


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
