"""Snapshot ensemble: one LoRA on M cosine cycles, with the adapter at the end of each (arXiv 1704.00109)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorchestra.errors import ConfigError
from lorchestra.methods.contract import Fitted, Meter, MethodContext
from lorchestra.methods.training import (
    check_rate,
    fitted_members,
    of_one_lora,
    only_first_members,
    start_training,
    train_steps,
)
from lorchestra.nn.schedules import CyclicCosine, Schedule
from lorchestra.training.members import MemberSettings


@dataclass(frozen=True)
class Config:
    """The peak rate of the cycles."""

    lr_factor: float = 1.0
    """Learning rate at the start of every cycle, as a multiple of `train.lr`."""


def fit(context: MethodContext, config: Config) -> Fitted:
    """Train one LoRA with the budget of one member; validation rows are not used.

    Raises:
        ConfigError: fewer optimizer steps than snapshots, or an invalid factor.
        TrainingError: training failed.
    """
    check_rate(context, config.lr_factor, "snapshot.lr_factor")
    meter = Meter()
    peak = context.config.train.peak_lr * config.lr_factor

    def make_schedules(settings: Sequence[MemberSettings], num_steps: int) -> list[Schedule]:
        return [CyclicCosine(peak, num_steps, "cosine", 0.0, cycles=context.members) for _ in settings]

    training = start_training(context, meter, of_one_lora(context.config), make_schedules=make_schedules)
    only_first_members(training)
    trainer = training.trainer
    if trainer.num_steps < context.members:
        raise ConfigError(
            f"snapshot: {trainer.num_steps} optimizer steps are too few for {context.members} snapshots; increase"
            " train.epochs"
        )
    (ends,) = {schedule.ends for schedule in trainer.schedules if isinstance(schedule, CyclicCosine)}
    snapshots: list[torch.Tensor] = []

    def after_step(step: int) -> None:
        if step in ends:
            snapshots.append(training.values[0].clone())

    train_steps(context, training, after_step)
    with torch.no_grad():
        training.values.copy_(torch.stack(snapshots))
    return fitted_members(training, meter, range(context.members))
